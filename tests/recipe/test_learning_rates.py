"""Learning rates are scaled with the batch size, and the user gets a note."""

import math
from pathlib import Path

import pytest

from distill.recipe import dump_recipe, load_recipe, read_recipe, recipe_fingerprint
from distill.recipe.load import fingerprint_today
from distill.recipe.stages import StageSpec


def test_a_rate_at_its_own_batch_needs_no_note(on_a2: Path) -> None:
    scaling = "student.optimizer.lr_scaling={rule: linear, batch_size: 256}"
    recipe, notes = read_recipe(on_a2, ["train.batch_size_global=256", scaling])
    assert notes == []
    assert recipe.at_stage(0).students["one"].optimizer.lr == 5e-3


@pytest.mark.parametrize(
    ("rule", "lr"),
    [("linear", 5e-3 * 256 / 2048), ("sqrt", 5e-3 * math.sqrt(256 / 2048)), (None, 5e-3)],
)
def test_lr_follows_the_batch(rule: str | None, lr: float, on_a2: Path) -> None:
    scaling = [f"student.optimizer.lr_scaling={{rule: {rule}, batch_size: 2048}}"] if rule else []
    recipe, notes = read_recipe(on_a2, ["train.batch_size_global=256", *scaling])
    assert recipe.at_stage(0).students["one"].optimizer.lr == pytest.approx(lr, rel=1e-12)
    assert recipe.at_stage(0).students["one"].optimizer.lr_scaling is None
    assert recipe.students["one"].optimizer.lr == 5e-3, "the recipe keeps what was written"
    (note,) = notes
    assert note.startswith("students.one.optimizer.lr: ")
    assert (
        f"= {lr:g}" in note
        if rule
        else "lr_scaling='{rule: linear, batch_size: 2048}' makes it 0.000625" in note
    )


def test_a_batch_of_the_strategy_needs_no_note(on_a2: Path) -> None:
    assert read_recipe(on_a2)[1] == []
    assert read_recipe(on_a2, ["train.batch_size_global=256", "student.optimizer.lr=1e-3"])[1] == []


def test_each_stage_scales_its_own_lr(on_a2: Path) -> None:
    stages = (
        "stages=[{name: a, budget: 20 epochs}, {name: b, budget: 20 epochs, student: {optimizer:"
        " {lr: 1e-3}}}]"
    )
    scaling = "student.optimizer.lr_scaling={rule: linear, batch_size: 1024}"
    recipe, notes = read_recipe(on_a2, ["train.budget=null", stages, scaling])
    assert [recipe.at_stage(index).students["one"].optimizer.lr for index in range(2)] == [
        1e-2,
        2e-3,
    ]
    assert [note.split(":")[0] for note in notes] == [
        "stages.a.students.one.optimizer.lr",
        "stages.b.students.one.optimizer.lr",
    ]
    # Another rule that comes to the same rate is no change of a carried optimizer.
    same = {"rule": "sqrt", "batch_size": 2048}
    override = f"stages.b.student.optimizer={{lr: 2e-3, lr_scaling: {same}}}"
    assert isinstance(
        load_recipe(on_a2, ["train.budget=null", stages, scaling, override]).stages[1], StageSpec
    )


def test_a_saved_recipe_without_the_key_continues(on_a2: Path) -> None:
    recipe = load_recipe(on_a2)
    text = dump_recipe(recipe)
    before = "\n".join(line for line in text.splitlines() if "lr_scaling" not in line)
    assert before != text
    assert fingerprint_today(before) == recipe_fingerprint(recipe)
