"""Predictions made by hand, for tests of what follows from them."""

from collections.abc import Sequence

import numpy as np

from distill.evaluation.predictions import Predictions


def predicted(
    labels: Sequence[int], named: Sequence[int], confidence: Sequence[float] | None = None
) -> Predictions:
    """A model that names `named` for N images of the classes `labels`."""
    count = len(labels)
    shares = np.ones(count) if confidence is None else np.array(confidence)
    return Predictions(
        indices=np.arange(count),
        labels=np.array(labels),
        top=np.array(named)[:, None],
        rank=(np.array(named) != np.array(labels)).astype(np.int64),
        confidence=shares,
        finite=np.ones(count, dtype=bool),
        loss=np.zeros(count),
        agrees=None,
        teacher_kl=None,
        num_skipped=0,
    )
