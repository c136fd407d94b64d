"""The rows of a store are compared with the live teacher, when asked and at the start of a run."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Cli
from tiny import run, write_recipe

import distill.training.verify_targets
from distill.data.targets import ShardKey, open_store
from distill.errors import InputError
from distill.recipe import load_recipe
from distill.training.loop import DONE
from distill.training.verify_targets import verify_targets
from distill.training.write_targets import write_targets

CHANGES: dict[str, Any] = {
    "students": {"kd": {"objective": {"soft": {"loss": "kl", "temperature": 2.0}}}},
    "train": {"budget": "2 epochs"},
    "data": {"mixing": {"mixup": 0.2, "cutmix": 1.0, "group_size": 8}},
}


@pytest.fixture(params=["all", pytest.param(3, marks=pytest.mark.slow)])
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A recipe with a store of 2 epochs of 14 forwards of 8 images."""
    path = write_recipe(tmp_path, CHANGES, {"targets": str(tmp_path / "store")})
    assert write_targets(load_recipe(path), keep=request.param) == 0
    return path


def spoil(recipe: Path, epoch: int, row: int) -> None:
    """Change a row by more than rounding, in a shard that is intact."""
    store = open_store(recipe.parent / "store")
    assert store is not None
    rows = store.read(ShardKey(epoch, 0))
    name = "logits" if "logits" in rows else "values"
    rows[name][row, 0] += 0.5
    store.write(ShardKey(epoch, 0), rows)


def test_rows_are_compared_with_the_teacher(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards = []
    images = distill.training.verify_targets._images

    def counted(plan: Any, sample: Any, *arguments: Any) -> torch.Tensor:
        forwards.append((sample.epoch, sample.step, sample.slots.rank))
        return images(plan, sample, *arguments)

    monkeypatch.setattr(distill.training.verify_targets, "_images", counted)
    verify_targets(load_recipe(recipe), 17)
    assert forwards == [(0, 0, 0), (0, 6, 1), (1, 6, 1)]  # from the first to the last
    verify_targets(load_recipe(recipe), 10_000, [1])
    assert len(forwards) == 3 + 14
    out = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "24 images of the store against the teacher: all bit for bit" in out
    assert "112 images of the store against the teacher: all bit for bit" in out
    spoil(recipe, 1, 47)
    spoil(recipe, 1, 99)
    verify_targets(load_recipe(recipe), 1000, [0])
    with pytest.raises(InputError, match=r"row 47 of epoch 2 is not what the teacher says"):
        verify_targets(load_recipe(recipe), 1000)


@pytest.mark.parametrize("recipe", ["all"], indirect=True)
def test_a_run_starts_with_a_sample(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], cli: Cli
) -> None:
    """Only where the file of the teacher's weights is at hand."""
    assert run(recipe, f"output={tmp_path / 'first'}", "train.budget=1 iterations") == DONE
    assert "verified" not in capfd.readouterr().out
    file = tmp_path / "first/best/kd/model.safetensors"
    of = (
        "teacher.model=cifar_resnet8",
        f"teacher.weights={file}",
        f"targets={tmp_path / 'own'}",
        "train.budget=1 iterations",
    )
    assert cli("targets", recipe, *of).code == 0
    outcome = cli("targets", recipe, *of, "--verify", "1")
    assert (outcome.code, "8 images of the store against" in outcome.out) == (0, True), outcome.err
    verify = load_recipe(recipe, of)
    assert run(recipe, *of, f"output={tmp_path / 'right'}") == DONE
    out = re.sub(r"\s+", " ", capfd.readouterr().out)
    assert "verified 8 images of the store against the teacher: all bit for bit" in out
    store = open_store(tmp_path / "own")
    assert store is not None
    rows = store.read(ShardKey(0, 0))
    rows["logits"][5, 2] += 1
    store.write(ShardKey(0, 0), rows)
    with pytest.raises(InputError, match="row 5 of epoch 1 is not what"):
        run(recipe, *of, f"output={tmp_path / 'wrong'}")
    # The sample alone, and not where processes share the teacher.
    assert run(recipe, *of, "teacher.placement=zero3", f"output={tmp_path / 'zero3'}") == DONE
    file.unlink()
    assert run(recipe, *of, f"output={tmp_path / 'without'}") == DONE
    with pytest.raises(InputError, match=r"teacher.weights: .* does not exist"):
        verify_targets(verify, 1)


@pytest.mark.parametrize("recipe", ["all"], indirect=True)
def test_nothing_to_verify(recipe: Path, tmp_path: Path, cli: Cli) -> None:
    with pytest.raises(InputError, match=r"--epochs 3: \S+ does not have it in full"):
        verify_targets(load_recipe(recipe), 1, [0, 2])
    with pytest.raises(InputError, match=r"seed: 0 in the store, 1 here"):
        verify_targets(load_recipe(recipe, ["seed=1"]), 1)
    for path in (tmp_path / "store").glob("epoch*"):
        path.unlink()
    with pytest.raises(InputError, match="no epoch in full"):
        verify_targets(load_recipe(recipe), 1)
    outcome = cli("targets", recipe, "--verify", "1", "--keep", "all")
    assert (outcome.code, "--verify reads rows that are there" in outcome.err) == (2, True)
    outcome = cli("targets", recipe, "--verify", "0")
    assert (outcome.code, "--verify" in outcome.err) == (2, True)
