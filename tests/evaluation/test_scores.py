"""Scores against counting by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from distill.evaluation.predictions import Predictions
from distill.evaluation.scores import (
    adaptive_calibration_error,
    calibration_error,
    scores_of,
    scores_of_several,
)


def predictions(top: list[list[int]], labels: list[int], rank: list[int]) -> Predictions:
    count = len(labels)
    return Predictions(
        indices=np.arange(count),
        labels=np.array(labels),
        top=np.array(top),
        rank=np.array(rank),
        confidence=np.linspace(0.3, 0.9, count),
        finite=np.ones(count, dtype=bool),
        loss=np.linspace(1, 2, count),
        agrees=np.arange(count) % 2 == 0,
        teacher_kl=np.linspace(0, 1, count),
        num_skipped=2,
    )


def test_scores_of_one_right_class() -> None:
    found = scores_of(predictions([[0, 1]] * 4, [0, 1, 0, 2], [0, 1, 0, 5]), images_per_s=3.0)
    assert (found.top1, found.top5) == (50, 75)
    assert found.top1_error == pytest.approx(100 * math.sqrt(0.25 / 4))
    assert found.loss == pytest.approx(1.5)
    assert found.agreement == 50
    assert found.teacher_kl == pytest.approx(0.5)
    assert (found.num_samples, found.num_skipped, found.images_per_s) == (4, 2, 3.0)


def test_an_answer_that_is_not_finite_is_not_right() -> None:
    made = predictions([[0, 1]] * 4, [0, 1, 0, 2], [0, 0, 1, 5])
    found = scores_of(replace(made, finite=np.array([True, False, False, True])))
    assert (found.top1, found.top5) == (25, 25)


def test_scores_of_several_right_classes() -> None:
    top = [[3, 1, 2, 0, 4], [5, 1, 2, 0, 4], [3, 1, 2, 0, 4], [7, 8, 9, 1, 2]]
    right = np.array([[3, 9, -1], [4, -1, -1], [3, -1, -1], [6, 5, 3]])
    found = scores_of_several(
        replace(predictions(top, [0] * 4, [0] * 4), finite=np.array([True, True, False, True])),
        right,
    )
    assert (found.top1, found.top5) == (25, 50)
    assert found.loss is None


def ece_by_hand(confidence: np.ndarray, correct: np.ndarray, bins: int) -> float:
    total = 0.0
    for number in range(bins):
        inside = (confidence > number / bins) & (confidence <= (number + 1) / bins)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            total += inside.mean() * gap
    return total


def test_calibration_error_over_bins_of_equal_width() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.random(1000)
    correct = generator.random(1000) < confidence**2
    found = calibration_error(confidence, correct)
    assert found == pytest.approx(ece_by_hand(confidence, correct, 15), abs=1e-12)
    assert found > 0.05
    edges = np.array([1 / 15, 2 / 15, 1.0])
    assert calibration_error(edges, np.array([True, True, True])) == pytest.approx(
        (14 / 15 + 13 / 15) / 3
    )


def test_a_calibrated_model_has_no_error() -> None:
    confidence = np.repeat([0.25, 0.5, 0.75], 400)
    correct = np.tile([True, False, False, False], 100)
    correct = np.concatenate([correct, np.tile([True, False], 200), ~correct])
    assert calibration_error(confidence, correct) == pytest.approx(0, abs=1e-12)


def test_calibration_error_over_bins_of_equal_numbers() -> None:
    generator = np.random.default_rng(1)
    confidence = generator.random(150) ** 4  # most bins of equal width would be nearly empty
    correct = generator.random(150) < 0.4
    order = np.argsort(confidence)
    expected = np.mean(
        [abs(correct[part].mean() - confidence[part].mean()) for part in order.reshape(15, 10)]
    )
    assert adaptive_calibration_error(confidence, correct) == pytest.approx(expected)


def test_an_answer_that_is_not_finite_shows() -> None:
    confidence = np.array([0.5, math.nan])
    assert math.isnan(calibration_error(confidence, np.array([True, False])))
