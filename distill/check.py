"""What can be known of a recipe without data and without a GPU, beyond its schema: names, arguments, packages, shapes."""

import importlib.util
from pathlib import Path

import torch

from distill.build import student_pixels
from distill.data.augment import TrainTransform
from distill.engine import TRACKERS
from distill.errors import InputError, nearest
from distill.models.build import config, create
from distill.optim import build_optimizer
from distill.plan import share_of_process
from distill.recipe import DurationValue, Recipe

_SOME_CLASSES = 10


def check_recipe(recipe: Recipe, num_processes: int | None = None) -> list[str]:
    """Try everything that needs neither data nor a device: models are built without memory, optimizers and policies made.

    Args:
        num_processes: also check that the batch divides on so many.

    Returns:
        Notes on what cannot be known yet (data, weights that are not here).

    Raises:
        InputError: every problem found, a line each.
    """
    problems: list[str] = []
    notes: list[str] = []

    def attempt(act: object) -> None:
        try:
            act()  # type: ignore[operator]
        except InputError as error:
            problems.append(str(error))

    for tracker in recipe.log.trackers:
        attempt(lambda tracker=tracker: _tracker(tracker))
    attempt(
        lambda: TrainTransform(image_size=recipe.data.image_size, **recipe.data.augment.model_dump(exclude={"repeats"}))
    )
    if num_processes is not None:
        attempt(lambda: share_of_process(recipe.train.batch_size_global, recipe.train.micro_batch_size, num_processes))
    for name, spec in recipe.students.items():

        def student(name: str = name, spec: object = spec) -> None:
            own = recipe.students[name]
            with torch.device("meta"):
                net = create(
                    own.model,
                    num_classes=_SOME_CLASSES,
                    image_size=recipe.data.image_size,
                    drop_path=own.drop_path,
                    drop_rate=own.drop_rate,
                    model_args=own.model_args,
                )
            student_pixels(net, own)
            build_optimizer(net, own.optimizer, key=f"students.{name}.optimizer")
            _shorter(own.schedule.warmup, recipe.train.budget, f"students.{name}.schedule.warmup")
            for milestone in own.schedule.milestones:
                _shorter(milestone, recipe.train.budget, f"students.{name}.schedule.milestones")

        attempt(student)
        if spec.weights not in (None, "pretrained") and not Path(str(spec.weights)).exists():
            notes.append(f"students.{name}.weights: {spec.weights} is not here")
    teacher = recipe.teacher
    if teacher is not None:
        if teacher.model is not None:
            attempt(lambda: config(str(recipe.teacher.model if recipe.teacher else "")))
        if teacher.weights not in ("pretrained", "random") and not Path(teacher.weights).exists():
            notes.append(f"teacher.weights: {teacher.weights} is not here")
    for key, source in (("train", recipe.data.train), ("eval", recipe.data.eval)):
        if source is not None and source.path is not None and "*" not in source.path:
            path = Path(recipe.data.root) / source.path
            if not path.exists():
                notes.append(f"data.{key}: {path} is not here")
    if problems:
        raise InputError("\n".join(problems))
    return notes


def _tracker(name: str) -> None:
    if name not in TRACKERS:
        raise InputError(f"log.trackers: no tracker {name!r}{nearest(name, TRACKERS)}; known are {', '.join(TRACKERS)}")
    if importlib.util.find_spec(name) is None:
        raise InputError(
            f"log.trackers: the package {name} is not installed: pip install {name}, or 'vanillakd[trackers]'"
        )


def _shorter(part: DurationValue, whole: DurationValue, key: str) -> None:
    """Durations in different units can only be compared once the data is known."""
    if part.unit == whole.unit and part.amount >= whole.amount:
        raise InputError(f"{key}: {part} is not shorter than train.budget, {whole}")
