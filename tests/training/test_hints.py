"""Runs with hints that read pooled features: CC, RKD and features, side by side."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    EVERYTHING,
    assert_equal_tensors,
    assert_same_run,
    best,
    records,
    report,
    run,
    stop_after,
    tensors,
    write_recipe,
)

from distill.errors import InputError
from distill.recipe import load_recipe
from distill.training.check import check_recipe
from distill.training.loop import DONE, INTERRUPTED

LAMB = {"name": "lamb", "lr": 5e-3, "weight_decay": 0.02, "clip_grad_norm": 1.0}


def student(hint: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"objective": {"hard": {"loss": "ce"}, "hint": hint}, "optimizer": LAMB, **changes}


VIT = {"model": "test_vit", "model_args": {"patch_size": 4}, "drop_path": 0.3}
STUDENTS: dict[str, Any] = {
    "cc": student({"loss": "cc", "weight": 5.0}, ema={"decays": [0.5]}),
    "congruence": student({"loss": "cc", "reference": "original"}, drop_rate=0.2),
    "rkd": student({"loss": "rkd", "weight": 0.1}, **VIT),
    "pooled": student({"loss": "feature"}, **VIT),
    "dense": student({"loss": "feature", "level": "dense", "distance": "mse", "weight": 0.1}),
}
# Trained beside the model, from 64 features of student and teacher.
HEADS = {
    "cc": 2 * (64 * 128 + 128),
    "congruence": 0,
    "rkd": 0,
    "pooled": 64 * 64 + 64,
    "dense": 64 * 64 + 64,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all of them, from its start to its end."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(write_recipe(folder, EVERYTHING, {"students": STUDENTS}, name="whole")) == DONE
    return folder / "whole"


def test_heads_are_counted_apart_and_leave_no_trace_in_exports(whole: Path) -> None:
    students = report(whole)["students"]
    assert {name: students[name]["parameters_of_heads"] for name in students} == HEADS
    for name in STUDENTS:
        saved = {key for key in tensors(whole, name) if f"{name}.heads/" in key}
        assert bool(saved) == bool(HEADS[name])
        assert not [key for key in best(whole, name)[0] if "heads" in key]
    for line in records(whole):
        if line["event"] == "train":
            for name, figures in line["students"].items():
                weight = STUDENTS[name]["objective"]["hint"].get("weight", 1.0)
                expected = figures["loss_hard"] + weight * figures["loss_hint"]
                assert figures["loss_total"] == pytest.approx(expected, rel=1e-5)
                assert figures["loss_hint"] > 0


@pytest.mark.parametrize("step", [1, 5])
def test_a_stopped_run_ends_with_the_same_bits(
    step: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, EVERYTHING, {"students": STUDENTS})
    with monkeypatch.context() as patch:
        stop_after(step, patch)
        assert run(recipe) == INTERRUPTED
    assert run(recipe) == DONE
    assert_same_run(tmp_path / "run", whole)


def test_each_learns_as_alone(whole: Path, tmp_path: Path) -> None:
    for name in ("cc", "rkd"):
        changes = {"students": {name: STUDENTS[name]}}
        assert run(write_recipe(tmp_path, EVERYTHING, changes, name=name)) == DONE
        assert_equal_tensors(tensors(whole, name), tensors(tmp_path / name, name))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_finite(precision: str, tmp_path: Path) -> None:
    changes = {"students": STUDENTS, "train": {"precision": precision, "budget": "3 iterations"}}
    teacher = {"teacher": {"dtype": precision}}
    assert run(write_recipe(tmp_path, changes, teacher)) == DONE
    assert all(each["stopped_at"] is None for each in report(tmp_path / "run")["students"].values())


def test_the_gradient_reaches_the_model(tmp_path: Path) -> None:
    """With the hard loss weighed 0, all that moves the model is the hint."""
    for name in ("congruence", "rkd"):
        hint = STUDENTS[name]["objective"]["hint"]
        objective = {"hard": {"loss": "ce", "weight": 0.0}, "hint": hint}
        one = {"objective": objective, "optimizer": {"name": "momentum", "lr": 0.1}}
        for budget in (1, 2):
            changes = {
                "students": {"one": one},
                "train": {"budget": f"{budget} iterations"},
                "checkpoint": {"every": "1 iterations"},
            }
            assert run(write_recipe(tmp_path, changes, name=f"{name}{budget}")) == DONE
        first, second = (tensors(tmp_path / f"{name}{n}", "one") for n in (1, 2))
        assert not torch.equal(first["one.model/conv1.weight"], second["one.model/conv1.weight"])
        assert torch.equal(first["one.model/fc.weight"], second["one.model/fc.weight"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.batch_size_global=2", "train.micro_batch_size=2"],
            r"train.micro_batch_size: 2, and students.rkd.objective.hint rkd relates at least 3",
        ),
        (
            ["train.batch_size_global=2", "train.micro_batch_size=null"],
            r"train.batch_size_global: 2, and students.rkd.objective.hint rkd relates at least 3",
        ),
        (
            ["students.pooled.objective.hint.student_stage=1"],
            r"students.pooled.objective.hint: .*student_stage names a feature map: set level",
        ),
        (
            ["students.dense.objective.hint.teacher_stage=7"],
            r"students.dense.objective.hint.teacher_stage: 7, and teacher cifar_resnet14",
        ),
        (["students.cc.objective.hint.reference=orignal"], r"hint.reference"),
        (["students.rkd.objective.hint.distances=1"], r"distance_weight"),
    ],
)
def test_a_hint_that_cannot_be_is_refused_by_check_and_by_train(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, {"students": STUDENTS})
    with pytest.raises(InputError, match=message):
        check_recipe(load_recipe(recipe, overrides))
    with pytest.raises(InputError, match=message):
        run(recipe, *overrides)
    assert not (tmp_path / "run").exists()
