"""What the best weights of a run's students, and its teacher, say about each evaluation image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distill.data.sources import Source
from distill.engine import Engine
from distill.errors import InputError
from distill.evaluation.accuracy import TEACHER, Model
from distill.evaluation.predictions import ALL_CLASSES, Predictions, predict
from distill.evaluation.sets import eval_loader
from distill.models.pixels import Network
from distill.models.teacher import Teacher
from distill.recipe import Recipe
from distill.release.evaluate import run_teacher
from distill.release.find import Found, find_models, which_weights
from distill.release.images import labelled_in_logits, open_images
from distill.report.records import RunRecords
from distill.training.teachers import place_teacher


@dataclass(frozen=True)
class Evaluated:
    """The predictions of a run's models on its evaluation set.

    Attributes:
        source: where the images are.
        classes: in the order of the logits.
        students: by name; all of the same images.
        teacher: its answers to the images as the students see them; None without a teacher.
        weights: which weights of each student these are, in words.
        notes: what could not be evaluated, a sentence each.
    """

    source: Source
    classes: tuple[str, ...]
    students: Mapping[str, Predictions]
    teacher: Predictions | None
    weights: Mapping[str, str]
    notes: tuple[str, ...]


def predict_run(
    run: RunRecords, students: Sequence[str], *, batch_size: int, num_workers: int | None
) -> Evaluated:
    """Evaluate the best weights of students of a run, and its teacher, in one pass.

    Raises:
        InputError: the run has no best weights yet, or its evaluation images are not available.
    """
    models, notes = _best_models(run, students)
    opened, order_given = open_images(None, None, None, run.recipe, run.folder)
    first = models[0]
    source, _ = labelled_in_logits(opened, order_given, first)
    teacher, missing = run_teacher(run.recipe, source)
    note = missing and f"The teacher is left out here: {missing}"
    if teacher is not None and teacher.view.frame != first.view.frame:
        note = (
            "Here the teacher sees what the students see; its top-1 in the table is of its own view"
            f" ({teacher.view.describe()})."
        )
    engine = Engine(precision="fp32")
    try:
        found = _pass(models, source, teacher, engine, run.recipe, batch_size, num_workers)
    finally:
        engine.close()
    return Evaluated(
        source=source,
        classes=first.classes or source.classes,
        students={each.name: found[each.name] for each in models},
        teacher=found.get(TEACHER),
        weights={each.name: which_weights(each) for each in models},
        notes=(*notes, *([note] if note else [])),
    )


def _best_models(run: RunRecords, students: Sequence[str]) -> tuple[list[Found], list[str]]:
    """Return the students with best weights, and a sentence for each of the others."""
    every = find_models(run.folder, model=None, student=None, weights="best", image_size=None)
    found = [each for each in every if each.name in students]
    models = [each for each in found if each.has_classes]
    missing = [name for name in students if name not in {each.name for each in found}]
    if found and not models:
        raise InputError(f"{', '.join(students)}: has no classifier, so that it names no classes")
    if not models:
        raise InputError(f"{', '.join(students)}: not evaluated yet, so there are no best weights")
    return models, [
        *(f"{name} has no best weights yet, so it is left out here." for name in missing),
        *(
            f"{each.name} has no classifier, so it is left out here."
            for each in found
            if not each.has_classes
        ),
    ]


def _pass(
    models: Sequence[Found],
    source: Source,
    teacher: Teacher | None,
    engine: Engine,
    recipe: Recipe,
    batch_size: int,
    num_workers: int | None,
) -> dict[str, Predictions]:
    placed = place_teacher(teacher, engine)
    networks: dict[str, Model] = {
        each.name: engine.place(Network(each.net, each.pixels)).eval() for each in models
    }
    if placed is not None:
        networks[TEACHER] = placed
    frames = {each.view.frame for each in models}
    assert len(frames) == 1, "the students of a run see images alike"
    with eval_loader(
        source,
        frames.pop(),
        engine,
        batch_size=min(batch_size, len(source)),
        num_workers=num_workers,
        unreadable=recipe.data.unreadable,
    ) as loader:
        found = predict(networks, loader, engine)
        return {name: found[name, ALL_CLASSES] for name in networks}
