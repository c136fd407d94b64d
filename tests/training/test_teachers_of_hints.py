"""Hints of runs with several teachers: each reads the teacher that it names."""

from pathlib import Path
from typing import Any

from tiny import IMAGE_SIZE, assert_equal_tensors, run, tensors, write_recipe

from distill.training.loop import DONE

BIG = {"model": "cifar_resnet14", "weights": "random", "image_size": IMAGE_SIZE}
VIT = {
    "model": "test_vit",
    "weights": "random",
    "image_size": IMAGE_SIZE,
    "model_args": {"patch_size": 4},
}
HINTS: dict[str, Any] = {
    "crd": {"loss": "crd", "negatives": 64},
    # Maps before an activation, of a teacher that other students read behind it.
    "reviewkd": {"loss": "reviewkd", "warmup_epochs": 0},
    "feature": {"loss": "feature", "level": "dense"},
}


def test_a_hint_is_that_of_its_teacher_alone(tmp_path: Path) -> None:
    """Bit for bit, beside students of the other teacher."""
    students = {name: {"objective": {"hint": hint}} for name, hint in HINTS.items()}
    named = {
        f"{name}-{teacher}": {"objective": {"hint": hint, "hint_teacher": teacher}}
        for name, hint in HINTS.items()
        for teacher in ("big", "vit")
    }
    several = {"teacher": None, "teachers": {"vit": VIT, "big": BIG}, "students": named}
    assert run(write_recipe(tmp_path, several, name="several")) == DONE
    for teacher, spec in (("big", BIG), ("vit", VIT)):
        alone = {"teacher": None}, {"teacher": spec, "students": students}
        assert run(write_recipe(tmp_path, *alone, name=teacher)) == DONE
        for name in HINTS:
            ours = tensors(tmp_path / "several", f"{name}-{teacher}")
            theirs = tensors(tmp_path / teacher, name)
            assert_equal_tensors(
                {key.removeprefix(f"{name}-{teacher}."): each for key, each in ours.items()},
                {key.removeprefix(f"{name}."): each for key, each in theirs.items()},
            )


def test_a_bank_begins_again_with_another_teacher(tmp_path: Path) -> None:
    """It remembers embeddings of the teacher before, here a model of the same width."""
    seen = {}
    for teacher in ("big", "other"):
        then = {"student": {"objective": {"hint_teacher": teacher}}}
        stages = [{"name": "first"}, {"name": "then", **then}]
        changes = {
            "teacher": None,
            "teachers": {"big": BIG, "other": BIG},
            "train": {"budget": None},
            "students": {"crd": {"objective": {"hint": HINTS["crd"], "hint_teacher": "big"}}},
            "stages": [{"budget": "2 iterations", **stage} for stage in stages],
        }
        assert run(write_recipe(tmp_path, changes, name=teacher)) == DONE
        labels = tensors(tmp_path / teacher)["crd.heads/bank.labels"]
        seen[teacher] = int((labels >= 0).sum())
    assert seen["other"] == 32 < seen["big"]
