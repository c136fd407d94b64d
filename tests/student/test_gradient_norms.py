"""log.gradient_norms: the norms are those of the gradients, and training does not change."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import EVERYTHING, assert_equal_tensors, records, run, tensors, write_recipe

from distill.recipe import load_recipe
from distill.training.build import build_models
from distill.training.loop import DONE
from distill.training.plan import make_plan

NORMS = {"log": {"gradient_norms": True}}
HARD = {"loss": "ce", "weight": 0.25}
SOFT = {"loss": "kl", "weight": 3.0, "temperature": 2.0}
HINT = {"loss": "fitnet", "weight": 0.5}
PLAIN_SGD = {"name": "momentum", "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0}
# The same model, weights and batch: the total of one is a term of another.
ALIKE: dict[str, Any] = {
    "student": {"optimizer": PLAIN_SGD},
    "students": {
        "both": {"objective": {"hard": HARD, "soft": SOFT}},
        "hard": {"objective": {"hard": HARD}},
        "soft": {"objective": {"hard": None, "soft": SOFT}},
        "hint": {"objective": {"hard": HARD, "hint": HINT}},
        "clipped": {
            "objective": {"hard": HARD, "soft": SOFT},
            "optimizer": {**PLAIN_SGD, "clip_grad_norm": 0.01},
        },
    },
    "train": {"budget": "1 iterations", "micro_batch_size": None},
    **NORMS,
}


def norms(output: Path) -> dict[str, dict[str, float]]:
    """The norms of the last log entry, by student and name."""
    last = [record for record in records(output) if record["event"] == "train"][-1]
    return {
        name: {
            key.removeprefix("gradient_norm_"): value
            for key, value in values.items()
            if key.startswith("gradient_norm_")
        }
        for name, values in last["students"].items()
    }


def movement(recipe: Path, output: Path, student: str) -> float:
    """How far the first step moved the weights, in units of the learning rate."""
    start = dict(build_models(make_plan(load_recipe(recipe))).nets[student].named_parameters())
    end = tensors(output, student)
    moved = [(start[name].detach() - end[f"{student}.model/{name}"]).norm() for name in start]
    return float(torch.stack(moved).norm()) / PLAIN_SGD["lr"]


def test_norms_are_those_of_the_gradients_that_move_the_weights(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, ALIKE)
    assert run(recipe) == DONE
    found = norms(tmp_path / "run")
    for name in ("both", "hard", "soft"):
        moved = movement(recipe, tmp_path / "run", name)
        assert found[name]["total"] == pytest.approx(moved, rel=1e-3), name
    both = found["both"]
    assert list(both) == ["total", "hard", "soft"]
    assert both["hard"] == pytest.approx(found["hard"]["total"], rel=1e-4)
    assert both["soft"] == pytest.approx(found["soft"]["total"], rel=1e-4)
    # Of two gradients the norm of the sum is at most the sum, and at least the difference.
    assert abs(both["soft"] - both["hard"]) <= both["total"] <= both["soft"] + both["hard"]
    assert found["hint"]["hard"] == pytest.approx(both["hard"], rel=1e-4)
    assert found["hint"]["hint"] > 0
    clipped = found["clipped"]
    assert clipped == pytest.approx(both, rel=1e-5), "the norm before clipping"
    assert movement(recipe, tmp_path / "run", "clipped") == pytest.approx(0.01, rel=1e-3)


def test_terms_are_measured_on_the_first_micro_batch(tmp_path: Path) -> None:
    students = {"students": {"hard": {"objective": {"hard": HARD}}}}
    two = write_recipe(tmp_path, ALIKE, students, {"train": {"micro_batch_size": 8}}, name="two")
    one = write_recipe(tmp_path, ALIKE, students, {"train": {"batch_size_global": 8}}, name="one")
    assert run(two) == DONE
    assert run(one) == DONE
    alone, first = norms(tmp_path / "one")["hard"], norms(tmp_path / "two")["hard"]
    assert first["hard"] == pytest.approx(alone["total"], rel=1e-4)
    assert first["total"] != pytest.approx(alone["total"], rel=1e-2), "of both micro-batches"


def test_training_stays_the_same_bit_for_bit(tmp_path: Path) -> None:
    hints = {"students": {**EVERYTHING["students"], "hint": ALIKE["students"]["hint"]}}
    short = {"train": {"budget": "3 iterations"}}
    with_norms = write_recipe(tmp_path, EVERYTHING, hints, short, NORMS, name="with")
    without = write_recipe(tmp_path, EVERYTHING, hints, short, name="without")
    assert run(with_norms) == DONE
    assert run(without) == DONE
    assert_equal_tensors(tensors(tmp_path / "with"), tensors(tmp_path / "without"))
    assert all(each["total"] > 0 for each in norms(tmp_path / "with").values())
    lines = records(tmp_path / "with")
    assert lines != records(tmp_path / "without")
    for line in lines:
        for values in line.get("students", {}).values():
            for key in [key for key in values if key.startswith("gradient_norm_")]:
                del values[key]
    assert lines == records(tmp_path / "without")


def test_under_fp16_norms_are_of_the_unscaled_gradients(tmp_path: Path) -> None:
    for precision in ("fp32", "fp16"):
        recipe = write_recipe(tmp_path, ALIKE, {"train": {"precision": precision}}, name=precision)
        assert run(recipe) == DONE
    full, half = norms(tmp_path / "fp32"), norms(tmp_path / "fp16")
    for name in ("both", "hard"):
        assert half[name] == pytest.approx(full[name], rel=0.05), name
