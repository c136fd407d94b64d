"""The worker's side of the loaders: which slots make a micro-batch, and how they become uint8
pixels.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from distill.data.augment import EvalTransform, sample_key
from distill.data.decode import SKIP_ADVICE, UnreadableImageError, read_decoded, read_image
from distill.data.mixing import Mixing
from distill.data.order.shuffled import TrainOrder
from distill.data.pipelines import TrainView
from distill.data.records import Source, UnreadableShardError
from distill.errors import InputError
from distill.rng import seed_global, seeded

Unreadable = Literal["error", "skip"]

# So many broken records in a row mean a lost disk rather than bad luck.
_MAX_SUBSTITUTES = 100


@dataclass(frozen=True)
class RankSlice:
    """A process's part of every global batch: micro-batch a of rank r holds slots [(a W + r) m, (a
    W + r + 1) m).
    """

    rank: int
    world_size: int
    micro_batch: int
    accumulation: int

    @property
    def batch_size_global(self) -> int:
        return self.world_size * self.micro_batch * self.accumulation

    def slots(self, micro: int) -> np.ndarray:
        """[micro_batch] int64 slots within the global batch."""
        start = (micro * self.world_size + self.rank) * self.micro_batch
        return np.arange(start, start + self.micro_batch)


class HostBatch(NamedTuple):
    """A training micro-batch on the CPU. images: [b, H, W, 3] uint8; labels, indices, views: [b]
    int64. `epoch`, indices and views are those that the order asks for, also where an unreadable
    image was replaced.

    A tensor costs a worker and its reader 0.25 ms on its way, an array of this length nothing.
    """

    step: int
    micro: int
    images: torch.Tensor
    labels: np.ndarray
    epoch: int
    indices: np.ndarray
    views: np.ndarray
    num_skipped: int


class HostEvalBatch(NamedTuple):
    """An evaluation batch on the CPU. images: [b, H, W, 3] uint8; labels, indices: [b] int64;
    valid: [b] bool.
    """

    images: torch.Tensor
    labels: torch.Tensor
    valid: torch.Tensor
    indices: torch.Tensor
    num_skipped: int


class TrainBuilder:
    """(step, micro) -> HostBatch, a map-style data set for torch's DataLoader.

    Steps are those of the run; the order's step 0 is `first_step`, and after `distinct_epochs`
    epochs of it batches repeat. `ahead` is called with the order's step and this process's slots
    before they are read.

    An InputError is returned rather than raised: torch would wrap it into a page of traceback on
    its way to the main process.
    """

    def __init__(
        self,
        source: Source,
        order: TrainOrder,
        transform: TrainView,
        mixing: Mixing,
        shard: RankSlice,
        unreadable: Unreadable,
        first_step: int = 0,
        ahead: Callable[[int, np.ndarray], None] | None = None,
        distinct_epochs: int | None = None,
    ) -> None:
        self._source, self._order, self._transform = source, order, transform
        self._mixing, self._shard, self._unreadable = mixing, shard, unreadable
        self._first_step, self._ahead = first_step, ahead
        self._distinct = distinct_epochs and distinct_epochs * order.steps_per_epoch

    def repeated(self, step: int) -> int:
        """Return the step whose samples, augmentation and mixing a step has: itself, or an earlier
        one if epochs repeat.
        """
        if self._distinct is None:
            return step
        return self._first_step + (step - self._first_step) % self._distinct

    def __getitem__(self, request: tuple[int, int]) -> HostBatch | InputError:
        try:
            with _global_state_restored():
                return self._build(*request)
        except InputError as error:
            return error

    def _build(self, step: int, micro: int) -> HostBatch:
        slots = self._shard.slots(micro)
        repeated = self.repeated(step)
        if self._ahead:
            self._ahead(repeated - self._first_step, slots)
        batch = self._order.batch(repeated - self._first_step, slots)
        indices, views = batch.indices, batch.views
        shown = indices.copy()
        images = empty_images(len(slots), self._transform.image_size)
        pixels = images.numpy()
        num_skipped = 0
        for index, members in _grouped(
            indices
        ):  # an image whose views share the micro-batch is decoded once
            image, substitute = self._read(index)
            if substitute != index:
                shown[members] = substitute
                num_skipped += len(members)
            for slot in members:
                seed_global(sample_key(self._order.seed, batch.epoch, index, int(views[slot])))
                pixels[slot] = self._transform(image)
        return HostBatch(
            step,
            micro,
            images,
            self._labels(shown),
            batch.epoch + (step - repeated) // self._order.steps_per_epoch,
            indices,
            views,
            num_skipped,
        )

    def _labels(self, shown: np.ndarray) -> np.ndarray:
        """Labels of samples that have been read; 0 if they belong to other classes and are not
        used.
        """
        return (
            self._source.labels[shown]
            if self._mixing.labelled
            else np.zeros(len(shown), dtype=np.int64)
        )

    def _decoded(self, index: int) -> Any:
        return read_decoded(self._source, index, self._transform.decode)

    def _read(self, index: int) -> tuple[Any, int]:
        """The decoded image, and the index it came from: the next readable one when unreadable
        images are skipped.
        """
        if self._unreadable == "error":
            return self._decoded(index), index
        candidate, tried = index, set[int]()
        for _ in range(_MAX_SUBSTITUTES):
            try:
                return self._decoded(candidate), candidate
            except UnreadableImageError as error:
                tried.add(candidate)
                last, failed = error, candidate
                candidate = self._order.successor(
                    failed, isinstance(error.__cause__, UnreadableShardError)
                )
                if candidate in tried:  # all that its shard has
                    candidate = self._order.successor(failed, another_shard=True)
        reason = str(last).removesuffix(SKIP_ADVICE)
        raise InputError(
            f"{_MAX_SUBSTITUTES} images in a row are unreadable from {self._source.describe(index)}"
            f" on; the last one: {reason}"
        )


class EvalBuilder:
    """Batch number -> HostEvalBatch. Batch j of rank r holds samples [(j W + r) b, (j W + r + 1)
    b), the last one repeated past the end.
    """

    def __init__(
        self,
        source: Source,
        transform: EvalTransform,
        batch_size: int,
        rank: int,
        world_size: int,
        unreadable: Unreadable,
    ) -> None:
        self._source, self._transform, self._batch_size = source, transform, batch_size
        self._rank, self._world_size, self._unreadable = rank, world_size, unreadable

    def __len__(self) -> int:
        return -(-len(self._source) // (self._batch_size * self._world_size))

    def __getitem__(self, number: int) -> HostEvalBatch | InputError:
        try:
            return self._build(number)
        except InputError as error:
            return error

    def _build(self, number: int) -> HostEvalBatch:
        start = (number * self._world_size + self._rank) * self._batch_size
        wanted = np.arange(start, start + self._batch_size)
        valid = wanted < len(self._source)
        read = np.ones(self._batch_size, dtype=bool)
        indices = np.minimum(wanted, len(self._source) - 1)
        images = empty_images(self._batch_size, self._transform.image_size)
        pixels = images.numpy()
        num_skipped = 0
        for index, members in _grouped(indices):
            try:
                pixels[members] = self._transform(read_image(self._source, index))
            except UnreadableImageError:
                if self._unreadable == "error":
                    raise
                pixels[members] = 0
                num_skipped += int(valid[members].sum())
                valid[members] = read[members] = False
        labels = np.zeros(self._batch_size, dtype=np.int64)
        labels[read] = self._source.labels[indices[read]]
        return HostEvalBatch(
            images,
            torch.from_numpy(labels),
            torch.from_numpy(valid),
            torch.from_numpy(indices),
            num_skipped,
        )


def empty_images(count: int, size: int) -> torch.Tensor:
    """[count, size, size, 3] uint8; in a worker in memory that the main process shares, where it
    would be copied to otherwise.
    """
    shape = (count, size, size, 3)
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def _grouped(indices: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each distinct index with the slots that hold it."""
    unique, inverse = np.unique(indices, return_inverse=True)
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    return zip((int(i) for i in unique), members, strict=True)


def _global_state_restored() -> contextlib.AbstractContextManager[None]:
    """Random state for the block. In the main process the generators belong to the model; in a
    worker nothing else draws from them.
    """
    return seeded(0) if torch.utils.data.get_worker_info() is None else contextlib.nullcontext()
