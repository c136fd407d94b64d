"""The figures of an evaluation: accuracy with its standard error, calibration, loss, agreement."""

import math
from dataclasses import asdict, dataclass, field

import numpy as np

from distill.evaluation.predictions import Predictions

NUM_BINS = 15


@dataclass(frozen=True)
class Scores:
    """How a model does on a set of images.

    Attributes:
        top1, top5: percent of the images; top-5 means all classes if there are fewer than five.
        top1_error: the standard error of top1 in percent points, sqrt(p (1 - p) / N).
        loss: mean cross-entropy (negative log-likelihood) in nats; None where an image may have
            several right classes.
        ece: expected calibration error in [0, 1], over 15 bins of equal width.
        adaptive_ece: the same over 15 bins with equal numbers of images.
        num_samples: images that were evaluated.
        num_skipped: unreadable images that were left out.
        agreement: percent of the images for which model and teacher name the same class.
        teacher_kl: mean KL(teacher || model) in nats at temperature 1.
        images_per_s: of the pass over the images, with all models that were in it.
    """

    top1: float
    top5: float
    top1_error: float
    loss: float | None
    ece: float
    adaptive_ece: float
    num_samples: int
    num_skipped: int = 0
    agreement: float | None = None
    teacher_kl: float | None = None
    images_per_s: float | None = field(default=None, compare=False)

    def as_dict(self) -> dict[str, float]:
        """The figures that are known, for JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def scores_of(predictions: Predictions, images_per_s: float | None = None) -> Scores:
    """Return the figures of predictions whose labels are the right classes."""
    return _scores(
        predictions,
        predictions.right,
        (predictions.rank < 5) & predictions.finite,
        float(np.mean(predictions.loss)),
        images_per_s,
    )


def scores_of_several(
    predictions: Predictions, right: np.ndarray, images_per_s: float | None = None
) -> Scores:
    """Return the figures of images of which each may have several right classes, as timm counts
    them for ImageNet-ReaL: an answer is right if it is any of them.

    Args:
        right: [N, M] int64, the right classes of each image, filled up with -1.
    """
    hits = predictions.top[:, :, None] == right[:, None, :]  # [N, top, M]
    found = hits.any(2) & predictions.finite[:, None]
    return _scores(predictions, found[:, 0], found.any(1), None, images_per_s)


def _scores(
    predictions: Predictions,
    correct1: np.ndarray,
    correct5: np.ndarray,
    loss: float | None,
    images_per_s: float | None,
) -> Scores:
    count = len(predictions)
    share = float(np.mean(correct1))
    agrees, teacher_kl = predictions.agrees, predictions.teacher_kl
    return Scores(
        top1=100 * int(correct1.sum()) / count,
        top5=100 * int(correct5.sum()) / count,
        top1_error=100 * math.sqrt(share * (1 - share) / count),
        loss=loss,
        ece=calibration_error(predictions.confidence, correct1),
        adaptive_ece=adaptive_calibration_error(predictions.confidence, correct1),
        num_samples=count,
        num_skipped=predictions.num_skipped,
        agreement=None if agrees is None else 100 * int(agrees.sum()) / count,
        teacher_kl=None if teacher_kl is None else float(np.mean(teacher_kl)),
        images_per_s=images_per_s,
    )


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = NUM_BINS) -> float:
    """Expected calibration error: the mean over images of |accuracy - mean confidence| of their
    bin (Guo et al. 2017, arXiv 1706.04599, Eq. 3).

    Args:
        confidence: [N] probabilities; bin m has those in ((m - 1) / bins, m / bins].
        correct: [N] bool.
    """
    if not np.isfinite(confidence).all():
        return math.nan
    numbers = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(numbers, correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def adaptive_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, bins: int = NUM_BINS
) -> float:
    """The same over bins with equal numbers of images, in the order of their confidence (Nguyen
    and O'Connor 2015, arXiv 1508.05154). Of equal confidences the earlier image is first.
    """
    order = np.argsort(confidence, kind="stable")
    gaps = [float(part.sum()) for part in np.array_split((correct - confidence)[order], bins)]
    return sum(map(abs, gaps)) / len(confidence)
