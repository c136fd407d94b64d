"""A teacher without classes (DINOv2 and its like): what cannot learn from it."""

from distill.errors import InputError
from distill.recipe import Recipe

_FIX = (
    "learn from its features (objective.hint with loss: feature, and soft: null), or name a teacher"
    " with classes"
)


def refuse_readers_of_logits(recipe: Recipe, source: str) -> None:
    """Check a recipe whose teacher has no logits.

    Args:
        source: the teacher's model and weights, for messages.

    Raises:
        InputError: a soft term or the metric reads its logits; names the key.
    """
    for index, prefix in enumerate(recipe.stage_keys):
        for name, student in recipe.at_stage(index).students.items():
            if student.objective.soft is not None:
                raise InputError(
                    f"{prefix}students.{name}.objective.soft: {student.objective.soft.loss} reads"
                    f" the logits of the teacher, and {source} has no classifier: {_FIX}"
                )
    if not recipe.evaluate.reads_labels:
        raise InputError(
            f"evaluate.metric: {recipe.evaluate.metric} compares with the logits of the teacher,"
            f" and {source} has no classifier: use top1, top5 or loss, or name a teacher with"
            " classes"
        )
