"""The teachers of a recipe by name, and which of them each student learns from.

A run with one `teacher` calls it "teacher" everywhere; those of `teachers` are "teacher/NAME" in
tables, records and logs.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from distill.errors import did_you_mean
from distill.recipe.objective import ObjectiveSpec

TEACHER = "teacher"
Combine = Literal["probabilities", "logits", "losses"]


def row_name(name: str) -> str:
    """Return what a teacher of `teachers` is called in tables and records."""
    return f"{TEACHER}/{name}"


def is_teacher(row: str) -> bool:
    """Return whether a row of a table is a teacher's."""
    return row.partition("/")[0] == TEACHER


def recipe_key(row: str) -> str:
    """Return the key of a teacher in the recipe: "teacher", or "teachers.NAME"."""
    _, _, name = row.partition("/")
    return f"teachers.{name}" if name else TEACHER


def soft_weights(objective: ObjectiveSpec, rows: Sequence[str]) -> dict[str, float]:
    """Return the weights of the teachers of a soft term, which add up to 1; those of weight 0 are
    left out. They are in the order of their names, since sums depend on it and the order of keys in
    a recipe changes nothing.

    Args:
        rows: all teachers of the run.
    """
    if objective.soft_teachers is None:
        return dict.fromkeys(sorted(rows), 1 / len(rows))
    total = math.fsum(objective.soft_teachers.values())
    given = {row_name(name): weight for name, weight in objective.soft_teachers.items()}
    return {row: given[row] / total for row in sorted(given) if given[row]}


def hint_teacher(objective: ObjectiveSpec, rows: Sequence[str]) -> str:
    """Return the teacher of a hint."""
    return rows[0] if objective.hint_teacher is None else row_name(objective.hint_teacher)


def teachers_read(objective: ObjectiveSpec, rows: Sequence[str]) -> tuple[str, ...]:
    """Return the teachers that the losses of an objective read, in the order of the recipe."""
    read = set(soft_weights(objective, rows)) if objective.soft is not None else set()
    if objective.hint is not None:
        read.add(hint_teacher(objective, rows))
    return tuple(row for row in rows if row in read)


def choice_problems(
    key: str, objective: ObjectiveSpec, teachers: Mapping[str, object] | None
) -> Iterator[str]:
    """Yield a message for each key of an objective that names a teacher wrongly.

    Args:
        key: of the objective in the recipe.
        teachers: `teachers` of the recipe; None for a run with one teacher or none.
    """
    given = {
        "soft_teachers": tuple(objective.soft_teachers or ()),
        "hint_teacher": (objective.hint_teacher,) if objective.hint_teacher is not None else (),
    }
    for name, chosen in given.items():
        if chosen and teachers is None:
            yield (
                f"{key}.{name}: chooses among `teachers`, and this recipe has none: remove it, or"
                " write teachers with a name for each"
            )
            return
        for each in chosen:
            if teachers is not None and each not in teachers:
                yield (
                    f"{key}.{name}: no teacher {each!r}{did_you_mean(each, teachers)}; there are"
                    f" {', '.join(teachers)}"
                )
    if objective.soft_teachers is not None and not any(objective.soft_teachers.values()):
        yield f"{key}.soft_teachers: no teacher has a weight above 0: give one"
    if objective.hint is not None and objective.hint_teacher is None and len(teachers or ()) > 1:
        yield (
            f"{key}.hint_teacher: missing, and the hint reads one teacher: name one of"
            f" {', '.join(teachers or ())}"
        )
