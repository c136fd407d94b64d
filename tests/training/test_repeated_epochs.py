"""A run of more epochs than its store has repeats their batches, as a run behind the teacher does
with the same recipe.
"""

from pathlib import Path
from typing import Any

import pytest
from tiny import (
    assert_equal_tensors,
    assert_same_run,
    records,
    run,
    stop_after,
    tensors,
    write_recipe,
)

from distill.errors import InputError
from distill.models.teacher import Teacher
from distill.recipe import load_recipe, recipe_fingerprint
from distill.training.loop import DONE, INTERRUPTED
from distill.training.verify_targets import verify_targets
from distill.training.write_targets import write_targets

# 4 epochs of 7 steps and a part of the fifth, of which 2 are distinct.
CHANGES: dict[str, Any] = {
    "data": {
        "distinct_epochs": 2,
        "augment": {"auto_augment": "rand-m7-mstd0.5-inc1", "repeats": 3},
        "mixing": {"mixup": 0.2, "cutmix": 1.0, "group_size": 8},
    },
    "train": {"budget": "30 iterations"},
    "evaluate": {"every": "10 iterations"},
    "students": {
        "kd": {
            "drop_path": 0.2,
            "objective": {"hard": {"loss": "ce"}, "soft": {"loss": "kl", "temperature": 2.0}},
        }
    },
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with its store."""
    folder = tmp_path_factory.mktemp("repeated")
    path = write_recipe(folder, CHANGES, {"targets": str(folder / "store")})
    assert write_targets(load_recipe(path), keep="all") == 0
    return path


@pytest.mark.slow
def test_the_run_behind_the_teacher_and_the_run_from_the_store(
    recipe: Path, tmp_path: Path
) -> None:
    live, stored, split = (tmp_path / name for name in ("live", "stored", "split"))
    assert run(recipe, f"output={live}", "targets=null") == DONE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teacher, "__init__", None)
        assert run(recipe, f"output={stored}") == DONE
        stop_after(18, patch)
        assert run(recipe, f"output={split}") == INTERRUPTED
        assert run(recipe, f"output={split}") == DONE
    assert_equal_tensors(tensors(live), tensors(stored))
    assert_same_run(stored, split)
    epochs = [line["epoch"] for line in records(stored) if line["event"] == "train"]
    assert epochs[-1] == pytest.approx(30 / 7)


def test_the_store_has_the_distinct_epochs(recipe: Path, tmp_path: Path) -> None:
    shards = sorted(path.name for path in (recipe.parent / "store").glob("epoch*"))
    assert shards == ["epoch-00000-part-00000", "epoch-00001-part-00000"]
    message = r"lacks rows of epochs 3-5, .*data.distinct_epochs: 2 to repeat the first 2 in turn"
    output = f"output={tmp_path / 'run'}"
    for distinct in ("null", "5"):
        with pytest.raises(InputError, match=message):
            run(recipe, output, f"data.distinct_epochs={distinct}")


def test_epochs_of_any_number_can_be_written_and_verified(recipe: Path, tmp_path: Path) -> None:
    """The rows of an epoch do not depend on how many a run repeats."""
    stores = [f"targets={tmp_path / name}" for name in ("one", "other")]
    for store, distinct in zip(stores, ("2", "null"), strict=True):
        changed = load_recipe(recipe, [store, f"data.distinct_epochs={distinct}"])
        assert write_targets(changed, keep=3, epochs=[3]) == 0
    name = "epoch-00003-part-00000"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    verify_targets(load_recipe(recipe, [stores[1]]), 8)


def test_it_is_a_part_of_the_run_only_if_it_is_set(recipe: Path) -> None:
    fingerprints = [
        recipe_fingerprint(load_recipe(recipe, [f"data.distinct_epochs={value}"]))
        for value in ("null", "2", "3")
    ]
    assert len(set(fingerprints)) == 3
    with pytest.raises(InputError, match=r"data.distinct_epochs: epochs of folders"):
        load_recipe(recipe, ["data.train={kind: stream, path: 'x-{0..3}.tar'}", "targets=null"])
