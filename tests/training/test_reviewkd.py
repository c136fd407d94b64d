"""Runs with ReviewKD: a ResNet and a ViT behind a ResNet, and a ResNet behind a ViT."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    EVERYTHING,
    IMAGE_SIZE,
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
HINT = {"loss": "reviewkd", "weight": 0.5, "warmup_epochs": 0}
STUDENTS: dict[str, Any] = {
    "resnet": {
        "objective": {"hard": {"loss": "ce"}, "hint": HINT},
        "optimizer": LAMB,
        "ema": {"decays": [0.5]},
        "drop_path": 0.2,
    },
    "vit": {
        "model": "test_vit",
        "model_args": {"patch_size": 4},
        "drop_path": 0.3,
        "objective": {
            "hard": {"loss": "ce"},
            "hint": {**HINT, "reference": "original", "warmup_epochs": 1},
        },
        "optimizer": LAMB,
    },
}
VIT_TEACHER = {
    "teacher": {
        "model": "test_vit",
        "weights": "random",
        "image_size": IMAGE_SIZE,
        "model_args": {"patch_size": 4},
    }
}


def parameters(student: tuple[int, ...], teacher: tuple[int, ...]) -> int:
    """Of the heads at these widths, as counted by hand."""
    width = min(512, student[-1])
    convolutions = sum(c * width for c in student) + sum(9 * width * c for c in teacher)
    norms = 2 * width * len(student) + 2 * sum(teacher)
    return convolutions + norms + (len(student) - 1) * (2 * 2 * width + 2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert run(write_recipe(folder, EVERYTHING, {"students": STUDENTS}, name="whole")) == DONE
    return folder / "whole"


def test_heads_are_counted_apart_and_leave_no_trace_in_exports(whole: Path) -> None:
    students = report(whole)["students"]
    heads = {name: students[name]["parameters_of_heads"] for name in students}
    # The ViT's three levels are of 64 / 4, 64 and 64 channels.
    assert heads == {
        "resnet": parameters((16, 32, 64, 64), (16, 32, 64, 64)),
        "vit": parameters((16, 64, 64, 64), (16, 32, 64, 64)),
    }
    assert students["resnet"]["parameters"] == 78_042
    for name in STUDENTS:
        assert not [key for key in best(whole, name)[0] if "head" in key.replace("head.", "")]
        assert not [key for key in best(whole, name)[0] if "activation" in key]
        saved = [key for key in tensors(whole, name) if f"{name}.heads/" in key]
        assert saved
        assert not [key for key in saved if "windows" in key]


def test_the_log_shows_the_loss_with_its_warmup(whole: Path) -> None:
    """An epoch is 7 steps: the eighth is the first of epoch 1. Lines are means of two steps."""
    lines = [line["students"] for line in records(whole) if line["event"] == "train"]
    assert [line["vit"]["loss_hint"] > 0 for line in lines] == [False, False, False, True]
    for line in lines:
        for own in line.values():
            expected = own["loss_hard"] + 0.5 * own["loss_hint"]
            assert own["loss_total"] == pytest.approx(expected, rel=1e-5)
    assert lines[-1]["resnet"]["loss_hint"] < lines[0]["resnet"]["loss_hint"]


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_a_stopped_run_ends_with_the_same_bits(
    step: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, EVERYTHING, {"students": STUDENTS})
    with monkeypatch.context() as patch:
        stop_after(step, patch)
        assert run(recipe) == INTERRUPTED
    assert run(recipe) == DONE
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_student_learns_as_alone(whole: Path, tmp_path: Path) -> None:
    changes = {"students": {"vit": STUDENTS["vit"]}}
    assert run(write_recipe(tmp_path, EVERYTHING, changes)) == DONE
    assert_equal_tensors(tensors(tmp_path / "run", "vit"), tensors(whole, "vit"))


def test_a_vit_teaches_a_resnet_in_half_precision(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = {
        "students": {"resnet": STUDENTS["resnet"]},
        "train": {"precision": "bf16", "budget": "4 iterations"},
    }
    assert run(write_recipe(tmp_path, VIT_TEACHER, {"teacher": {"dtype": "bf16"}}, changes)) == DONE
    note = (
        "features of teacher test_vit, random weights after their activation: only ResNets have"
        " them before"
    )
    assert note in " ".join(capfd.readouterr().out.split())
    student = report(tmp_path / "run")["students"]["resnet"]
    assert student["stopped_at"] is None
    assert student["parameters_of_heads"] == parameters((16, 32, 64, 64), (16, 64, 64, 64))


@pytest.mark.slow
def test_a_compiled_run_gives_the_same_weights(tmp_path: Path) -> None:
    changes = {"students": STUDENTS, "train": {"budget": "2 iterations"}}
    off = ["students.vit.objective.hint.warmup_epochs=0"]
    assert run(write_recipe(tmp_path, changes, name="eager"), *off) == DONE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.Module,
            "compile",
            lambda self, **_: setattr(
                self, "_compiled_call_impl", torch.compile(self._call_impl, backend="eager")
            ),
        )
        assert run(write_recipe(tmp_path, changes, {"train": {"compile": True}}), *off) == DONE
    for name in STUDENTS:
        one, two = (tensors(tmp_path / folder, name) for folder in ("eager", "run"))
        assert_equal_tensors(one, two)


def test_the_references_differ_in_the_students_features(tmp_path: Path) -> None:
    ends = []
    for reference in ("paper_code", "original"):
        hint = {**HINT, "reference": reference}
        one = {
            "resnet": {**STUDENTS["resnet"], "objective": {"hard": {"loss": "ce"}, "hint": hint}}
        }
        changes = {"students": one, "train": {"budget": "1 iterations"}}
        assert run(write_recipe(tmp_path, changes, name=reference)) == DONE
        (line,) = (line for line in records(tmp_path / reference) if line["event"] == "train")
        ends.append(line["students"]["resnet"])
    assert ends[0]["loss_hard"] == ends[1]["loss_hard"]
    assert ends[0]["loss_hint"] != ends[1]["loss_hint"]


KEY = "students.resnet.objective.hint"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [f"{KEY}.student_stages=[1,4]", f"{KEY}.teacher_stages=[1,3]"],
            rf"{KEY}.student_stages: 4, and {KEY[:15]}.model cifar_resnet8 has stages 0 to 3",
        ),
        (
            [f"{KEY}.student_stages=[1,3]", f"{KEY}.teacher_stages=[3,1]"],
            rf"{KEY}.teacher_stages: 3, 1 must ascend, and teacher cifar_resnet14",
        ),
        (
            [f"{KEY}.student_stages=[1,2,3]", f"{KEY}.teacher_stages=[1,2]"],
            rf"{KEY}: .*student_stages names 3 maps and teacher_stages 2: a level",
        ),
        ([f"{KEY}.student_stages=[1,2]"], rf"{KEY}: .*teacher_stages is missing: name the maps of"),
        ([f"{KEY}.student_stages=[]"], rf"{KEY}.student_stages"),
        ([f"{KEY}.warmup_epochs=-1"], rf"{KEY}.warmup_epochs"),
        (
            [f"{KEY}.warmup_epochs=2", "train.budget=2 epochs"],
            rf"{KEY}.warmup_epochs: 2, and training has 2 epochs, .* set it to 0, or train longer",
        ),
        (
            ["students.vit.model_args={patch_size: 4, embed_dim: 66, num_heads: 3}"],
            r"students.vit.objective.hint.student_stages: students.vit.model test_vit has 66"
            r" channels, which do not divide into the 16 pixels of the level of stage 0",
        ),
        (["students.resnet.grad_checkpointing=true"], r"cifar_resnet8 has BatchNorm"),
    ],
)
def test_what_cannot_be_is_refused_by_check_and_by_train(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, {"students": STUDENTS})
    with pytest.raises(InputError, match=message):
        check_recipe(load_recipe(recipe, overrides))
    with pytest.raises(InputError, match=message):
        run(recipe, *overrides)
    assert not (tmp_path / "run").exists()


def test_a_warmup_in_epochs_under_a_budget_in_iterations(tmp_path: Path) -> None:
    """120 images are 7 steps an epoch; without the data, an epoch has at least one."""
    recipe = write_recipe(tmp_path, {"students": STUDENTS})
    short = "train.budget=7 iterations"
    key = "students.vit.objective.hint.warmup_epochs"
    with pytest.raises(InputError, match=f"{key}: 1, and training has 1 epochs"):
        check_recipe(load_recipe(recipe, [short]))
    with pytest.raises(InputError, match=f"{key}: 1, and training has 1 epochs"):
        run(recipe, short, "teacher.weights=nowhere.pth")  # before the teacher is read
    assert not check_recipe(load_recipe(recipe, ["train.budget=8 iterations"])).not_compared
    elsewhere = "data.train.path=nowhere"
    (note,) = check_recipe(load_recipe(recipe, [short, elsewhere])).not_compared
    assert note.startswith(f"{key}: 1 epochs, and train.budget is 7 iterations")
    with pytest.raises(InputError, match=rf"{key}: 1 epochs, at least 1 steps, is not shorter"):
        check_recipe(load_recipe(recipe, ["train.budget=1 iterations", elsewhere]))


def test_check_tells_of_features_after_an_activation(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, VIT_TEACHER, {"students": STUDENTS})
    note = r"features of {} after their activation: only ResNets have them before"
    seen = check_recipe(load_recipe(recipe)).seen
    assert note.format("teacher test_vit, random weights") in seen
    # The original reads the student's after it anyway.
    assert not [line for line in seen if "students.vit" in line and "after their" in line]
