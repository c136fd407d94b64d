"""Batches on the device.

1. The order (`Order`, or `LaneOrder` for streams) says which samples, in which view, stand in the
  global batch of a step.
2. `RankSlice` selects this process's micro-batches; a request is (step, micro-batch).
3. A worker reads the records, decodes each image once, and augments each view with generators
   seeded from (seed, epoch, sample, view).
4. It stacks them into one uint8 [b, H, W, 3] tensor, in memory that the main process shares.
5. Pinned memory and a side stream bring the next batch to a CUDA device while the current one is
  used.
6. There pixels become float32 in [0, 1], channels-last, and mixup and cutmix join neighbours, drawn
  from (seed, step, group).

Every stage is a pure function of its keys, so the global batch of a step is the same bit for bit
with any number of processes, workers and micro-batches, and a run resumes at any step by asking for
it.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from distill.data.augment import EvalTransform
from distill.data.loading.prefetch import DeviceIterator, move
from distill.data.loading.rank_slice import (
    EvalBuilder,
    HostBatch,
    HostEvalBatch,
    RankSlice,
    TrainBuilder,
    Unreadable,
)
from distill.data.loading.workers import HostIterator, data_loader
from distill.data.mixing import Mixing, to_unit
from distill.data.order.shuffled import TrainOrder
from distill.data.pipelines import TrainView
from distill.data.records import Source
from distill.errors import InputError

__all__ = ["Batch", "EvalBatch", "EvalLoader", "RankSlice", "TrainLoader"]


@dataclass(frozen=True)
class Batch:
    """A training micro-batch of b samples.

    images: [b, 3, H, W] float32 in [0, 1], channels-last, mixed. label_probs: [b, K] float32, mixed
    one-hot labels. labels: [b] int64, each sample's own. positions: [b] int64, step * B + slot. All
    on the device.

    epoch: of all samples, counted from the start of the stage. indices: [b] int64, of the samples
    in the source. views: [b] int64, which view of a sample in its epoch. On the host. With the seed
    they determine the pixels before mixing, unless epochs repeat. num_skipped: samples replaced
    because unreadable.
    """

    step: int
    micro: int
    images: torch.Tensor
    label_probs: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    epoch: int
    indices: np.ndarray
    views: np.ndarray
    num_skipped: int

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.images, self.label_probs, self.labels, self.positions


@dataclass(frozen=True)
class EvalBatch:
    """An evaluation batch, always of full size b.

    images: [b, 3, H, W] float32 in [0, 1], channels-last. labels, indices: [b] int64. valid: [b]
    bool, false for padding and for unreadable images. All on the device. num_skipped: unreadable
    images among them.
    """

    images: torch.Tensor
    labels: torch.Tensor
    valid: torch.Tensor
    indices: torch.Tensor
    num_skipped: int

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.images, self.labels, self.valid, self.indices


class TrainLoader:
    """Micro-batches of this process from `first_step` up to, not including, `last_step` (None:
    without end), in order.

    One pass, in which the workers live from the first batch to `close`. A fresh loader resumes
    anywhere.

    Args:
        source: where records come from.
        order: the global order; its seed also keys augmentation.
        transform: the training view; it also decodes.
        mixing: mixup and cutmix.
        shard: this process's part; its sizes must multiply to the order's global batch.
        num_workers: processes that decode; 0 decodes in this one, and leaves its random state as it
            was.
        prefetch_batches: micro-batches each worker prepares ahead.
        device: where batches go.
        unreadable: "error" raises UnreadableImageError; "skip" puts the next readable image in its
            place, and counts it.
        first_step, last_step: global steps.
        order_starts: the global step that is the order's step 0.
        distinct_epochs: of the order; later ones repeat them in turn. None: all differ.
        ahead: called with the order's step and this process's slots before they are read, so that
            a stream can prefetch.

    Raises:
        InputError: sizes that do not fit each other; while iterating, what the workers found wrong
            with the data.
    """

    def __init__(
        self,
        source: Source,
        order: TrainOrder,
        transform: TrainView,
        mixing: Mixing,
        shard: RankSlice,
        *,
        num_workers: int,
        prefetch_batches: int,
        device: torch.device | str,
        unreadable: Unreadable = "error",
        first_step: int = 0,
        last_step: int | None = None,
        order_starts: int = 0,
        distinct_epochs: int | None = None,
        ahead: Callable[[int, np.ndarray], None] | None = None,
    ) -> None:
        if shard.batch_size_global != order.batch_size_global:
            raise InputError(
                f"train.batch_size_global is {order.batch_size_global}, but {shard.world_size}"
                f" processes x {shard.micro_batch} samples x {shard.accumulation} micro-batches"
                f" make {shard.batch_size_global}: choose sizes that multiply to it"
            )
        if mixing.enabled and shard.micro_batch % 2:
            raise InputError(
                f"train.micro_batch_size: {shard.micro_batch} a process is odd, and mixing needs"
                " pairs: make it even"
            )
        self._device = torch.device(device)
        self._mixing, self._shard = mixing, shard
        self.num_workers = num_workers
        self._builder = builder = TrainBuilder(
            source,
            order,
            transform,
            mixing,
            shard,
            unreadable,
            order_starts,
            ahead,
            distinct_epochs,
        )
        requests = _Requests(first_step, last_step, shard.accumulation)
        self._loader = data_loader(
            builder, requests, num_workers, prefetch_batches, self._device, persistent=False
        )
        host = HostIterator[HostBatch](self._loader)
        self._batches = DeviceIterator(host, self._finish, self._device)

    def _finish(self, host: HostBatch) -> Batch:
        slots = self._shard.slots(host.micro)
        positions = torch.from_numpy(host.step * self._shard.batch_size_global + slots)
        plan = self._mixing.plan(self._builder.repeated(host.step), slots)
        # The small tensors first: they are not pinned, and would wait on the stream for the images.
        labels, positions = (
            move(t, self._device) for t in (torch.from_numpy(host.labels), positions)
        )
        if plan is not None:
            plan = plan._replace(
                lam=move(plan.lam, self._device), boxes=move(plan.boxes, self._device)
            )
        images = move(host.images, self._device)
        mixed, label_probs = self._mixing.apply(images, labels, plan)
        return Batch(
            step=host.step,
            micro=host.micro,
            images=mixed,
            label_probs=label_probs,
            labels=labels,
            positions=positions,
            epoch=host.epoch,
            indices=host.indices,
            views=host.views,
            num_skipped=host.num_skipped,
        )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def ready(self, timeout_s: float) -> bool:
        """Whether the micro-batches of the next step are ready; waits about `seconds` for them, or
        makes them if there are no workers.

        Raises:
            InputError: what is wrong with one of them, as soon as it is known.
        """
        return self._batches.ready(self._shard.accumulation, timeout_s)

    def close(self) -> None:
        """Stop the workers. Further batches do not come."""
        self._batches.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EvalLoader:
    """Every sample once over all processes, in batches of one static size, the same number on each
    process.

    May be iterated again; the workers stay until `close`.

    Args:
        source: where records come from.
        transform: the evaluation view.
        batch_size: b, of one process.
        rank, world_size: this process among all.
        num_workers: processes that decode; 0 decodes in this one.
        device: where batches go.
        unreadable: "error" raises UnreadableImageError; "skip" marks the sample invalid and counts
            it.

    Raises:
        InputError: while iterating, what the workers found wrong with the data.
    """

    def __init__(
        self,
        source: Source,
        transform: EvalTransform,
        batch_size: int,
        *,
        rank: int,
        world_size: int,
        num_workers: int,
        device: torch.device | str,
        unreadable: Unreadable = "error",
    ) -> None:
        self._device = torch.device(device)
        builder = EvalBuilder(source, transform, batch_size, rank, world_size, unreadable)
        self._num_batches = len(builder)
        self.num_workers = num_workers
        self._loader = data_loader(
            builder, range(len(builder)), num_workers, 2, self._device, persistent=True
        )
        self._batches: DeviceIterator[HostEvalBatch, EvalBatch] | None = None

    def __len__(self) -> int:
        """Batches a process."""
        return self._num_batches

    def __iter__(self) -> Iterator[EvalBatch]:
        host = HostIterator[HostEvalBatch](self._loader)
        self._batches = DeviceIterator(host, self._finish, self._device)
        return self._batches

    def ready(self, timeout_s: float) -> bool:
        """Whether the next batch of the pass that was begun last comes without a wait. As
        `TrainLoader.ready`.
        """
        assert self._batches is not None
        return self._batches.ready(1, timeout_s)

    def _finish(self, host: HostEvalBatch) -> EvalBatch:
        images, labels, valid, indices = (move(t, self._device) for t in host[:4])
        return EvalBatch(to_unit(images), labels, valid, indices, host.num_skipped)

    def close(self) -> None:
        """Stop the workers."""
        if self._batches is not None:
            self._batches.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Requests:
    """(step, micro) in order; what the DataLoader takes for a sampler."""

    def __init__(self, first_step: int, last_step: int | None, accumulation: int) -> None:
        self._first, self._last, self._accumulation = first_step, last_step, accumulation

    def __iter__(self) -> Iterator[tuple[int, int]]:
        steps = (
            itertools.count(self._first) if self._last is None else range(self._first, self._last)
        )
        return ((step, micro) for step in steps for micro in range(self._accumulation))
