"""Images as several models see them, decoded once: minibatches for comparing models.

In contrast to an `EvalBatch`, a batch holds only images that were read: no padding, no labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch

from distill.data.augment import EvalTransform
from distill.data.decode import UnreadableImageError, read_image
from distill.data.loading.prefetch import DeviceIterator, move
from distill.data.loading.rank_slice import Unreadable, empty_images
from distill.data.loading.workers import HostIterator, data_loader
from distill.data.mixing import to_unit
from distill.data.records import Source
from distill.errors import InputError


@dataclass(frozen=True)
class ViewBatch:
    """The m images of a minibatch that were read, in each view.

    views: for each view [m, 3, S, S] float32 in [0, 1], channels-last, on the device. num_skipped:
    unreadable images that the minibatch lacks.
    """

    views: tuple[torch.Tensor, ...]
    num_skipped: int

    def __len__(self) -> int:
        return len(self.views[0])

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.views


class HostViewBatch(NamedTuple):
    """The same on the CPU; views are uint8 [m, S, S, 3]."""

    views: tuple[torch.Tensor, ...]
    num_skipped: int


class ViewBuilder:
    """Batch number -> HostViewBatch. Batch k holds the images [k b, (k + 1) b) of the order; the
    last one may be smaller.
    """

    def __init__(
        self,
        source: Source,
        order: np.ndarray,
        transforms: Sequence[EvalTransform],
        batch_size: int,
        unreadable: Unreadable,
    ) -> None:
        self._source, self._order, self._transforms = source, order, tuple(transforms)
        self._batch_size, self._unreadable = batch_size, unreadable

    def __len__(self) -> int:
        return -(-len(self._order) // self._batch_size)

    def __getitem__(self, number: int) -> HostViewBatch | InputError:
        try:
            return self._build(number)
        except InputError as error:
            return error

    def _build(self, number: int) -> HostViewBatch:
        start = number * self._batch_size
        indices = self._order[start : start + self._batch_size]
        views = [empty_images(len(indices), each.image_size) for each in self._transforms]
        num_read = 0
        for index in indices:
            try:
                image = read_image(self._source, int(index))
            except UnreadableImageError:
                if self._unreadable == "error":
                    raise
                continue
            for view, transform in zip(views, self._transforms, strict=True):
                view.numpy()[num_read] = transform(image)
            num_read += 1
        return HostViewBatch(tuple(view[:num_read] for view in views), len(indices) - num_read)


class ViewLoader:
    """This process's minibatches: of all in turn, each whole on one process. Processes may have
    different numbers of them. One pass.

    Args:
        source: where records come from.
        order: [M] indices of the images, in the order in which they form minibatches.
        transforms: the views.
        batch_size: images of a minibatch.
        rank, world_size: this process among all.
        num_workers: processes that decode; 0 decodes in this one.
        device: where batches go.
        unreadable: "error" raises UnreadableImageError; "skip" leaves the image out and counts it.

    Raises:
        InputError: while iterating, what the workers found wrong with the data.
    """

    def __init__(
        self,
        source: Source,
        order: np.ndarray,
        transforms: Sequence[EvalTransform],
        batch_size: int,
        *,
        rank: int,
        world_size: int,
        num_workers: int,
        device: torch.device,
        unreadable: Unreadable,
    ) -> None:
        builder = ViewBuilder(source, order, transforms, batch_size, unreadable)
        requests = range(rank, len(builder), world_size)
        loader = data_loader(builder, requests, num_workers, 2, device, persistent=False)
        host = HostIterator[HostViewBatch](loader)

        def finish(batch: HostViewBatch) -> ViewBatch:
            views = tuple(to_unit(move(view, device)) for view in batch.views)
            return ViewBatch(views, batch.num_skipped)

        self._batches = DeviceIterator(host, finish, device)

    def __iter__(self) -> DeviceIterator[HostViewBatch, ViewBatch]:
        return self._batches

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the workers."""
        self._batches.close()
