"""The lines that describe a run before it starts: recipe, then data, models and device.

This module imports neither torch nor timm, which takes seconds: the recipe is shown at once.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill.console import make_console, wrapped
from distill.errors import printable
from distill.recipe import Recipe, schema

if TYPE_CHECKING:
    from distill.training.plan import Plan

_LABEL_WIDTH = 10
_CLASSES_SHOWN = 4
_NAMES_SHOWN = 8


def show_recipe(recipe: Recipe) -> None:
    """Print data, teacher, students and output of a recipe. The main process alone prints."""
    _print(f"{recipe.name}: {recipe.description}" if recipe.description else recipe.name)
    batch = recipe.train.batch_size_global
    show("budget", f"{recipe.budgets}, batches of {batch}, {recipe.train.precision}")
    trained = [_source(recipe.at_stage(i).data.train) for i in range(recipe.num_stages)]
    evaluated = (
        f"evaluated on {_source(recipe.data.eval)}" if recipe.data.eval else "no evaluation set"
    )
    show(
        "data",
        f"{', then '.join(dict.fromkeys(trained))}; {evaluated}; {recipe.data.image_size} px",
    )
    for row, spec in recipe.teacher_rows.items():
        _, _, name = row.partition("/")
        show("teacher", f"{name}: {_teacher(spec)}" if name else _teacher(spec))
    if recipe.targets is not None:
        show("targets", printable(recipe.targets))
    show("students", _students(recipe))
    show("output", recipe.output_dir)


def show(label: str, text: str) -> None:
    """Print a line of the header. The main process alone prints."""
    _print(f"  {label:{_LABEL_WIDTH}}{text}", indent=_LABEL_WIDTH + 2)


def show_all(label: str, texts: Sequence[str]) -> None:
    """Print a line of the header for each text. The main process alone prints."""
    for text in texts:
        show(label, text)


def show_data(plan: "Plan") -> None:
    """Print the number of images and steps of each stage, and the classes."""
    for number, stage in enumerate(plan.stages):
        name = f"stage {stage.name}: " if plan.recipe.stages else ""
        num_steps = stage.last_step - stage.first_step
        steps = f"{num_steps:,} steps, {stage.order.steps_per_epoch:,} an epoch"
        images = f"{name}{stage.order.num_samples:,} for training ({steps})"
        show("" if number else "images", images)
    if plan.eval_source:
        labels = "" if plan.eval_labelled else ", whose labels nothing reads"
        show("", f"{len(plan.eval_source):,} for evaluation{labels}")
    if plan.classes:
        show("classes", class_names(plan.classes))
    for note in plan.notes:
        show("note", note)


def show_views(lines: Sequence[str]) -> None:
    """Print lines about models; of the lines "NAME sees ..." with the same end, one: "NAME, NAME
    see ...".
    """
    names: dict[str, list[str]] = {}
    for line in lines:
        name, sees, view = line.partition(" sees ")
        names.setdefault(view if sees else line, []).append(name if sees else "")
    for number, (text, models) in enumerate(names.items()):
        verb = "see" if len(models) > 1 else "sees"
        show("" if number else "models", f"{_some(models)} {verb} {text}" if models[0] else text)


def class_names(classes: Sequence[str]) -> str:
    """The number of classes, and the first few names."""
    few = ", ".join(map(printable, classes[:_CLASSES_SHOWN]))
    rest = f" and {len(classes) - _CLASSES_SHOWN} more" if len(classes) > _CLASSES_SHOWN else ""
    return f"{len(classes)}: {few}{rest}"


def _print(line: str, indent: int = 0) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    console = make_console()
    console.print(wrapped(console, line, indent), soft_wrap=True)


def _source(source: schema.SourceSpec | schema.HoldOutSpec | None) -> str:
    """A source in a few words: its kind and its path."""
    assert source is not None
    if isinstance(source, schema.HoldOutSpec):
        return "a part of the training images that training never sees"
    split = (
        ""
        if isinstance(source, schema.ImageFolderSpec) or source.split is None
        else f" {source.split}"
    )
    return f"{source.kind}{split}" + (f" {source.path}" if source.path else "")


def _teacher(teacher: schema.TeacherSpec) -> str:
    model = teacher.model or "the model"
    if teacher.weights in ("pretrained", "random"):
        return f"{model}, {teacher.weights} weights, {teacher.dtype}"
    student = f" (student {teacher.student})" if teacher.student else ""
    return f"{model} of {teacher.weights}{student}, {teacher.dtype}"


def _students(recipe: Recipe) -> str:
    by_model: dict[str, list[str]] = {}
    for name, spec in recipe.students.items():
        by_model.setdefault(spec.model, []).append(name)
    return "; ".join(f"{_some(names)}: {model}" for model, names in by_model.items())


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
