"""Fleets: cells that agree in all but the student are the students of one run, behind one teacher
forward. Each ends with the weights that it would have alone.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

from distill.recipe import Recipe
from distill.study.cells import Cell, with_students
from distill.training.trunk import trunk_fingerprint

_T = TypeVar("_T")
_LONGEST_NAME = 80
_WHERE = {"name", "description", "output", "students"}


@dataclass(frozen=True)
class Run:
    """A run of a study.

    Attributes:
        name: of its folder, below that of the study.
        cells: the key of the cell that each student is.
        trunk: the run from whose trunk this one starts, if that is there.
        recipe: None of a run that was planned before, whose recipe is in its file.
    """

    name: str
    cells: Mapping[str, str]
    trunk: str | None = None
    recipe: Recipe | None = field(default=None, repr=False)


def make_runs(
    cells: Sequence[Cell],
    every: Sequence[Cell],
    study: str,
    students_per_run: int | None,
    taken: Iterable[str] = (),
) -> list[Run]:
    """Returns the runs that train some cells.

    Args:
        every: all cells of the study, among which a run's name distinguishes it.
        study: the name of the study, with which the names of its runs begin in their recipes.
        students_per_run: the largest number of students in a run; None: no limit.
        taken: names that other runs of the study have.
    """
    together: dict[str, list[Cell]] = {}
    for cell in cells:
        together.setdefault(_company(cell.recipe), []).append(cell)
    used, runs = set(taken), []
    for company in together.values():
        members = list(zip(_student_names(company), company, strict=True))
        pieces = _pieces(members, students_per_run)
        for number, piece in enumerate(pieces, 1):
            name = _run_name(company, every)
            name = _free(name if len(pieces) == 1 else f"{name}-{number}", used)
            used.add(name)
            recipe = with_students(
                company[0].recipe, {own: (cell.recipe, cell.student) for own, cell in piece}
            ).model_copy(
                update={
                    "name": f"{study}/{name}",
                    "description": _described([cell for _, cell in piece]),
                }
            )
            runs.append(Run(name, {own: cell.key for own, cell in piece}, recipe=recipe))
    return with_trunks(runs)


def _company(recipe: Recipe) -> str:
    """Returns what students must have in common to learn in one run."""
    excluded = {**dict.fromkeys(_WHERE, True), "stages": {"__all__": {"students"}}}
    return json.dumps(recipe.model_dump(mode="json", exclude=excluded), sort_keys=True)  # type: ignore[arg-type]


def _pieces(members: list[_T], most: int | None) -> list[list[_T]]:
    """Returns a fleet in pieces of at most `most` students, as even as possible."""
    count = 1 if most is None else -(-len(members) // most)
    ends = [len(members) * i // count for i in range(count + 1)]
    return [members[low:high] for low, high in pairwise(ends)]


def _varying(cells: Sequence[Cell]) -> list[str]:
    """Returns the axes whose label is not the same in all cells."""
    axes = [cell.combination.axes for cell in cells]
    return [axis for axis in axes[0] if len({each[axis] for each in axes}) > 1]


def slug(text: str) -> str:
    """Returns a label as a part of a name: letters, digits, - and _; p stands for the point."""
    text = re.sub(r"(?<=\d)\.(?=\d)", "p", text)
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-_")


def _run_name(fleet: Sequence[Cell], cells: Sequence[Cell]) -> str:
    """Returns a name from the axes that distinguish a fleet from the others."""
    inside = _varying(fleet) if len(fleet) > 1 else []
    axes = [axis for axis in _varying(cells) if axis not in inside]
    labels = fleet[0].combination.axes
    parts = [
        f"{slug(axis.rpartition('.')[2])}{slug(labels[axis])}"
        if labels[axis][:1].isdigit()
        else slug(labels[axis])
        for axis in axes
    ]
    return "-".join(part for part in parts if part)[:_LONGEST_NAME].strip("-_") or "all"


def _student_names(fleet: Sequence[Cell]) -> list[str]:
    if len(fleet) == 1:
        return [fleet[0].student]
    axes = _varying(fleet)
    used: set[str] = {"teacher"}  # belongs to the teacher
    names = []
    for cell in fleet:
        parts = [slug(cell.combination.axes[axis]) for axis in axes]
        name = "-".join(part for part in parts if part)[:_LONGEST_NAME].strip("-_")
        names.append(_free(name or cell.student, used))
        used.add(names[-1])
    return names


def _free(name: str, used: Iterable[str]) -> str:
    number, free = 1, name
    while free in used:
        number += 1
        free = f"{name}-{number}"
    return free


def _described(fleet: Sequence[Cell]) -> str:
    inside = _varying(fleet)
    fixed = [f"{a} {label}" for a, label in fleet[0].combination.axes.items() if a not in inside]
    students = f"{len(fleet)} students" if len(fleet) > 1 else "one student"
    return ", ".join([students, *fixed])


def with_trunks(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs, each with the run of the next shorter budget whose trunk it may start
    from, and that one before it.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        assert run.recipe
        key = trunk_fingerprint(run.recipe) if _may_share(run.recipe) else run.name
        groups.setdefault(key, []).append(run)
    found: dict[str, Run] = {}
    for members in groups.values():
        ordered = sorted(members, key=_budget)
        for before, run in zip([None, *ordered], ordered, strict=False):
            trunk = before.name if before and _unit(before) == _unit(run) else None
            found[run.name] = Run(run.name, run.cells, trunk, run.recipe)
    first = {run.name: place for place, run in enumerate(runs)}
    in_order = sorted(
        groups.values(), key=lambda members: min(first[each.name] for each in members)
    )
    return [found[run.name] for members in in_order for run in sorted(members, key=_budget)]


def _may_share(recipe: Recipe) -> bool:
    """Returns whether no learning rate depends on the budget before its cool-down."""
    schedules = [student.schedule for student in recipe.students.values()]
    return not recipe.stages and all(
        each.name == "constant" and each.cooldown.amount for each in schedules
    )


def _unit(run: Run) -> str:
    assert run.recipe
    return run.recipe.train.budget.unit if run.recipe.train.budget else ""


def _budget(run: Run) -> tuple[str, float]:
    assert run.recipe
    budget = run.recipe.train.budget
    return (budget.unit, budget.amount) if budget else ("", 0.0)


def jobs_of(runs: Sequence[Run]) -> list[list[Run]]:
    """Returns the runs in jobs: those that share a trunk are one job, one after the other."""
    jobs: list[list[Run]] = []
    for run in runs:
        job = next((each for each in jobs if run.trunk in [own.name for own in each]), None)
        if job is None or run.trunk is None:
            jobs.append([run])
        else:
            job.append(run)
    return jobs
