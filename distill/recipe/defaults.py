"""What a student learns from and how, where its recipe does not say: vanilla distillation with
AdamW.

Filled into the tree, so that a resolved recipe shows it. A run in stages says these for itself.
"""

from collections.abc import Mapping
from typing import Any

from distill.recipe.resolve import Tree, budget_of, merge, share_of

# DeiT's rate and decay (strategy B of the paper): 1e-3 at 1,024 samples. AdamW's step does not grow
# with the gradient, so the rate follows the square root of the batch (Malladi et al. 2022), which
# at 64 samples is four times what the linear rule gives.
OPTIMIZER = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05}
LR_SCALING = {"rule": "sqrt", "batch_size": 1024}
# Vanilla distillation as the paper's released code weighs it.
DISTILLED: Tree = {"hard": {"loss": "ce"}, "soft": {"loss": "kl"}}
ALONE: Tree = {"hard": {"loss": "ce"}}


def fill_defaults(tree: Tree) -> tuple[Tree, list[str]]:
    """A tree with resolved students, each with an objective and an optimizer, and a note on what
    was filled in.

    An optimizer that is named stands as it is written; one that is not is AdamW with what is said
    laid over it, a rate that the user wrote unscaled, and a warm-up of 5 % of the budget.
    """
    students = tree.get("students")
    if tree.get("stages") or not isinstance(students, Mapping):
        return tree, []
    filled = {name: _filled(student, tree) for name, student in students.items()}
    notes: dict[str, list[str]] = {}
    for name, student in students.items():
        if isinstance(student, Mapping):
            for key in ("objective", "optimizer"):
                if filled[name].get(key) is not student.get(key):
                    notes.setdefault(_described(filled[name], key), []).append(
                        f"students.{name}.{key}"
                    )
    return {**tree, "students": filled}, [
        f"{', '.join(keys)}: not given in full, so {note}" for note, keys in notes.items()
    ]


def _filled(student: Any, tree: Tree) -> Any:
    if not isinstance(student, Mapping):
        return student
    filled = dict(student)
    if "objective" not in student:
        filled["objective"] = ALONE if tree.get("teacher") is None else DISTILLED
    optimizer, schedule = student.get("optimizer", {}), student.get("schedule", {})
    if (
        not isinstance(optimizer, Mapping)
        or "name" in optimizer
        or not isinstance(schedule, Mapping)
    ):
        return filled
    scaling = {} if "lr" in optimizer else {"lr_scaling": LR_SCALING}
    filled["optimizer"] = merge({**OPTIMIZER, **scaling}, optimizer)
    if (budget := budget_of(tree)) is not None:
        filled["schedule"] = {"warmup": str(share_of(budget)), **schedule}
    return filled


def _described(student: Tree, key: str) -> str:
    """What was filled in, for people."""
    if key == "objective":
        return (
            "cross-entropy and the teacher's KL, 1 + 1"
            if "soft" in student[key]
            else "cross-entropy with the labels"
        )
    optimizer = student[key]
    warmup = student.get("schedule", {}).get("warmup")
    return (
        f"{optimizer['name']}, lr {optimizer['lr']}, weight decay {optimizer['weight_decay']}"
        + (f", warm-up {warmup}" if warmup else "")
    )
