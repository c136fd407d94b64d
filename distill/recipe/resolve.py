"""Resolves the tree of a recipe: merges `student` into each of `students`, and the run into each of
its stages, and removes students and teachers that are None.
"""

from collections.abc import Mapping
from typing import Any

from distill.errors import InputError, did_you_mean
from distill.recipe.explain import DISCRIMINATORS, Tree
from distill.recipe.stages import STAGE_DATA, STAGE_STUDENT


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """Returns `base` with the values of `over`. Mappings are merged key by key, except a mapping of
    another `kind` or `loss`, which replaces the old one.
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


def resolve_students(tree: Tree) -> Tree:
    """Merges the shared `student` into each of `students`, and removes each student that is None.

    Without `students`, the shared one is the only student, with the name "student".

    Raises:
        InputError: a part is not a mapping, or every student is None.
    """
    shared = tree.get("student", {})
    students = tree.get("students", {"student": {}} if shared else {})
    if not isinstance(shared, Mapping) or not isinstance(students, Mapping):
        raise InputError(
            "student and students should be mappings: student has the keys that all share, and"
            " students a mapping for each name"
        )
    left_out = [name for name, own in students.items() if own is None]
    if left_out and len(left_out) == len(students):
        raise InputError(
            f"students.{left_out[-1]}: null removes a student, and no other is left: keep one, or"
            f" write students.{left_out[-1]}={{}} for a student with only the keys of `student`"
        )
    resolved = {
        name: merge(shared, own) if isinstance(own, Mapping) else own
        for name, own in students.items()
        if own is not None
    }
    result = {**{k: v for k, v in tree.items() if k != "student"}, "students": resolved}
    if left_out and isinstance(tree.get("stages"), list):
        result["stages"] = [_without_students(stage, left_out) for stage in tree["stages"]]
    return result


def resolve_teachers(tree: Tree) -> Tree:
    """Removes each of `teachers` that is None; without any other, `teachers` is None."""
    teachers = tree.get("teachers")
    if not isinstance(teachers, Mapping) or None not in teachers.values():
        return tree
    left = {name: own for name, own in teachers.items() if own is not None}
    return {**tree, "teachers": left or None}


def _without_students(stage: Any, names: list[Any]) -> Any:
    """Returns a stage without some students."""
    if not isinstance(stage, Mapping) or not isinstance(stage.get("students"), Mapping):
        return stage
    return {
        **stage,
        "students": {name: own for name, own in stage["students"].items() if name not in names},
    }


def resolve_stages(tree: Tree) -> Tree:
    """Merges the data and students of the run into each stage, so that each stage is complete."""
    stages, students, data = tree.get("stages"), tree.get("students"), tree.get("data")
    if (
        not isinstance(stages, list)
        or not isinstance(students, Mapping)
        or not isinstance(data, Mapping)
    ):
        return tree
    return {**tree, "stages": [_resolve_stage(stage, students, data) for stage in stages]}


def _resolve_stage(stage: Any, students: Mapping[str, Any], data: Mapping[str, Any]) -> Any:
    if not isinstance(stage, Mapping):
        return stage
    shared, own = stage.get("student") or {}, stage.get("students") or {}
    own_data = stage.get("data") or {}
    if not all(isinstance(part, Mapping) for part in (shared, own, own_data)):
        return stage  # refused by the schema
    base = {key: data[key] for key in STAGE_DATA if key in data}
    if isinstance(own_data.get("train"), Mapping) and "kind" in own_data["train"]:
        # A stage with its own data set does not inherit the part of the run's data set.
        base = {
            key: value
            for key, value in base.items()
            if key not in ("train", "fraction", "keep_classes")
        }
    for name, value in own.items():
        key = f"stages.{stage.get('name')}.students.{name}"
        if name not in students:
            raise InputError(
                f"{key}: no such student{did_you_mean(str(name), map(str, students))}; there are"
                f" {', '.join(map(str, students))}"
            )
        if not isinstance(value, Mapping):
            raise InputError(
                f"{key}: should be a mapping of keys, not {value!r}: every student takes part in"
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
