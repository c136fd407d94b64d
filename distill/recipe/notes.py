"""What was decided about learning rates that a recipe's user should know."""

from collections.abc import Mapping
from typing import Any

from distill.recipe.schema import OptimizerSpec, Recipe


def rate_notes(recipe: Recipe, shipped: Mapping[str, Any]) -> list[str]:
    """How each learning rate is scaled to the batch, and where one of a strategy stands beside a
    batch that is not the strategy's.

    Args:
        shipped: what the shipped files that the recipe extends say.
    """
    batch = recipe.train.batch_size_global
    theirs = _number(shipped, "train", "batch_size_global")
    their_lr = _number(shipped, "student", "optimizer", "lr")
    notes: dict[str, list[str]] = {}
    for key, optimizer in _optimizers(recipe):
        scaling = optimizer.lr_scaling
        if scaling is not None and scaling.batch_size == batch:
            continue  # as it is written
        if scaling is not None:
            scaled = optimizer.at_batch(batch).lr
            root = "sqrt" if scaling.rule == "sqrt" else ""
            note = (
                f"{optimizer.lr:g} x {root}({batch} / {scaling.batch_size}) = {scaled:g}"
                f" (lr_scaling: {scaling.rule})"
            )
        elif theirs is not None and theirs != batch and optimizer.lr == their_lr:
            note = (
                f"{optimizer.lr:g} was chosen for batches of {theirs:g}, and"
                f" train.batch_size_global is {batch}; student.optimizer.lr_scaling='{{rule:"
                f" linear, batch_size: {theirs:g}}}' makes it {optimizer.lr * batch / theirs:g}"
            )
        else:
            continue
        notes.setdefault(note, []).append(f"{key}.lr")
    return [f"{', '.join(keys)}: {note}" for note, keys in notes.items()]


def _optimizers(recipe: Recipe) -> list[tuple[str, OptimizerSpec]]:
    """Each student's optimizer in each stage, as the recipe writes it."""
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
