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
ABSENT, SECTION = "(absent)", "given"
_NOTHING = frozenset({ABSENT, "null", "{}", "[]"})


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
    for key in _in_order(flat):
        values = tuple(_shown(key, each) for each in flat)
        # Where a whole section is absent, so are its keys: those that are empty say nothing more.
        if len(set(values)) > 1 and not set(values) <= _NOTHING:
            rows.append(Difference(key, values))
    return rows


def _in_order(flat: Sequence[dict[str, str]]) -> list[str]:
    """Return the keys of all recipes; one that is null in a recipe and a section in another stands
    before the keys of the section.
    """
    keys = list(dict.fromkeys(key for each in flat for key in each))
    for key in keys.copy():
        below = [other for other in keys if other.startswith(f"{key}.")]
        if below:
            keys.remove(key)
            keys.insert(keys.index(below[0]), key)
    return keys


def _shown(key: str, recipe: dict[str, str]) -> str:
    """Return the value of a key as it reads best: texts without quotes."""
    if key in recipe:
        parsed = json.loads(recipe[key])
        return parsed if isinstance(parsed, str) else recipe[key]
    return SECTION if any(other.startswith(f"{key}.") for other in recipe) else ABSENT


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
