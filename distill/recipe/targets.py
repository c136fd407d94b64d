"""What a recipe must be to train from stored targets, or to have them written."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, assert_never

from distill.recipe.data import StreamSpec
from distill.recipe.hints import (
    CCSpec,
    CRDSpec,
    FeatureSpec,
    FitNetSpec,
    HintSpec,
    ReviewKDSpec,
    RKDSpec,
)

if TYPE_CHECKING:
    from distill.recipe.schema import Recipe


def reads_maps(hint: HintSpec) -> bool:
    """Return whether a hint compares feature maps, and not the features that the classifier
    reads.
    """
    match hint:
        case FitNetSpec() | ReviewKDSpec():
            return True
        case FeatureSpec():
            return hint.level == "dense"
        case CCSpec() | RKDSpec() | CRDSpec():
            return False
        case _:
            assert_never(hint)


def target_problems(recipe: "Recipe") -> Iterator[str]:
    """Yield a message for each key of a recipe with `targets` that a store cannot serve."""
    if recipe.targets is None:
        return
    if recipe.teachers is not None:
        yield "targets: a store has the logits of one teacher: write teacher instead of teachers"
    elif recipe.teacher is None:
        yield "targets: a store has the logits of a teacher, and teacher is null: name the teacher"
    if recipe.stages:
        yield "targets: a store has no stages: remove targets, or stages"
    if isinstance(recipe.data.train, StreamSpec):
        yield (
            "targets: rows are stored for folders, tables and data sets on a disk, and data.train"
            " is kind: stream: remove targets, or give another source"
        )
    for name, student in recipe.students.items():
        hint = student.objective.hint
        if hint is not None and reads_maps(hint):
            yield (
                f"students.{name}.objective.hint: {hint.loss} reads feature maps of the teacher,"
                " and a store has none: set hint to null, or remove targets"
            )
    if not recipe.evaluate.reads_labels:
        yield (
            f"evaluate.metric: {recipe.evaluate.metric} compares with a teacher, which a run with"
            " targets does not build: use top1, top5 or loss, or remove targets"
        )
