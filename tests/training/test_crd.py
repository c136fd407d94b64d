"""Runs with CRD: its bank over images, labels, stages, stops and students."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stages import FOREIGN, two_stages
from tiny import (
    EVERYTHING,
    assert_equal_tensors,
    assert_same_run,
    best,
    report,
    run,
    stop_after,
    tensors,
    write_recipe,
)

from distill.recipe import load_recipe
from distill.training.loop import DONE, INTERRUPTED
from distill.training.plan import make_plan

LAMB = {"name": "lamb", "lr": 5e-3, "weight_decay": 0.02, "clip_grad_norm": 1.0}
CRD = {"loss": "crd", "negatives": 64}


def student(hint: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"objective": {"hard": {"loss": "ce"}, "hint": hint}, "optimizer": LAMB, **changes}


STUDENTS: dict[str, Any] = {
    "crd": student(CRD, ema={"decays": [0.5]}, drop_path=0.2),
    "host": student({**CRD, "bank": "host"}, ema={"decays": [0.5]}, drop_path=0.2),
    "original": student(
        {**CRD, "reference": "original", "weight": 0.8, "width": 16, "negatives": 120},
        model="test_vit",
        model_args={"patch_size": 4},
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all of them, from its start to its end."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(write_recipe(folder, EVERYTHING, {"students": STUDENTS}, name="whole")) == DONE
    return folder / "whole"


def test_the_bank_is_in_checkpoints_and_in_no_export(whole: Path) -> None:
    students = report(whole)["students"]
    maps = {"crd": 2 * (64 * 128 + 128), "original": 2 * (64 * 16 + 16)}
    for name, size in maps.items():
        assert students[name]["parameters_of_heads"] == size
        saved = tensors(whole, name)
        assert saved[f"{name}.heads/bank.student"].shape == (120, size // 2 // 65)
        assert torch.isfinite(saved[f"{name}.heads/log_z"]).all()
        assert not [key for key in best(whole, name)[0] if "bank" in key or "heads" in key]
    averages = {key for key in tensors(whole, "crd") if key.startswith("crd.ema-0.5/")}
    assert averages
    assert not [key for key in averages if "bank" in key]


def test_rows_of_the_bank_are_the_images_of_the_run(whole: Path) -> None:
    """The run takes 120 of 6,000 images, three views of each in a batch, mixed; a row has the label
    of its own image, and rows of images that no batch had keep their first values.
    """
    plan = make_plan(load_recipe(whole.with_suffix(".yaml"), []))
    source, order = plan.stages[0].source, plan.stages[0].order
    assert isinstance(source.labels, np.ndarray)
    indices = np.unique(np.concatenate([order.batch(step).indices for step in range(8)]))
    assert 20 < len(indices) < 120
    rows = order.rows_of(indices)
    assert len(np.unique(rows)) == len(rows)
    assert rows.max() < 120
    for name in STUDENTS:
        saved = tensors(whole, name)
        labels = np.full(120, -1)
        labels[rows] = source.labels[indices]
        assert np.array_equal(saved[f"{name}.heads/bank.labels"].numpy(), labels)
        for side in ("student", "teacher"):
            lengths = saved[f"{name}.heads/bank.{side}"].norm(dim=1)
            assert torch.allclose(lengths[rows], torch.ones(len(rows)), atol=1e-5)
            others = torch.from_numpy(labels == -1)
            assert (lengths[others] - 1).abs().min() > 1e-5


def test_a_bank_on_the_host_gives_the_same_bits(whole: Path) -> None:
    one, two = tensors(whole, "crd"), tensors(whole, "host")
    assert_equal_tensors(one, {f"crd{name.removeprefix('host')}": two[name] for name in two})


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 5])
def test_a_stopped_run_ends_with_the_same_bits(
    step: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the bank moves to the host in between."""
    recipe = write_recipe(tmp_path, EVERYTHING, {"students": STUDENTS})
    with monkeypatch.context() as patch:
        stop_after(step, patch)
        assert run(recipe) == INTERRUPTED
    moved = "students.original.objective.hint.bank=host"
    assert run(recipe, *([moved] if step == 5 else [])) == DONE
    if step == 5:
        assert_equal_tensors(tensors(tmp_path / "run"), tensors(whole))
    else:
        assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_each_student_learns_as_alone(whole: Path, tmp_path: Path) -> None:
    alone = {"students": {"original": STUDENTS["original"]}}
    assert run(write_recipe(tmp_path, EVERYTHING, alone)) == DONE
    assert_equal_tensors(tensors(tmp_path / "run", "original"), tensors(whole, "original"))


@pytest.mark.slow
def test_a_compiled_run_gives_the_same_weights(tmp_path: Path) -> None:
    changes = {"students": {"crd": STUDENTS["crd"]}, "train": {"budget": "2 iterations"}}
    assert run(write_recipe(tmp_path, changes, name="eager")) == DONE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.Module,
            "compile",
            lambda self, **_: setattr(
                self, "_compiled_call_impl", torch.compile(self._call_impl, backend="eager")
            ),
        )
        assert run(write_recipe(tmp_path, changes, {"train": {"compile": True}})) == DONE
    assert_equal_tensors(*(tensors(tmp_path / name, "crd") for name in ("eager", "run")))


@pytest.mark.slow
def test_half_precision_trains(tmp_path: Path) -> None:
    changes = {"students": {"crd": STUDENTS["crd"]}, "train": {"precision": "bf16"}}
    assert run(write_recipe(tmp_path, changes)) == DONE
    saved = tensors(tmp_path / "run", "crd")
    assert saved["crd.heads/bank.student"].dtype == torch.float32
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())


# ---- stages --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("second", [{}, {"fraction": 0.03}], ids=["same images", "other images"])
def test_a_bank_lives_as_long_as_its_images(
    second: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {
        "train": {"budget": None},
        "students": {"crd": STUDENTS["crd"]},
        "stages": [
            {"name": "first", "budget": "4 iterations"},
            {"name": "second", "budget": "3 iterations", "data": second},
        ],
    }
    recipe = write_recipe(tmp_path, changes, name="whole")
    assert run(recipe) == DONE
    stages = make_plan(load_recipe(recipe, [])).stages
    seen = [
        {int(i) for step in range(steps) for i in stage.order.batch(step).indices}
        for stage, steps in zip(stages, (4, 3), strict=True)
    ]
    expected = seen[1] if second else seen[0] | seen[1]
    end = tensors(tmp_path / "whole", "crd")
    labels = end["crd.heads/bank.labels"]
    assert len(labels) == (180 if second else 120)
    rows = stages[1].order.rows_of(np.array(sorted(expected)))
    assert np.array_equal(np.flatnonzero(labels >= 0), rows)
    for step in (2, 5):
        again = write_recipe(tmp_path, changes, name=f"from-{step}")
        with monkeypatch.context() as patch:
            stop_after(step, patch)
            assert run(again) == INTERRUPTED
        assert run(again) == DONE
        assert_same_run(tmp_path / f"from-{step}", tmp_path / "whole")


@pytest.mark.slow
def test_images_of_a_stream_without_labels(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = two_stages(foreign)
    changes["students"] = {"crd": {"objective": {"hint": CRD}}}
    recipe = write_recipe(tmp_path, changes)
    with monkeypatch.context() as patch:
        stop_after(FOREIGN, patch)
        assert run(recipe) == INTERRUPTED
    stage = make_plan(load_recipe(recipe, [])).stages[0]
    saved = tensors(tmp_path / "run", "crd")
    assert (saved["crd.heads/bank.labels"] == -1).all()
    seen = np.unique(np.concatenate([stage.order.batch(i).indices for i in range(FOREIGN)]))
    moved = (saved["crd.heads/bank.student"].norm(dim=1) - 1).abs() < 1e-5
    assert np.array_equal(np.flatnonzero(moved), stage.order.rows_of(seen))
    assert run(recipe) == DONE
    saved = tensors(tmp_path / "run", "crd")
    assert saved["crd.heads/bank.labels"].shape == (120,)
    assert saved["crd.heads/bank.labels"].max() > 0
