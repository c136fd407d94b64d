"""Is a measured accuracy what one expects of these weights? Warnings with the likely causes where
it is not.
"""

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
    """What a record beside weights says they scored: top-1 in percent, on how many images, and the
    file that says it.
    """

    top1: float
    num_samples: int
    source: str


def promise_beside(file: Path | None) -> Promise | None:
    """The promise in the distill.json beside an export's weights; None where there is none."""
    if file is None or file.name != "model.safetensors":
        return None
    record = file.parent / "distill.json"
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        return Promise(float(content["top1"]), int(content["num_samples"]), str(record))
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # no record of ours, or weights of which nothing was measured
        return None


def near_chance(top1: float, num_samples: int, num_classes: int) -> bool:
    """Whether an accuracy is no better than guessing: at most three standard errors of the binomial
    above 1 / classes.

    False where so few images could not tell guessing from a model that is right every time.
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
    """Warnings about an accuracy, a sentence each; none where it is plausible.

    Args:
        top1: percent.
        sees: what the model sees, since most causes show there.
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
