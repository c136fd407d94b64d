"""What differs between the recipes of several runs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from distill.checkpoint.differences import flattened
from distill.report.records import RunRecords

# They name a run and where it is saved.
_LEFT_OUT = frozenset({"name", "description", "output", "resume"})
ABSENT = "(absent)"


@dataclass(frozen=True)
class Difference:
    """A key of recipes with its value in each run."""

    key: str
    values: tuple[str, ...]


def differences(runs: Sequence[RunRecords]) -> list[Difference]:
    """Return the keys in which the recipes of runs differ, in the order of the recipes.

    A student that only some runs have is one row. Where each run has one student, these are
    compared whatever their names, as `students.*`.
    """
    trees: list[dict[str, Any]] = [yaml.safe_load(run.recipe_text) for run in runs]
    if all(len(tree["students"]) == 1 for tree in trees):
        for owner in _owners(trees):
            owner["students"] = dict.fromkeys(("*",), *owner["students"].values())
    rows = _students_of_some(trees)
    flat = [flattened(tree, _LEFT_OUT) for tree in trees]
    for key in dict.fromkeys(key for each in flat for key in each):
        values = tuple(each.get(key) for each in flat)
        if len(set(values)) > 1:
            rows.append(Difference(key, tuple(map(_shown, values))))
    return rows


def _shown(value: str | None) -> str:
    """Return a value of JSON as it reads best: texts without quotes."""
    if value is None:
        return ABSENT
    parsed = json.loads(value)
    return parsed if isinstance(parsed, str) else value


def _owners(trees: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the sections that hold students: the recipes and their stages."""
    return [owner for tree in trees for owner in (tree, *(tree.get("stages") or ()))]


def _students_of_some(trees: Sequence[dict[str, Any]]) -> list[Difference]:
    """Return a row for each student that only some recipes have, and remove it from them."""
    rows = []
    for name in dict.fromkeys(name for tree in trees for name in tree["students"]):
        present = [name in tree["students"] for tree in trees]
        if not all(present):
            values = tuple("present" if here else ABSENT for here in present)
            rows.append(Difference(f"students.{name}", values))
            for owner in _owners(trees):
                owner["students"].pop(name, None)
    return rows
