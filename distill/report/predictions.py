"""What the best weights of a run's students, and its teacher, say about each evaluation image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from distill.data.relabelled import Relabelled
from distill.data.sources import Source
from distill.engine import Engine
from distill.errors import InputError
from distill.evaluation.accuracy import TEACHER, EvalBatches, Model
from distill.evaluation.sets import eval_loader
from distill.models.labels import match_classes
from distill.models.pixels import Network
from distill.models.teacher import Teacher, build_teacher
from distill.recipe import Recipe
from distill.release.find import Found, find_models, which_weights
from distill.release.images import open_images
from distill.report.records import RunRecords
from distill.training.build import place_teacher


@dataclass(frozen=True)
class Predictions:
    """A model's answers to N evaluation images, in the order of their indices.

    Attributes:
        index: [N] int64, in the source.
        label: [N] int64.
        top5: [N, min(5, K)] int64, the largest logits first; of equal ones the lower class.
        confidence: [N] float32, the probability of the first class.
    """

    index: np.ndarray
    label: np.ndarray
    top5: np.ndarray
    confidence: np.ndarray

    @property
    def top1(self) -> np.ndarray:
        """[N] int64."""
        return self.top5[:, 0]

    @property
    def right(self) -> np.ndarray:
        """[N] bool."""
        return np.asarray(self.top1 == self.label)


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


@torch.no_grad()
def predict(
    models: Mapping[str, Model], batches: EvalBatches, engine: Engine
) -> dict[str, Predictions]:
    """Return the predictions of each model, from one pass over the images on this process."""
    columns: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in models}
    for batch in batches:
        own = [tensor[batch.valid].cpu().numpy() for tensor in (batch.indices, batch.labels)]
        for name, model in models.items():
            with engine.autocast():
                logits = model(batch.images)[batch.valid].float()
            # Stable: of equal logits the lower class is first, as the accuracy counts.
            ranked = logits.argsort(dim=1, descending=True, stable=True)[:, :5]
            confidence = logits.softmax(1).gather(1, ranked[:, :1])[:, 0]
            columns[name].append((*own, ranked.cpu().numpy(), confidence.cpu().numpy()))
    found = {}
    for name, parts in columns.items():
        stacked = [np.concatenate(column) for column in zip(*parts, strict=True)]
        order = np.argsort(stacked[0])
        found[name] = Predictions(*(column[order] for column in stacked))
    return found


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
    match = match_classes(
        first.classes or None,
        int(first.net.num_classes),  # type: ignore[arg-type]
        opened.classes,
        who=first.name,
        order_given=order_given,
    )
    classes = first.classes or opened.classes
    source = opened if match.in_order else Relabelled(opened, match.logits, classes)
    teacher, note = _teacher(run.recipe, source)
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
        classes=tuple(classes),
        students={each.name: found[each.name] for each in models},
        teacher=found.get(TEACHER),
        weights={each.name: which_weights(each) for each in models},
        notes=(*notes, *([note] if note else [])),
    )


def _best_models(run: RunRecords, students: Sequence[str]) -> tuple[list[Found], list[str]]:
    """Return the students with best weights, and a sentence for each of the others."""
    every = find_models(run.folder, model=None, student=None, weights="best", image_size=None)
    models = [each for each in every if each.name in students]
    missing = [name for name in students if name not in {each.name for each in models}]
    if not models:
        raise InputError(f"{', '.join(students)}: not evaluated yet, so there are no best weights")
    return models, [f"{name} has no best weights yet, so it is left out here." for name in missing]


def _teacher(recipe: Recipe, source: Source) -> tuple[Teacher | None, str | None]:
    """Return the run's teacher, or why there is none although the recipe names one."""
    if recipe.teacher is None:
        return None, None
    try:
        teacher = build_teacher(
            recipe.teacher,
            classes=source.classes,
            root=Path(),
            device="cpu",
            data_image_size=recipe.data.image_size,
            order_given=True,  # the run checked the order of its classes
        )
    except InputError as error:
        return None, f"The teacher is left out here, since it is not available: {error}"
    return teacher, None


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
        return predict(networks, loader, engine)
