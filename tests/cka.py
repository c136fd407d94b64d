"""Minibatch CKA by its definition, in float64 and by loops."""

import math
from collections.abc import Sequence

import numpy as np


def hsic1(first: np.ndarray, second: np.ndarray) -> float:
    """HSIC1 of two Gram matrices by loops (Song et al. 2012, Eq. 4)."""
    n = len(first)
    trace = sum(first[i, j] * second[j, i] for i in range(n) for j in range(n) if i != j)
    totals = [
        sum(gram[i, j] for i in range(n) for j in range(n) if i != j) for gram in (first, second)
    ]
    row_sums = [
        [sum(gram[i, j] for j in range(n) if i != j) for i in range(n)] for gram in (first, second)
    ]
    both = sum(a * b for a, b in zip(*row_sums, strict=True))
    whole = trace + totals[0] * totals[1] / ((n - 1) * (n - 2)) - 2 / (n - 2) * both
    return float(whole / (n * (n - 3)))


def by_definition(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> float:
    """Minibatch CKA of the float64 features [n, d] of each batch (Nguyen et al. 2020, Eq. 3), with
    batches weighted by n (n - 3).
    """
    weights = [len(batch) * (len(batch) - 3) for batch in first]

    def mean(one: Sequence[np.ndarray], two: Sequence[np.ndarray]) -> float:
        found = [hsic1(x @ x.T, y @ y.T) for x, y in zip(one, two, strict=True)]
        return float(np.average(found, weights=weights))

    return mean(first, second) / math.sqrt(mean(first, first) * mean(second, second))
