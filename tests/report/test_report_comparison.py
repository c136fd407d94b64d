"""The table of what differs between recipes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.recipe import dump_recipe, load_recipe
from distill.report.comparison import differences
from distill.report.records import RunRecords, read_run


@pytest.fixture
def recorded(tiny_run: Path, tiny_recipe: Callable[..., Path]) -> Callable[..., RunRecords]:
    """recorded({"train": {...}}, ...): a run of the recipe with these changes."""

    def make(*changes: dict[str, Any]) -> RunRecords:
        recipe = load_recipe(tiny_recipe(*changes))
        return replace(read_run(tiny_run), recipe=recipe, recipe_text=dump_recipe(recipe))

    return make


def table(*runs: RunRecords) -> dict[str, tuple[str, ...]]:
    return {row.key: row.values for row in differences(runs)}


def test_only_keys_that_differ_are_rows(recorded: Callable[..., RunRecords]) -> None:
    runs = [
        recorded(),
        recorded({"student": {"optimizer": {"lr": 0.1}}, "description": "other"}),
        recorded({"train": {"budget": "1 epochs"}}),
    ]
    assert table(*runs) == {
        "students.*.optimizer.lr": ("0.05", "0.1", "0.05"),
        "train.budget": ("8 iterations", "8 iterations", "1 epochs"),
    }


def test_single_students_are_compared_whatever_their_names(
    recorded: Callable[..., RunRecords],
) -> None:
    kd = {"objective": {"hard": {"loss": "ce"}, "soft": {"loss": "kl", "temperature": 3.0}}}
    found = table(recorded(), recorded({"students": {"kd": kd}}))
    assert found["students.*.objective.soft"] == ("null", "given")
    assert found["students.*.objective.soft.temperature"] == ("(absent)", "3.0")
    keys = list(found)
    assert keys.index("students.*.objective.soft") < keys.index(
        "students.*.objective.soft.temperature"
    )
    assert all(key.startswith("students.*.objective.soft") for key in keys)
    assert "students.*.objective.soft.min_confidence" not in found, "it is null"


def test_a_student_of_some_runs_is_one_row(recorded: Callable[..., RunRecords]) -> None:
    both = recorded({"students": {"alone": {}, "twin": {"seed": 3}}})
    assert table(recorded(), both) == {"students.twin": ("(absent)", "present")}


def test_stages_are_compared_by_name(recorded: Callable[..., RunRecords]) -> None:
    def staged(lr: float) -> dict[str, Any]:
        second = {"name": "b", "budget": "2 iterations", "student": {"optimizer": {"lr": lr}}}
        return {
            "train": {"budget": None},
            "stages": [{"name": "a", "budget": "1 iterations"}, second],
        }

    found = table(recorded(staged(0.1)), recorded(staged(0.2)))
    assert found == {"stages.b.students.*.optimizer.lr": ("0.1", "0.2")}
