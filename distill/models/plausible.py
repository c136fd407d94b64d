"""Warnings about an accuracy that is lower than one expects of the weights, with likely causes."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

_STANDARD_ERRORS = 3
_SHORTFALL = 3.0  # percent points; below that another build of torch or Pillow may be the reason
_CAUSES = (
    "the size of its images, mean and std, the order of the classes, or other weights than you mean"
)


@dataclass(frozen=True)
class Promise:
    """The accuracy that an export's record states: top-1 in percent, the number of images, and the
    file.
    """

    top1: float
    num_samples: int
    source: str


def read_promise(file: Path | None) -> Promise | None:
    """Return the accuracy in the distill.json of an export's folder; None if there is none."""
    if file is None or file.name != "model.safetensors":
        return None
    record = file.parent / "distill.json"
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        return Promise(float(content["top1"]), int(content["num_samples"]), str(record))
    except (OSError, ValueError, KeyError, TypeError):  # no record, or one without an accuracy
        return None


def near_chance(top1: float, num_samples: int, num_classes: int) -> bool:
    """Return whether an accuracy is no better than guessing: at most three standard errors of the
    binomial above 1 / classes.

    False if there are so few images that even 100 % would be within that.
    """
    chance = 1 / num_classes
    limit = (
        chance + _STANDARD_ERRORS * math.sqrt(chance * (1 - chance) / num_samples)
        if num_samples
        else 1.0
    )
    return limit < 1 and top1 / 100 <= limit


def doubts(
    name: str,
    top1: float,
    num_samples: int,
    num_classes: int,
    *,
    sees: str,
    promise: Promise | None = None,
) -> list[str]:
    """Return warnings about an accuracy, a sentence each; none if it is plausible.

    Args:
        top1: percent.
        sees: the view of the model, where most causes show.
        promise: a shortfall counts beyond three standard errors of both measurements, and three
            points.
    """
    if near_chance(top1, num_samples, num_classes):
        return [
            f"{name}: top-1 {top1:.2f} % of {num_samples} images is no better than guessing among"
            f" {num_classes} classes; likely causes: {_CAUSES}. It sees {sees}"
        ]
    if promise is None or not num_samples:
        return []
    share = min(max(promise.top1 / 100, 0.01), 0.99)
    error = 100 * math.sqrt(
        share * (1 - share) * (1 / num_samples + 1 / max(promise.num_samples, 1))
    )
    if promise.top1 - top1 <= max(_SHORTFALL, _STANDARD_ERRORS * error):
        return []
    return [
        f"{name}: top-1 {top1:.2f} % of {num_samples} images, where {promise.source} says"
        f" {promise.top1:.2f} %; likely causes: other images than it was measured on, {_CAUSES}. It"
        f" sees {sees}"
    ]
