"""From what files and overrides say to a complete tree: shared students and stages laid under each,
inherited warm-ups that fit.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from distill.errors import InputError, did_you_mean
from distill.recipe.duration import DurationValue, parse_duration
from distill.recipe.explain import DISCRIMINATORS
from distill.recipe.stages import STAGE_DATA, STAGE_STUDENT

Tree = dict[str, Any]

# What an inherited warm-up becomes that is not shorter than the budget. Strategies of the paper
# have 1.7 % (A2) to 6.7 % (B).
WARMUP_SHARE = 0.05
_LONG_WARMUP = 1 / 3  # of the budget: more than this is said
_SHARE = re.compile(r"\s*(\d{1,2}(?:\.\d{0,9})?)\s*%\s*")
_ALL_STAGES = "the budget of all stages"


class ShippedText(str):
    """A text that a recipe file of this package wrote, and `origin`, the file: no user asked for
    it.
    """

    origin: str


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """`over` laid on `base`: mappings merge key by key, all else replaces; another `kind` or `loss`
    replaces its mapping whole.
    """
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and not _another_kind(old, value)
        ):
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def _another_kind(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return any(key in new and key in old and new[key] != old[key] for key in DISCRIMINATORS)


# ---- students and stages -------------------------------------------------------------------------


def resolve_students(tree: Tree) -> Tree:
    """Lay each of `students` over the shared `student`, drop the shared one, and leave out each
    student that is None.

    Without `students`, the shared one is the only student, and its name is "student".

    Raises:
        InputError: no mappings, or None for every student.
    """
    shared = tree.get("student", {})
    students = tree.get("students", {"student": {}} if shared else {})
    if not isinstance(shared, Mapping) or not isinstance(students, Mapping):
        raise InputError(
            "student and students are mappings: student holds what all share, students one mapping"
            " a name"
        )
    left_out = [name for name, own in students.items() if own is None]
    if left_out and len(left_out) == len(students):
        raise InputError(
            f"students.{left_out[-1]}: null leaves a student out, and no other is left: keep one,"
            f" or write students.{left_out[-1]}={{}} for a student that has what `student` says and"
            " no more"
        )
    resolved = {
        name: merge(shared, own) if isinstance(own, Mapping) else own
        for name, own in students.items()
        if own is not None
    }
    whole = {**{k: v for k, v in tree.items() if k != "student"}, "students": resolved}
    if left_out and isinstance(tree.get("stages"), list):
        whole["stages"] = [_without_students(stage, left_out) for stage in tree["stages"]]
    return whole


def _without_students(stage: Any, names: list[Any]) -> Any:
    """A stage that says nothing of some students."""
    if not isinstance(stage, Mapping) or not isinstance(stage.get("students"), Mapping):
        return stage
    return {
        **stage,
        "students": {name: own for name, own in stage["students"].items() if name not in names},
    }


def resolve_stages(tree: Tree) -> Tree:
    """Lay what a stage says over the run's data and students, so that each stage is complete."""
    stages, students, data = tree.get("stages"), tree.get("students"), tree.get("data")
    if (
        not isinstance(stages, list)
        or not isinstance(students, Mapping)
        or not isinstance(data, Mapping)
    ):
        return tree
    return {**tree, "stages": [_resolved(stage, students, data) for stage in stages]}


def _resolved(stage: Any, students: Mapping[str, Any], data: Mapping[str, Any]) -> Any:
    if not isinstance(stage, Mapping):
        return stage
    shared, own, own_data = (
        stage.get("student") or {},
        stage.get("students") or {},
        stage.get("data") or {},
    )
    if not all(isinstance(part, Mapping) for part in (shared, own, own_data)):
        return stage  # refused by the schema
    base = {key: data[key] for key in STAGE_DATA if key in data}
    if isinstance(own_data.get("train"), Mapping) and "kind" in own_data["train"]:
        # Another data set: what the run says of its own, and which part of it to take, says nothing
        # here.
        base = {
            key: value
            for key, value in base.items()
            if key not in ("train", "fraction", "keep_classes")
        }
    for name, said in own.items():
        key = f"stages.{stage.get('name')}.students.{name}"
        if name not in students:
            raise InputError(
                f"{key}: no such student{did_you_mean(str(name), map(str, students))}; there are"
                f" {', '.join(map(str, students))}"
            )
        if not isinstance(said, Mapping):
            raise InputError(
                f"{key}: should be a mapping of keys, not {said!r}: every student takes part in"
                " every stage"
            )
    complete = {}
    for name, student in students.items():
        if isinstance(student, Mapping):
            learning = {key: student[key] for key in STAGE_STUDENT if key in student}
            complete[name] = merge(merge(learning, shared), own.get(name, {}))
    return {
        **{key: value for key, value in stage.items() if key != "student"},
        "data": merge(base, own_data),
        "students": complete,
    }


# ---- inherited warm-ups --------------------------------------------------------------------------


def mark_shipped(node: Any, origin: str) -> Any:
    """A tree of a shipped file in which each `schedule.warmup` says where it comes from."""
    if isinstance(node, list):
        return [mark_shipped(each, origin) for each in node]
    if not isinstance(node, Mapping):
        return node
    marked = {key: mark_shipped(value, origin) for key, value in node.items()}
    schedule = marked.get("schedule")
    if isinstance(schedule, dict) and isinstance(schedule.get("warmup"), str):
        schedule["warmup"] = ShippedText(schedule["warmup"])
        schedule["warmup"].origin = origin
    return marked


def fit_warmups(tree: Tree) -> list[str]:
    """Turn each warm-up that is a share of the budget into a duration, in place, and shorten what
    does not fit.

    An inherited warm-up that is not shorter than its budget becomes WARMUP_SHARE of the budget.
    What the user wrote stays, and is refused where the budget is known.

    Args:
        tree: complete, with students and stages resolved.

    Returns:
        A note for each warm-up that was shortened or is long.

    Raises:
        InputError: a share of stages whose budgets are in different units.
    """
    changes: dict[tuple[str, str, str, str], list[str]] = {}
    advice: dict[tuple[str, str, str, str], list[str]] = {}
    for key, student, budget_key, budget in _schedules(tree):
        written = student["schedule"].get("warmup")
        if (share := _share(written)) is not None:
            if budget is not None:
                _set_warmup(student, str(share_of(budget, share)))
            elif budget_key == _ALL_STAGES:
                raise InputError(
                    f"{key}.schedule.warmup: {written} of all stages, whose budgets are not"
                    " durations of one unit: write a duration, such as '500 iterations'"
                )
            continue
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
        _set_warmup(student, now)
        at = f"{budget_key}, {budget}"
        changes.setdefault((written, written.origin, at, now), []).append(f"{key}.schedule.warmup")
    _replace_shared_shares(tree)
    return [
        f"{', '.join(keys)}: {written} of {origin} is not shorter than {budget}: shortened to"
        f" {WARMUP_SHARE:.0%} of it, {now}"
        for (written, origin, budget, now), keys in changes.items()
    ] + [
        f"{', '.join(f'{key}.schedule.warmup' for key in keys)}: {written} of {origin} is {share}"
        f" of {budget}; student.schedule.warmup='...' sets another"
        for (written, origin, budget, share), keys in advice.items()
    ]


def _set_warmup(student: Tree, warmup: str) -> None:
    student["schedule"] = {
        **student["schedule"],
        "warmup": warmup,
    }  # the schedule itself may be that of other students too


def _replace_shared_shares(tree: Tree) -> None:
    """A run in stages has no budget of its own: a share in a student's own schedule becomes what
    the first stage has.
    """
    stages, students = tree.get("stages"), tree.get("students")
    if not isinstance(stages, list) or not isinstance(students, Mapping):
        return
    warmups = {
        key.rpartition(".")[2]: student["schedule"].get("warmup")
        for key, student, *_ in reversed([*_schedules(tree)])
    }
    for name, student, *_ in _schedules_of("", tree, "", None):
        if _share(student["schedule"].get("warmup")) is not None:
            _set_warmup(
                student, warmups.get(name.rpartition(".")[2], student["schedule"]["warmup"])
            )


def budget_of(tree: Tree) -> DurationValue | None:
    """`train.budget`, where it is a duration."""
    train = tree.get("train")
    return _duration(train.get("budget")) if isinstance(train, Mapping) else None


def share_of(budget: DurationValue, share: float = WARMUP_SHARE) -> DurationValue:
    """A share of a budget, in its unit."""
    amount = share * budget.amount
    return budget._replace(
        amount=float(f"{amount:.6g}") if budget.unit == "epochs" else int(amount)
    )


def _schedules(tree: Tree) -> Iterator[tuple[str, Tree, str, DurationValue | None]]:
    """Key of a student, the student, key of the budget that the schedule spans, and that budget;
    invalid parts are left out.
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
    """What "5%" is; None for all else."""
    match = _SHARE.fullmatch(value) if isinstance(value, str) else None
    return None if match is None else float(match[1]) / 100


def _duration(value: Any) -> DurationValue | None:
    try:
        return parse_duration(value)
    except ValueError:
        return None
