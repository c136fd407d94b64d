"""Small pictures of the images on which a student and the teacher differ."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from distill.data.decode import read_image
from distill.data.sources import Source
from distill.errors import InputError
from distill.evaluation.predictions import Predictions

_SIDE = 112  # pixels; shown at this size at most
_QUALITY = 82
# How many of each kind; together a few rows of the page.
_ONLY_TEACHER, _ONLY_STUDENT, _BOTH_WRONG = 6, 4, 2
NUM_SHOWN = _ONLY_TEACHER + _ONLY_STUDENT + _BOTH_WRONG


@dataclass(frozen=True)
class Differing:
    """An image, and what models say about it.

    Attributes:
        image: a data URI; None if the image can no longer be read.
        label, student, teacher: names of classes; without a teacher None.
        student_percent, teacher_percent: the probability that each gives to its class.
        where: the file or row.
    """

    image: str | None
    label: str
    student: str
    teacher: str | None
    student_percent: float
    teacher_percent: float | None
    where: str

    @property
    def kind(self) -> str:
        """Who is right, in words."""
        if self.teacher is None:
            return "the student is wrong"
        if self.teacher == self.label:
            return "only the teacher is right"
        return "only the student is right" if self.student == self.label else "both are wrong"


def differing(
    source: Source,
    student: Predictions,
    teacher: Predictions | None,
    classes: Sequence[str],
) -> list[Differing]:
    """Return images on which student and teacher name different classes, the surest first of each
    kind; without a teacher those that the student gets wrong.
    """
    rows = _chosen(student, teacher)
    found = []
    for row in rows:
        index = int(student.indices[row])
        found.append(
            Differing(
                image=_data_uri(source, index),
                label=classes[student.labels[row]],
                student=classes[student.first[row]],
                teacher=None if teacher is None else classes[teacher.first[row]],
                student_percent=100 * float(student.confidence[row]),
                teacher_percent=None if teacher is None else 100 * float(teacher.confidence[row]),
                where=source.describe(index),
            )
        )
    return found


def _chosen(student: Predictions, teacher: Predictions | None) -> list[int]:
    """Return rows of the predictions."""
    if teacher is None:
        return _surest(~student.right, student.confidence, NUM_SHOWN)
    differ = student.first != teacher.first
    return [
        *_surest(differ & teacher.right, teacher.confidence, _ONLY_TEACHER),
        *_surest(differ & student.right, student.confidence, _ONLY_STUDENT),
        *_surest(differ & ~student.right & ~teacher.right, teacher.confidence, _BOTH_WRONG),
    ]


def _surest(where: np.ndarray, confidence: np.ndarray, count: int) -> list[int]:
    rows = np.flatnonzero(where)
    order = np.argsort(-confidence[rows], kind="stable")
    return [int(row) for row in rows[order][:count]]


def _data_uri(source: Source, index: int) -> str | None:
    try:
        image = read_image(source, index)
    except InputError:  # it was read a moment ago; the report is about the others then
        return None
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # JPEG blurs the few pixels of a small image.
    if max(image.size) <= 48:
        kind = "png"
        image.save(buffer, format="PNG", optimize=True)
    else:
        kind = "jpeg"
        image.save(buffer, format="JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
