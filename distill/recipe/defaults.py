"""Defaults for the objective and the optimizer of a student: vanilla distillation with AdamW.

They are added to the tree, so that a resolved recipe shows them. A run with stages has no such
defaults.
"""

from collections.abc import Mapping
from typing import Any

from distill.recipe.explain import Tree
from distill.recipe.resolve import merge
from distill.recipe.warmups import budget_of, share_of

# DeiT's rate and decay (strategy B of the paper): 1e-3 at 1,024 samples. AdamW's step does not grow
# with the gradient, so the rate follows the square root of the batch (Malladi et al. 2022), which
# at 64 samples is four times what the linear rule gives.
OPTIMIZER = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05}
LR_SCALING = {"rule": "sqrt", "batch_size": 1024}
# Vanilla distillation, with the weights of the paper's released code.
DISTILLED: Tree = {"hard": {"loss": "ce"}, "soft": {"loss": "kl"}}
ALONE: Tree = {"hard": {"loss": "ce"}}


def fill_defaults(tree: Tree) -> tuple[Tree, list[str]]:
    """Adds the missing objectives and optimizers to the students of a tree.

    An optimizer with a name stays as it is. Without a name it is AdamW, with the keys that the
    recipe sets, and a warm-up of 5 % of the budget; a learning rate that the recipe sets is not
    scaled.

    Args:
        tree: with resolved students.

    Returns:
        The tree, and a note for each addition.
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
        f"{', '.join(keys)}: incomplete, so the default is used: {note}"
        for note, keys in notes.items()
    ]


def _filled(student: Any, tree: Tree) -> Any:
    if not isinstance(student, Mapping):
        return student
    filled = dict(student)
    if "objective" not in student:
        taught = tree.get("teacher") is not None or tree.get("teachers") is not None
        filled["objective"] = DISTILLED if taught else ALONE
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
    """A description of what was added."""
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
