"""Notes for the user about the learning rates of a recipe."""

from collections.abc import Mapping
from typing import Any

from distill.recipe.schema import OptimizerSpec, Recipe


def rate_notes(recipe: Recipe, shipped: Mapping[str, Any]) -> list[str]:
    """Returns a note for each learning rate that is scaled with the batch size, and for each that
    was chosen for another batch size than that of the run.

    Args:
        shipped: the merged content of the files of this package that the recipe extends.
    """
    batch = recipe.train.batch_size_global
    shipped_batch = _number(shipped, "train", "batch_size_global")
    shipped_lr = _number(shipped, "student", "optimizer", "lr")
    notes: dict[str, list[str]] = {}
    for key, optimizer in _optimizers(recipe):
        scaling = optimizer.lr_scaling
        if scaling is not None and scaling.batch_size == batch:
            continue  # not changed by scaling
        if scaling is not None:
            scaled = optimizer.at_batch(batch).lr
            root = "sqrt" if scaling.rule == "sqrt" else ""
            note = (
                f"{optimizer.lr:g} x {root}({batch} / {scaling.batch_size}) = {scaled:g}"
                f" (lr_scaling: {scaling.rule})"
            )
        elif shipped_batch is not None and shipped_batch != batch and optimizer.lr == shipped_lr:
            note = (
                f"{optimizer.lr:g} was chosen for batches of {shipped_batch:g}, and"
                f" train.batch_size_global is {batch}; student.optimizer.lr_scaling='{{rule:"
                f" linear, batch_size: {shipped_batch:g}}}' makes it"
                f" {optimizer.lr * batch / shipped_batch:g}"
            )
        else:
            continue
        notes.setdefault(note, []).append(f"{key}.lr")
    return [f"{', '.join(keys)}: {note}" for note, keys in notes.items()]


def _optimizers(recipe: Recipe) -> list[tuple[str, OptimizerSpec]]:
    """The optimizer of each student in each stage, before scaling."""
    if not recipe.stages:
        return [
            (f"students.{name}.optimizer", student.optimizer)
            for name, student in recipe.students.items()
        ]
    return [
        (f"stages.{stage.name}.students.{name}.optimizer", student.optimizer)
        for stage in recipe.stages
        for name, student in stage.students.items()
    ]


def _number(tree: Any, *keys: str) -> float | None:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, int | float) else None
