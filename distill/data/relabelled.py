"""A source whose labels are counted in another class list: the only place where labels are
renumbered for a model.
"""

from collections.abc import Sequence

import numpy as np

from distill.data.records import LabelsOnRead, Source


class Relabelled:
    """The records of a source, label i of which becomes `labels_for[i]`.

    Args:
        source: with labels of C classes.
        labels_for: [C] int64.
        classes: the names that the new labels count.
    """

    def __init__(self, source: Source, labels_for: np.ndarray, classes: tuple[str, ...]) -> None:
        self._source = source
        self.classes = classes
        self.shards, self.shard_sizes = source.shards, source.shard_sizes
        own = source.labels
        self.labels: np.ndarray | LabelsOnRead
        self.labels = (
            labels_for[own] if isinstance(own, np.ndarray) else _Renumbered(own, labels_for)
        )

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int) -> bytes | np.ndarray:
        return self._source.read(index)

    def describe(self, index: int) -> str:
        return self._source.describe(index)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def fingerprint(self) -> str:
        return self._source.fingerprint()

    def prefetch(self, shards: Sequence[int]) -> None:
        self._source.prefetch(shards)


class _Renumbered:
    def __init__(self, labels: LabelsOnRead, labels_for: np.ndarray) -> None:
        self._labels, self._labels_for = labels, labels_for

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return np.asarray(self._labels_for[self._labels[indices]])
