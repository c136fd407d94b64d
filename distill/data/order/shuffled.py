"""The order of samples: which sample, in which view, is at which position. A pure function of
(seed, step).

No permutation is ever stored. Each epoch's order is a keyed bijection of 0..n-1, evaluated for one
batch at a time, so a resumed run starts at any step at no cost, and 14 million samples take no more
memory than 10.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from distill.errors import InputError
from distill.rng import hash64, permute


@dataclass(frozen=True)
class BatchPlan:
    """Slots of a global batch of B samples, all of them or b.

    indices: [b] int64 into the source. views: [b] int64, which repeat of the image. positions: [b]
      int64, step * B + slot.
    """

    epoch: int
    indices: np.ndarray
    views: np.ndarray
    positions: np.ndarray


class TrainOrder(Protocol):
    """Which sample, in which view, is at which position."""

    num_samples: int
    batch_size_global: int
    seed: int
    repeats: int
    steps_per_epoch: int

    def batch(self, step: int, slots: np.ndarray | None = None) -> BatchPlan:
        """Some slots of the global batch of a step; None for all."""
        ...

    def successor(self, index: int, another_shard: bool = False) -> int:
        """The sample that replaces an unreadable one; from another shard if its own is."""
        ...

    def rows_of(self, indices: np.ndarray) -> np.ndarray:
        """[b] indices of samples that are drawn -> [b] int64, their ranks among these."""
        ...


def too_few_samples(batch_size_global: int, num_samples: int, of: int | None) -> InputError:
    """The error for a batch larger than the data, `of` the number before data.fraction and
    data.keep_classes.
    """
    part = "" if of is None else f" (a part of {of}, by data.fraction or data.keep_classes)"
    return InputError(
        f"train.batch_size_global is {batch_size_global} and there are {num_samples} training"
        f" samples{part}: set it to {num_samples} or less"
    )


class Order:
    """The global order of a training run over records that can be read in any order.

    An epoch has n // batch_size_global steps and drops the tail, as timm does. With repeated
    augmentation it has as many steps, so only about 1 / repeats of the images appear in it, each
    `repeats` times and, where the batch size allows, in one batch.

    Args:
        num_samples: records in the source.
        batch_size_global: B.
        seed: of the run.
        repeats: views of an image in a row.
        subset: ascending indices to draw from (`stratified_subset`); None for all.

    Raises:
        InputError: the batch is larger than the data.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size_global: int,
        seed: int,
        repeats: int = 1,
        subset: np.ndarray | None = None,
    ) -> None:
        self.num_samples = num_samples if subset is None else len(subset)
        self.batch_size_global = batch_size_global
        self.seed = seed
        self.repeats = repeats
        self._source_size = num_samples
        self._subset = subset
        self.steps_per_epoch = self.num_samples // batch_size_global
        if self.steps_per_epoch == 0:
            raise too_few_samples(
                batch_size_global, self.num_samples, None if subset is None else num_samples
            )

    def batch(self, step: int, slots: np.ndarray | None = None) -> BatchPlan:
        """Some slots of the global batch of a step, None for all; O(B) in time and memory.

        Neighbours (2i, 2i + 1), which mixup and cutmix join, are different images wherever the
        batch has enough of them. The repeats of an image lie far apart, so that different processes
        see them.
        """
        size = self.batch_size_global
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        ranks, views = np.divmod(
            np.arange(step_in_epoch * size, (step_in_epoch + 1) * size), self.repeats
        )
        if self.repeats > 1:
            ranks, views = _spread(ranks, views)
        if slots is None:
            slots = np.arange(size)
        ranks, views = ranks[slots], views[slots]
        indices = permute(ranks, self.num_samples, hash64(self.seed, "order", epoch))
        if self._subset is not None:
            indices = self._subset[indices]
        return BatchPlan(epoch, indices, views, step * size + slots)

    def successor(self, index: int, another_shard: bool = False) -> int:
        """The index that replaces an unreadable one: the next in the order of the source (within
        the subset), around the end.
        """
        if self._subset is None:
            return (index + 1) % self._source_size
        return int(
            self._subset[(int(np.searchsorted(self._subset, index)) + 1) % len(self._subset)]
        )

    def rows_of(self, indices: np.ndarray) -> np.ndarray:
        """[b] indices of samples that are drawn -> [b] int64, their ranks among these."""
        return indices if self._subset is None else np.searchsorted(self._subset, indices)


def _spread(ranks: np.ndarray, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reorder one batch so that neighbours are different images.

    View-major order does that whenever two images are whole in the batch. In smaller batches
    position i of the image-major order is paired with i + B / 2 instead, which fails only if one
    image fills more than half of the batch.
    """
    order = np.lexsort((ranks, views))
    half = len(ranks) // 2
    pairs = ranks[order][: 2 * half].reshape(half, 2)
    if (pairs[:, 0] == pairs[:, 1]).any():
        order = np.concatenate(
            [np.arange(2 * half).reshape(2, half).T.ravel(), np.arange(2 * half, len(ranks))]
        )
    return ranks[order], views[order]
