import itertools

import numpy as np
import pytest

from distill.data.labels import check_labels, stratified_subset
from distill.errors import InputError

SIZES = (1, 3, 10, 50, 137, 1300)
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(len(SIZES)), SIZES))


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 0.6, 0.999])
def test_each_class_keeps_its_rounded_share_and_at_least_one(fraction: float) -> None:
    subset = stratified_subset(LABELS, fraction, seed=1)
    assert (np.diff(subset) > 0).all()
    assert np.bincount(LABELS[subset]).tolist() == [max(1, int(fraction * n + 0.5)) for n in SIZES]


def test_smaller_fractions_are_inside_larger_ones() -> None:
    parts = [set(stratified_subset(LABELS, f, seed=1).tolist()) for f in (0.1, 0.3, 0.6, 0.9, 1.0)]
    assert all(small < large for small, large in itertools.pairwise(parts))
    assert len(parts[-1]) == len(LABELS)


def test_the_choice_depends_on_the_seed_alone() -> None:
    assert np.array_equal(stratified_subset(LABELS, 0.3, 1), stratified_subset(LABELS, 0.3, 1))
    a, b = (set(stratified_subset(LABELS, 0.3, seed).tolist()) for seed in (1, 2))
    assert 0.2 < len(a & b) / len(a) < 0.4  # as two independent draws


def test_classes_without_samples_stay_empty() -> None:
    assert np.bincount(
        np.array([0, 0, 4, 4])[stratified_subset(np.array([0, 0, 4, 4]), 0.5, 0)], minlength=6
    ).tolist() == [1, 0, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 1, 5], "row 2 has label 5.*0 to 4"), ([0, -1, -1], "row 1 has label -1.*test split")],
)
def test_labels_outside_the_class_list_are_refused(labels: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_labels(np.array(labels), 5, "data.train")
    check_labels(np.array([0, 4]), 5, "data.train")
