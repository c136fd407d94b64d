"""The order of a stream of shards: a pure function of (seed, step) that reads each shard in one
place at a time.

An epoch's shards are permuted and laid end to end. The N samples are cut into L equal lanes, so any
number of shards of any sizes will do; a lane's samples are shuffled within blocks, and each global
batch of B takes B / L from every lane. It does not depend on processes or workers, and has no state
to save: a resumed run computes its step and reads at most the shards under one block of each lane
again.

Slots 2i and 2i + 1 of a batch belong to two lanes, so what mixup and cutmix join comes from two
places of the data. A pair of lanes fills 2 B / L slots in a row.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from distill.data.order.shuffled import BatchPlan, too_few_samples
from distill.rng import hash64, hash64_array

_MOST_LANES = 64
# From 256 samples on a block of shuffled shards cannot be distinguished from a permutation; above
# 4,096 no gain was found (docs/log.md).
_BLOCK_BOUNDS = (256, 4096)
# Blocks whose permutation is cached, for each lane; a batch uses one, repeats of the loader's
# workers two.
_KEPT_BLOCKS = 2


def default_lanes(batch_size_global: int, micro_batch_size: int | None) -> int:
    """The most lanes, up to 64, that a batch can be taken from evenly; the fewest beyond where
    micro-batches are too small for that.

    From what the recipe says alone, never from the number of processes: another number of lanes is
    another order.
    """
    fitting = fitting_lanes(batch_size_global, micro_batch_size)
    return max((n for n in fitting if n <= _MOST_LANES), default=fitting[0])


def fitting_lanes(batch_size_global: int, micro_batch_size: int | None) -> list[int]:
    """All numbers of lanes that a batch can be taken from evenly, ascending: one a sample at the
    most, which always is one.
    """
    return [
        n
        for n in range(2, batch_size_global + 1, 2)
        if lanes_fit(n, batch_size_global, micro_batch_size)
    ]


def lanes_fit(lanes: int, batch_size_global: int, micro_batch_size: int | None) -> bool:
    """Whether each micro-batch is made of whole pairs of lanes."""
    return (
        batch_size_global % lanes == 0
        and (micro_batch_size or batch_size_global) % (2 * batch_size_global // lanes) == 0
    )


def default_block(shard_sizes: np.ndarray, subset: np.ndarray | None = None) -> int:
    """A quarter of the mean shard, at least 256 samples and at most 4,096: so a lane has one or two
    shards under a block, 1.25 on average.

    Of a subset, what a shard holds of it counts, and shards without any do not: a block is so many
    samples that come.

    Args:
        shard_sizes: [S] samples of each shard.
        subset: ascending indices that are drawn from; None for all.
    """
    drawn = np.diff(_firsts_of(shard_sizes, subset))
    quarter = int(drawn.sum()) // (4 * max(1, int(np.count_nonzero(drawn))))
    least, most = _BLOCK_BOUNDS
    return min(max(quarter, least), most)


def _firsts_of(shard_sizes: np.ndarray, subset: np.ndarray | None) -> np.ndarray:
    """[S + 1] where each shard begins among the samples that are drawn from, and their number."""
    starts = np.concatenate([[0], np.cumsum(shard_sizes)]).astype(np.int64)
    return starts if subset is None else np.searchsorted(subset, starts)


class _Epoch(NamedTuple):
    """shards: [S] the shuffled shards. starts: [S + 1] where each begins among the samples laid end
    to end.
    """

    shards: np.ndarray
    starts: np.ndarray


class LaneOrder:
    """The global order of a stream.

    An epoch has N // batch_size_global steps and drops the tail. With repeated augmentation it has
    as many steps and shows about 1 / repeats of the images, the repeats of one in a row in their
    lane: mostly in one micro-batch, where it is read and decoded once.

    Args:
        shard_sizes: [S] samples of each shard.
        batch_size_global: B, a multiple of `lanes`.
        seed: of the run.
        lanes: L, even.
        block: samples within which a lane is shuffled.
        repeats: views of an image in a row.
        subset: ascending indices to draw from; None for all.

    Raises:
        InputError: the batch is larger than the data.
    """

    def __init__(
        self,
        shard_sizes: np.ndarray,
        batch_size_global: int,
        seed: int,
        *,
        lanes: int,
        block: int,
        repeats: int = 1,
        subset: np.ndarray | None = None,
    ) -> None:
        assert lanes_fit(lanes, batch_size_global, None), (lanes, batch_size_global)
        self._subset = subset
        # From here on a sample is its rank among those drawn from: shard s holds ranks [firsts[s],
        # firsts[s + 1]).
        self._firsts = _firsts_of(shard_sizes, subset)
        self.num_samples = int(self._firsts[-1])
        self.batch_size_global, self.seed, self.repeats = batch_size_global, seed, repeats
        self.lanes, self.block = lanes, block
        self.steps_per_epoch = self.num_samples // batch_size_global
        if self.steps_per_epoch == 0:
            raise too_few_samples(
                batch_size_global,
                self.num_samples,
                None if subset is None else int(np.sum(shard_sizes)),
            )
        self._per_lane = batch_size_global // lanes  # slots of a batch
        self._lane_length = self.num_samples // lanes
        self._shown = -(
            -self.steps_per_epoch * self._per_lane // repeats
        )  # images of a lane that an epoch comes to
        self._epoch = lru_cache(2)(self._lay_out)
        self._permutation = lru_cache(_KEPT_BLOCKS * lanes)(self._shuffle)

    def __getstate__(self) -> dict[str, object]:
        return {
            key: value
            for key, value in self.__dict__.items()
            if key not in ("_epoch", "_permutation")
        }

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._epoch = lru_cache(2)(self._lay_out)
        self._permutation = lru_cache(_KEPT_BLOCKS * self.lanes)(self._shuffle)

    def batch(self, step: int, slots: np.ndarray | None = None) -> BatchPlan:
        """Some slots of the global batch of a step; None for all. Time and memory are those of the
        lanes that the slots are in.
        """
        slots = np.arange(self.batch_size_global) if slots is None else slots
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        lanes, places = self._lanes_of(slots)
        images, views = np.divmod(step_in_epoch * self._per_lane + places, self.repeats)
        blocks, within = self._block_of(lanes, images)
        ranks = np.empty(len(slots), dtype=np.int64)
        by_block = np.lexsort((blocks, lanes))
        changes = np.flatnonzero(np.diff(lanes[by_block]) | np.diff(blocks[by_block])) + 1
        for members in np.split(by_block, changes):
            first, permutation = self._permutation(
                epoch, int(lanes[members[0]]), int(blocks[members[0]])
            )
            ranks[members] = first + permutation[within[members]]
        return BatchPlan(
            epoch, self._indices(epoch, ranks), views, step * self.batch_size_global + slots
        )

    def shards_ahead(self, step: int, slots: np.ndarray, end: int | None = None) -> np.ndarray:
        """The shards under the blocks that these slots read at a step, then under those that they
        read within one block from there.

        Args:
            end: the step at which reading stops; what only this step and later ones read is left
                out. None: it does not stop.

        Returns:
            [n] int64, each once, the most urgent first.
        """
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        first = step_in_epoch * self._per_lane // self.repeats
        last = ((step_in_epoch + 1) * self._per_lane - 1) // self.repeats + self.block
        if end is not None:
            last = min(last, self._last_image(end - epoch * self.steps_per_epoch))
        lanes = np.unique(self._lanes_of(slots)[0])
        now = self._block_of(lanes, first)[0]
        later = self._block_of(lanes, min(last, self._shown - 1))[0]
        shards = []
        for number in range(int((later - now).max()) + 1):
            there = later - now >= number
            shards.append(self._shards_under(epoch, lanes[there], now[there] + number))
        if (beyond := min(last, 2 * self._shown - 1) - self._shown) >= 0:
            ends = self._block_of(lanes, beyond)[0]
            for block in range(int(ends.max()) + 1):
                there = ends >= block
                shards.append(
                    self._shards_under(epoch + 1, lanes[there], np.full(int(there.sum()), block))
                )
        found = np.concatenate(shards)
        _, firsts = np.unique(found, return_index=True)
        return np.asarray(found[np.sort(firsts)])

    def successor(self, index: int, another_shard: bool = False) -> int:
        """What stands in for an unreadable sample: the next one of its shard, around the end, or
        one of the next shard.
        """
        rank = index if self._subset is None else int(np.searchsorted(self._subset, index))
        sizes = np.diff(self._firsts)
        shard = int(np.searchsorted(self._firsts, rank, side="right")) - 1
        within = rank - int(self._firsts[shard])
        if another_shard:
            filled = np.flatnonzero(sizes)
            shard = int(filled[(np.searchsorted(filled, shard) + 1) % len(filled)])
        else:
            within += 1
        rank = int(self._firsts[shard]) + within % int(sizes[shard])
        return rank if self._subset is None else int(self._subset[rank])

    def rows_of(self, indices: np.ndarray) -> np.ndarray:
        """[b] indices of samples that are drawn -> [b] int64, their ranks among these."""
        return indices if self._subset is None else np.searchsorted(self._subset, indices)

    def shards_at_once(self, lanes: int) -> int:
        """The mean number of shards under the current and next blocks of so many lanes: those that
        a machine holds at a time.
        """
        sizes = np.diff(self._firsts)
        filled = sizes[sizes > 0]
        return min(len(filled), math.ceil(lanes * (2 * self.block / float(filled.mean()) + 1)))

    # ---- lanes, blocks, shards -------------------------------------------------------------------

    def _last_image(self, num_steps: int) -> int:
        """The last image of a lane that so many steps read, counted from the start of the first
        one's epoch.
        """
        epochs, steps = divmod(num_steps, self.steps_per_epoch)
        return epochs * self._shown + (steps * self._per_lane - 1) // self.repeats

    def num_lanes_of(self, slots: np.ndarray) -> int:
        """How many lanes these slots read."""
        return len(np.unique(self._lanes_of(slots)[0]))

    def _lanes_of(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lane of each slot, and the slot's place among the lane's of this batch."""
        pairs, within = np.divmod(slots, 2 * self._per_lane)
        return 2 * pairs + within % 2, within // 2

    def _bounds(self, lanes: np.ndarray, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where blocks of lanes begin and end. The first blocks of lanes differ in length, so that
        lanes change blocks one after the other.
        """
        firsts = blocks * self.block - self._lead(lanes)
        return np.maximum(firsts, 0), np.minimum(firsts + self.block, self._lane_length)

    def _block_of(
        self, lanes: np.ndarray, images: np.ndarray | int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The block of each image of its lane, and the place within it."""
        blocks = (images + self._lead(lanes)) // self.block
        return blocks, images - np.maximum(blocks * self.block - self._lead(lanes), 0)

    def _lead(self, lanes: np.ndarray) -> np.ndarray:
        """What a lane's first block lacks."""
        return lanes * self.block // self.lanes

    def _shuffle(self, epoch: int, lane: int, block: int) -> tuple[int, np.ndarray]:
        """Where a block begins among the epoch's samples, and its permutation."""
        first, end = map(int, self._bounds(np.array(lane), np.array(block)))
        key = hash64(self.seed, "block", epoch, lane, block)
        permutation = np.argsort(hash64_array(key, np.arange(end - first)), kind="stable")
        return lane * self._lane_length + first, permutation

    def _lay_out(self, epoch: int) -> _Epoch:
        sizes = np.diff(self._firsts)
        hashes = hash64_array(hash64(self.seed, "shards", epoch), np.arange(len(sizes)))
        shards = np.argsort(hashes, kind="stable")
        return _Epoch(shards, np.concatenate([[0], np.cumsum(sizes[shards])]))

    def _indices(self, epoch: int, ranks: np.ndarray) -> np.ndarray:
        """Samples of an epoch laid end to end -> indices into the source."""
        shards, starts = self._epoch(epoch)
        places = np.searchsorted(starts, ranks, side="right") - 1
        drawn = self._firsts[shards[places]] + ranks - starts[places]
        return np.asarray(drawn if self._subset is None else self._subset[drawn])

    def _shards_under(self, epoch: int, lanes: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        """The shards under one block of each of these lanes."""
        firsts, ends = self._bounds(lanes, blocks)
        shards, starts = self._epoch(epoch)
        begins = np.searchsorted(starts, lanes * self._lane_length + firsts, side="right") - 1
        lasts = np.searchsorted(
            starts, lanes * self._lane_length + np.maximum(ends, firsts + 1) - 1, side="right"
        )
        under = np.concatenate(
            [shards[:0], *(shards[i:j] for i, j in zip(begins, lasts, strict=True))]
        )
        return np.asarray(under[np.diff(self._firsts)[under] > 0])
