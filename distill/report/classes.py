"""Where students err: classes that they confuse, what each class gained, how far they agree with
the teacher.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.evaluation.predictions import Predictions

_CONFUSIONS = 3  # classes named for each of the worst ones


@dataclass(frozen=True)
class ClassScore:
    """How one class fared.

    Attributes:
        name: of the class.
        num_images: of the class.
        right: percent of them that the student names rightly.
        teacher: the same of the teacher; None without one.
        taken_for: the classes most often named instead, with the number of images.
    """

    name: str
    num_images: int
    right: float
    teacher: float | None
    taken_for: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Matrix:
    """The confusion of a few classes.

    Attributes:
        names: of rows and columns.
        counts: [R, R + 1] int64, images of a row's class that are named as a column's; the last
            column counts all other classes.
    """

    names: tuple[str, ...]
    counts: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """[R, R + 1] float64, of the images of each row."""
        return np.asarray(self.counts / np.maximum(self.counts.sum(1, keepdims=True), 1))


@dataclass(frozen=True)
class ClassGain:
    """The top-1 of one class, in percent, of a student and of the one that learned alone."""

    name: str
    student: float
    alone: float

    @property
    def gain(self) -> float:
        """In points."""
        return self.student - self.alone


@dataclass(frozen=True)
class Agreement:
    """On how many of N images student and teacher are right, and name the same class."""

    num_images: int
    both_right: int
    only_teacher: int
    only_student: int
    both_wrong_alike: int
    both_wrong_apart: int

    @property
    def same(self) -> float:
        """Percent of the images on which they name the same class."""
        return 100 * (self.both_right + self.both_wrong_alike) / max(self.num_images, 1)


def confusion_row(predictions: Predictions, label: int, num_classes: int) -> np.ndarray:
    """Return [K] int64: how many images of a class are named as each class. A whole matrix of
    22,000 classes would take gigabytes.
    """
    return np.bincount(predictions.first[predictions.labels == label], minlength=num_classes)


def class_accuracy(predictions: Predictions, num_classes: int) -> np.ndarray:
    """Return [K] float64, percent; NaN for a class without images."""
    totals = np.bincount(predictions.labels, minlength=num_classes)
    hits = np.bincount(predictions.labels[predictions.right], minlength=num_classes)
    with np.errstate(invalid="ignore"):
        return np.asarray(100 * hits / totals)


def worst_classes(
    student: Predictions, teacher: Predictions | None, classes: Sequence[str], count: int
) -> list[ClassScore]:
    """Return the classes with the lowest accuracy, the worst first; none without an error."""
    accuracy = class_accuracy(student, len(classes))
    of_teacher = None if teacher is None else class_accuracy(teacher, len(classes))
    scores = []
    for index in _worst(accuracy, count):
        counts = confusion_row(student, index, len(classes))
        others = np.where(np.arange(len(classes)) == index, 0, counts)
        named = [int(j) for j in np.argsort(-others, kind="stable")[:_CONFUSIONS] if others[j]]
        scores.append(
            ClassScore(
                classes[index],
                int(counts.sum()),
                float(accuracy[index]),
                None if of_teacher is None else float(of_teacher[index]),
                tuple((classes[j], int(others[j])) for j in named),
            )
        )
    return scores


def confusion_matrix(student: Predictions, classes: Sequence[str], count: int) -> Matrix | None:
    """Return the confusion among all classes, or among the worst `count` of more; None if the
    student errs nowhere.
    """
    accuracy = class_accuracy(student, len(classes))
    shown = _worst(accuracy, count)
    if not shown:
        return None
    if len(classes) <= count:
        shown = [int(index) for index in np.flatnonzero(~np.isnan(accuracy))]
    counts = np.stack([confusion_row(student, index, len(classes)) for index in shown])
    inside = counts[:, shown]
    others = counts.sum(1) - inside.sum(1)
    return Matrix(tuple(classes[i] for i in shown), np.column_stack([inside, others]))


def class_gains(
    student: Predictions, alone: Predictions, classes: Sequence[str]
) -> list[ClassGain]:
    """Return every class that has images, the largest gain first."""
    ours, theirs = (class_accuracy(each, len(classes)) for each in (student, alone))
    gains = [
        ClassGain(name, float(ours[i]), float(theirs[i]))
        for i, name in enumerate(classes)
        if not np.isnan(ours[i])
    ]
    return sorted(gains, key=lambda each: -each.gain)


def agreement(student: Predictions, teacher: Predictions) -> Agreement:
    """Compare a student's answers with the teacher's to the same images."""
    ours, theirs, same = student.right, teacher.right, student.first == teacher.first
    counts = [
        ours & theirs,
        ~ours & theirs,
        ours & ~theirs,
        ~ours & ~theirs & same,
        ~ours & ~theirs & ~same,
    ]
    return Agreement(len(ours), *(int(each.sum()) for each in counts))


def _worst(accuracy: np.ndarray, count: int) -> list[int]:
    """Return the classes with errors, the lowest accuracy first, then in order."""
    order = np.argsort(accuracy, kind="stable")  # NaN, of classes without images, is last
    return [int(i) for i in order if accuracy[i] < 100][:count]
