"""Warm-ups and cool-downs: a percentage of the budget becomes a duration, and an inherited warm-up
that is too long for the budget is shortened.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from distill.errors import InputError
from distill.recipe.duration import (
    DurationValue,
    InheritedDuration,
    ShippedText,
    parse_duration,
)
from distill.recipe.explain import Tree
from distill.recipe.schema import Recipe, StudentSpec
from distill.recipe.stages import StageStudentSpec

# The length of an inherited warm-up that was too long, as a fraction of the budget. The strategies
# of the paper have 1.7 % (A2) to 6.7 % (B).
WARMUP_SHARE = 0.05
_LONG_WARMUP = 1 / 3  # a note is printed if an inherited warm-up is more than this of the budget
_SHARES = ("warmup", "cooldown")  # keys of a schedule that may be a percentage of the budget
_SHARE = re.compile(r"\s*(\d{1,2}(?:\.\d{0,9})?)\s*%\s*")
_ALL_STAGES = "the budget of all stages"
_Learns = TypeVar("_Learns", StudentSpec, StageStudentSpec)


def mark_shipped(node: Any, origin: str) -> Any:
    """Returns the tree of a file of this package, with its name in each `schedule.warmup`."""
    if isinstance(node, list):
        return [mark_shipped(each, origin) for each in node]
    if not isinstance(node, Mapping):
        return node
    marked = {key: mark_shipped(value, origin) for key, value in node.items()}
    schedule = marked.get("schedule")
    if isinstance(schedule, dict) and isinstance(schedule.get("warmup"), str):
        schedule["warmup"] = ShippedText(schedule["warmup"], origin)
    return marked


def fit_warmups(tree: Tree) -> list[str]:
    """Converts each warm-up and cool-down that is a percentage of the budget to a duration, and
    shortens inherited warm-ups, in place.

    An inherited warm-up that is not shorter than its budget becomes WARMUP_SHARE of the budget. If
    their units differ, `fit_inherited_warmups` compares them once the data is known. A warm-up that
    the user's own recipe sets is not changed; one that is too long is refused later.

    Args:
        tree: complete, with students and stages resolved.

    Returns:
        A note for each warm-up that was shortened or is long.

    Raises:
        InputError: a percentage of several stages whose budgets have different units.
    """
    changes: dict[tuple[str, str, str, str], list[str]] = {}
    advice: dict[tuple[str, str, str, str], list[str]] = {}
    for key, student, budget_key, budget in _schedules(tree):
        written = student["schedule"].get("warmup")
        for part in _SHARES:
            if (share := _share(student["schedule"].get(part))) is None:
                continue
            if budget is not None:
                _set(student, part, str(share_of(budget, share)))
            elif budget_key == _ALL_STAGES:
                raise InputError(
                    f"{key}.schedule.{part}: {student['schedule'][part]} of all stages, whose"
                    " budgets have different units: write a duration, such as '500 iterations'"
                )
        if not isinstance(written, ShippedText) or budget is None:
            continue
        warmup = _duration(written)
        if warmup is None or warmup.unit != budget.unit:
            continue
        if warmup.amount < budget.amount:
            share = warmup.amount / budget.amount
            if share > _LONG_WARMUP:
                advice.setdefault(
                    (written, written.origin, f"{budget_key}, {budget}", f"{share:.0%}"), []
                ).append(key)
            continue
        now = str(share_of(budget))
        _set(student, "warmup", now)
        at = f"{budget_key}, {budget}"
        changes.setdefault((written, written.origin, at, now), []).append(f"{key}.schedule.warmup")
    _replace_shared_shares(tree)
    return _notes_on_changes(changes) + [
        f"{', '.join(f'{key}.schedule.warmup' for key in keys)}: {written} of {origin} is {share}"
        f" of {budget}; student.schedule.warmup='...' sets another"
        for (written, origin, budget, share), keys in advice.items()
    ]


def _notes_on_changes(changes: Mapping[tuple[str, str, str, str], list[str]]) -> list[str]:
    """Returns a sentence for each (warm-up, its file, the budget, the new warm-up) and its keys."""
    return [
        f"{', '.join(keys)}: {written} of {origin} is not shorter than {budget}: shortened to"
        f" {WARMUP_SHARE:.0%} of it, {now}"
        for (written, origin, budget, now), keys in changes.items()
    ]


def _set(student: Tree, part: str, duration: str) -> None:
    # A new mapping, since other students may share the old one.
    student["schedule"] = {**student["schedule"], part: duration}


def _replace_shared_shares(tree: Tree) -> None:
    """Replaces a percentage in the run's own schedule of a student by the duration of the first
    stage, since a run with stages has no budget of its own.
    """
    stages, students = tree.get("stages"), tree.get("students")
    if not isinstance(stages, list) or not isinstance(students, Mapping):
        return
    first: dict[str, Any] = {
        key.rpartition(".")[2]: student["schedule"]
        for key, student, *_ in reversed([*_schedules(tree)])
    }
    for key, student, *_ in _schedules_of("", tree, "", None):
        for part in _SHARES:
            if _share(student["schedule"].get(part)) is not None:
                own: Any = first.get(key.rpartition(".")[2], student["schedule"])
                _set(student, part, own.get(part, student["schedule"][part]))


def budget_of(tree: Tree) -> DurationValue | None:
    """`train.budget`, if it is a valid duration."""
    train = tree.get("train")
    return _duration(train.get("budget")) if isinstance(train, Mapping) else None


def share_of(budget: DurationValue, share: float = WARMUP_SHARE) -> DurationValue:
    """A fraction of a budget, in its unit."""
    amount = share * budget.amount
    return budget._replace(
        amount=float(f"{amount:.6g}") if budget.unit == "epochs" else int(amount)
    )


def _schedules(tree: Tree) -> Iterator[tuple[str, Tree, str, DurationValue | None]]:
    """Yields for each student in each stage: its key, the student, the key of the budget that its
    schedule spans, and that budget. Invalid parts are left out.
    """
    stages = tree.get("stages")
    if not stages:
        yield from _schedules_of("", tree, "train.budget", budget_of(tree))
        return
    if not isinstance(stages, list):
        return
    budgets = [
        _duration(stage.get("budget")) if isinstance(stage, Mapping) else None for stage in stages
    ]
    known = [budget for budget in budgets if budget is not None]
    same_unit = len(known) == len(budgets) and len({budget.unit for budget in known}) == 1
    total = known[0]._replace(amount=sum(budget.amount for budget in known)) if same_unit else None
    for stage, budget in zip(stages, budgets, strict=True):
        if isinstance(stage, Mapping):
            prefix = f"stages.{stage.get('name')}."
            for key, student, budget_key, own in _schedules_of(
                prefix, stage, f"{prefix}budget", budget
            ):
                if student["schedule"].get("over") == "run":
                    yield key, student, _ALL_STAGES, total
                else:
                    yield key, student, budget_key, own


def _schedules_of(
    prefix: str, owner: Mapping[str, Any], budget_key: str, budget: DurationValue | None
) -> Iterator[tuple[str, Tree, str, DurationValue | None]]:
    students = owner.get("students")
    for name, student in students.items() if isinstance(students, Mapping) else ():
        if isinstance(student, dict) and isinstance(student.get("schedule"), Mapping):
            yield f"{prefix}students.{name}", student, budget_key, budget


def _share(value: Any) -> float | None:
    """The fraction that a percentage such as "5%" means; None for any other value."""
    match = _SHARE.fullmatch(value) if isinstance(value, str) else None
    return None if match is None else float(match[1]) / 100


def _duration(value: Any) -> DurationValue | None:
    try:
        return parse_duration(value)
    except ValueError:
        return None


def fit_inherited_warmups(
    recipe: Recipe, num_steps: Sequence[int], steps_per_epoch: Sequence[int]
) -> tuple[Recipe, list[str]]:
    """Shortens inherited warm-ups that are not shorter than their budget in steps.

    `fit_warmups` does this for warm-ups and budgets of the same unit; the others can only be
    compared once the data is known. A warm-up becomes WARMUP_SHARE of the budget.

    Args:
        num_steps: the optimizer steps of each stage.
        steps_per_epoch: the steps in an epoch of each stage's data.

    Returns:
        The recipe with its final warm-ups, and a note for each one that was shortened.
    """
    changes: dict[tuple[str, str, str, str], list[str]] = {}

    def fitted(students: Mapping[str, _Learns], index: int) -> dict[str, _Learns]:
        prefix, budget = recipe.stage_keys[index], recipe.at_stage(index).train.budget
        assert budget
        result = {}
        for name, student in students.items():
            schedule = student.schedule
            of_run = schedule.over == "run" and len(num_steps) > 1
            total = sum(num_steps) if of_run else num_steps[index]
            warmup, result[name] = schedule.warmup, student
            steps = warmup.steps(
                steps_per_epoch=steps_per_epoch[0 if of_run else index],
                batch_size_global=recipe.train.batch_size_global,
            )
            if not isinstance(warmup, InheritedDuration) or steps < total:
                continue
            whole = DurationValue(total, "iterations") if of_run else budget
            now = share_of(whole)
            key = _ALL_STAGES if of_run else f"{prefix}budget" if prefix else "train.budget"
            change = (f"{warmup} ({steps} steps)", warmup.origin, f"{key}, {whole}", str(now))
            changes.setdefault(change, []).append(f"{prefix}students.{name}.schedule.warmup")
            result[name] = student.model_copy(
                update={"schedule": schedule.model_copy(update={"warmup": now})}
            )
        return result

    if not recipe.stages:
        students = fitted(recipe.students, 0)
        return recipe.model_copy(update={"students": students}), _notes_on_changes(changes)
    stages = tuple(
        stage.model_copy(update={"students": fitted(stage.students, index)})
        for index, stage in enumerate(recipe.stages)
    )
    return recipe.model_copy(update={"stages": stages}), _notes_on_changes(changes)
