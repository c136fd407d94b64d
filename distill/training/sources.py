"""The sources of a run, and the classes of its logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.data.classes import Named, run_classes
from distill.data.label_sets import same_space
from distill.data.sources import Source, has_class_order
from distill.models.teacher import classes_of_teachers
from distill.recipe import Recipe, schema
from distill.training.opened import Opened


@dataclass(frozen=True)
class Sources:
    """What a run reads.

    Attributes:
        train: the training images of each stage.
        eval: None if nothing is evaluated.
        classes: of the logits of students and teacher, in order; none if all students are
            backbones.
    """

    train: tuple[Source, ...]
    eval: Source | None
    classes: tuple[str, ...]

    @property
    def eval_labelled(self) -> bool:
        """Whether the labels of the evaluation set are classes of the run."""
        return self.eval is not None and same_space(self.eval.classes, self.classes)


def classified(recipe: Recipe, stages: Sequence[Recipe], opened: Opened) -> Sources:
    """Return the sources of a run with its classes.

    Args:
        stages: the recipe of each stage.

    Raises:
        InputError: labels that are read and do not fit each other.
    """
    if not recipe.trains_classifiers:
        return Sources(opened.train, None, ())
    named = []
    for stage, prefix, source in zip(stages, recipe.stage_keys, opened.train, strict=True):
        why = reader_of_labels(stage, prefix)
        named.append(Named(f"{prefix}data.train", source, bool(why), why))
    classes = run_classes(
        named,
        opened.eval,
        reads_eval=recipe.evaluate.reads_labels,
        of_teacher=classes_of_teachers(recipe.teacher_rows.values(), Path()),
    )
    return Sources(opened.train, opened.eval, classes)


def order_given(recipe: Recipe, stages: Sequence[Recipe], sources: Sources) -> bool:
    """Whether the recipe gives the order of the classes; else it follows from the names of folders
    or labels.
    """
    spec = recipe.data.eval if sources.eval_labelled else None
    if spec is None or isinstance(spec, schema.HoldOutSpec):
        trained = zip(stages, sources.train, strict=True)
        named = (
            stage.data.train
            for stage, source in trained
            if same_space(source.classes, sources.classes)
        )
        spec = next(named, None)
    # Without a source that names them, the teacher's list does.
    return spec is None or has_class_order(spec)


def reader_of_labels(recipe: Recipe, key: str) -> str:
    """The first key of an objective that reads labels; empty if none does."""
    for name, student in recipe.students.items():
        if student.objective.reads_labels:
            term = (
                "hard"
                if student.objective.hard is not None
                else "soft dkd (target: teacher would not)"
            )
            return f"{key}students.{name}.objective.{term}"
    return ""
