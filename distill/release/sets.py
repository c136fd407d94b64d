"""`distill evaluate --sets`: models on ImageNet's evaluation sets and on sets of the user's own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from distill.data.class_names import class_numbers
from distill.data.guess import guess_source
from distill.data.relabelled import Relabelled
from distill.data.sources import Source, has_class_order, open_source
from distill.errors import InputError
from distill.evaluation.predictions import ALL_CLASSES, Predictions
from distill.evaluation.scores import Scores, scores_of, scores_of_several
from distill.models.labels import Match, match_classes
from distill.recipe import schema
from distill.release.find import Found
from distill.release.imagenet import (
    KNOWN,
    KnownSet,
    NamedSet,
    find_below,
    imagenet_classes,
    part_synsets,
    real_labels,
)
from distill.release.images import in_command_words, labelled_in_logits
from distill.release.passes import Answers, Evaluator
from distill.release.results import SetResult

CLEAN = "-clean"
"""What follows the name of A or R for the validation images of the same 200 classes."""


@dataclass(frozen=True)
class Measurement:
    """What is measured on which images.

    Attributes:
        path: of the images.
        part: the set of ImageNet whose classes alone are compared; None for all classes.
        all_of_imagenet: the images are of ImageNet-1K's 1,000 classes.
        num_images: how many the whole set has; None if not known.
        optional: its images were found and not asked for; what is wrong with them is a note.
        real: labels are those of ImageNet-ReaL.
        baseline: the measurement that timm compares this one with.
    """

    name: str
    title: str
    path: str
    table: str
    part: KnownSet | None = None
    real: bool = False
    all_of_imagenet: bool = False
    num_images: int | None = None
    optional: bool = False
    baseline: str | None = None


@dataclass
class Images:
    """Images that one or several measurements share, labelled in the model's logits."""

    source: Source
    match: Match
    choices: dict[str, list[int] | None] = field(default_factory=dict)


def measurements(sets: Sequence[NamedSet], root: Path | None) -> tuple[list[Measurement], str]:
    """Return what to measure for the sets that a user names, and a note on what is left out.

    A and R are followed by the clean score on the same classes, if the validation set is there.
    """
    val = next((each.path for each in sets if each.name in ("val", "real")), None)
    val_asked = val is not None
    if val is None and root is not None and (place := find_below(root, KNOWN["val"])):
        val = str(place)
    with_val = any(each.name == "val" for each in sets)
    found, without = [], []
    for each in sets:
        known = each.known
        if known is None:
            found.append(Measurement(each.name, each.name, each.path, f"results-{each.name}"))
            continue
        part = known if known.part else None
        baseline = "val" if with_val and each.name != "val" else None
        if part is not None:
            baseline = each.name + CLEAN if val is not None else None
        found.append(
            Measurement(
                each.name,
                known.title,
                each.path,
                known.table,
                part,
                real=each.name == "real",
                all_of_imagenet=part is None,
                num_images=known.num_images,
                baseline=baseline,
            )
        )
        if part is not None and val is not None:
            title = f"ImageNet-1K validation, the classes of {known.title}"
            found.append(
                Measurement(
                    each.name + CLEAN,
                    title,
                    val,
                    f"{known.table}-clean",
                    part,
                    all_of_imagenet=True,
                    num_images=KNOWN["val"].num_images,
                    optional=not val_asked,
                )
            )
        elif part is not None:
            without.append(each.name)
    note = (
        f"{', '.join(without)}: without the score on clean images of the same classes: the"
        " validation set is not there (--sets val=PATH)"
        if without
        else ""
    )
    return found, note


def _refuse_other_classes(wanted: Measurement, source: Source) -> None:
    """Raise InputError if images under the name of a set of ImageNet have other classes."""
    classes = imagenet_classes()
    try:
        match_classes(classes, len(classes), source.classes, who="ImageNet-1K")
    except InputError as error:
        raise InputError(
            f"these are not the classes of {wanted.title} ({error}); give images of your own"
            " another name, such as mine=PATH"
        ) from error


class SetEvaluation:
    """Measurements whose images are open and fit the model: what is wrong shows before the first
    image is decoded.

    Attributes:
        notes: how the classes of each set were matched, and what does not count, a line each.

    Raises:
        InputError: images or labels are not there, or are of other classes than the model's.
    """

    def __init__(self, wanted: Sequence[Measurement], model: Found) -> None:
        self._wanted, self._model = list(wanted), model
        self._images: dict[str, Images] = {}
        self._real: dict[str, np.ndarray] = {}
        self.notes: list[str] = []
        for each in wanted:
            if each.path not in self._images:
                try:
                    images = self._open(each)
                except InputError as error:
                    if not each.optional:
                        raise
                    self.notes.append(f"without {each.name}: {error}")
                    continue
                self._images[each.path] = images
                self.notes.append(f"{each.name}: {images.match.describe()}")
            self._prepare(each, self._images[each.path])

    def run(self, evaluator: Evaluator) -> list[SetResult]:
        """Run the models over all images, each once. Collective: every rank."""
        results: dict[str, SetResult] = {}
        for path, images in self._images.items():
            answers = evaluator.answers(images.source, images.choices)
            for each in self._wanted:
                if each.path == path:
                    results[each.name] = self._result(each, images, answers)
        return [results[each.name] for each in self._wanted if each.name in results]

    def _open(self, wanted: Measurement) -> Images:
        option = f"--sets {wanted.name}={wanted.path}"
        try:
            spec = guess_source(wanted.path, option=option)
            opened = self._open_source(wanted, spec, option)
            if wanted.part is not None or wanted.all_of_imagenet:
                opened = self._named(wanted, opened)
                _refuse_other_classes(wanted, opened)
            source, match = labelled_in_logits(opened, has_class_order(spec), self._model)
        except InputError as error:
            message = str(error).replace(f"{option} {wanted.path}", option)
            message = in_command_words(message, option)
            named = message if message.startswith(option) else f"{option}: {message}"
            raise InputError(named) from error
        return Images(source, match)

    def _named(self, wanted: Measurement, source: Source) -> Source:
        """Return images whose classes are numbers with ImageNet-1K's names: the folders of
        ImageNet-V2 are numbers of its classes, whatever the order of a model's logits.
        """
        numbers, names = class_numbers(source.classes), imagenet_classes()
        if numbers is None or max(numbers) >= len(names):
            return source
        self.notes.append(f"{wanted.name}: class names are numbers of ImageNet-1K's classes")
        as_they_are = np.arange(len(numbers))
        return Relabelled(source, as_they_are, tuple(names[number] for number in numbers))

    def _open_source(self, wanted: Measurement, spec: schema.SourceSpec, option: str) -> Source:
        """Open a set. The labels of a stream that names no classes are those of ImageNet-1K."""
        try:
            return open_source(spec, Path(), option)
        except InputError as error:
            if not isinstance(spec, schema.StreamSpec) or not wanted.all_of_imagenet:
                raise
            numbered = spec.model_copy(update={"classes": "imagenet-1k"})
            try:
                source = open_source(numbered, Path(), option)
            except InputError:
                raise error from None
        self.notes.append(f"{wanted.name}: its labels are numbers, ASSUMED to be ImageNet-1K's")
        return source

    def _logits_of(self, classes: Sequence[str]) -> list[int]:
        num_logits = int(self._model.net.num_classes)  # type: ignore[arg-type]
        own = self._model.classes or None
        found = match_classes(own, num_logits, classes, who=self._model.name).logits
        return [int(logit) for logit in found]

    def _prepare(self, wanted: Measurement, images: Images) -> None:
        """Note which logits are compared, and find the labels of ReaL."""
        if wanted.real:
            right = real_labels(images.source, self._logits_of(imagenet_classes()))
            self._real[wanted.path] = right
            unlabelled = int((right < 0).all(1).sum())
            self.notes.append(
                f"{wanted.name}: {len(right):,} images, {unlabelled:,} of which have no label in"
                " ImageNet-ReaL and do not count"
            )
        if wanted.part is None:
            images.choices[ALL_CLASSES] = None
            return
        synsets = part_synsets(wanted.part)
        assert synsets is not None
        logits = sorted(self._logits_of(synsets))
        own = wanted.name == wanted.part.name
        for name, logit in zip(images.match.data_classes, images.match.logits, strict=True):
            if own and logit not in logits:
                raise InputError(
                    f"--sets {wanted.name}={wanted.path}: has the class {name!r}, which is none of"
                    f" the {len(logits)} of {wanted.title}: give the folder of {wanted.title}"
                )
        images.choices[wanted.part.name] = logits

    def _result(self, wanted: Measurement, images: Images, answers: Answers) -> SetResult:
        choice = wanted.part.name if wanted.part is not None else ALL_CLASSES
        logits = images.choices[choice]
        title, count = wanted.title, len(images.source)
        if wanted.num_images is not None and count != wanted.num_images:
            title = f"{title}, {count:,} of {wanted.num_images:,} images"
        return SetResult(
            wanted.name,
            title,
            wanted.path,
            images.match.num_logits if logits is None else len(logits),
            wanted.table,
            {
                name: self._scores(wanted, predictions, logits, answers.images_per_s[name])
                for (name, of), predictions in answers.of.items()
                if of == choice
            },
            wanted.baseline,
        )

    def _scores(
        self,
        wanted: Measurement,
        predictions: Predictions,
        logits: list[int] | None,
        images_per_s: float,
    ) -> Scores:
        right = self._real[wanted.path] if wanted.real else None
        if right is not None:
            counts = (right[predictions.indices] >= 0).any(axis=1)
        elif logits is not None:
            counts = np.isin(predictions.labels, logits)
        else:
            counts = np.ones(len(predictions), dtype=bool)
        if not counts.any():
            raise InputError(
                f"--sets {wanted.name}: none of the images of {wanted.path} counts for"
                f" {wanted.title}"
            )
        chosen = predictions.where(counts)
        if right is not None:
            return scores_of_several(chosen, right[chosen.indices], images_per_s)
        return scores_of(chosen, images_per_s)
