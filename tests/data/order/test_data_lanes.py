"""Who comes when in a stream: every sample once an epoch, from any step at once, a few shards at a
time.
"""

import pickle

import numpy as np
import pytest

from distill.data.loading.rank_slice import RankSlice
from distill.data.order.lanes import (
    LaneOrder,
    default_block,
    default_lanes,
    fitting_lanes,
    lanes_fit,
)
from distill.errors import InputError
from distill.training.share import share_of_process

UNEVEN = np.array([7, 100, 3, 0, 50, 40])


def order(
    sizes: np.ndarray = UNEVEN,
    batch: int = 16,
    seed: int = 1,
    *,
    lanes: int = 8,
    block: int = 9,
    repeats: int = 1,
    subset: np.ndarray | None = None,
) -> LaneOrder:
    return LaneOrder(sizes, batch, seed, lanes=lanes, block=block, repeats=repeats, subset=subset)


def epoch_of(o: LaneOrder, epoch: int) -> np.ndarray:
    """[steps, B] indices."""
    steps = range(epoch * o.steps_per_epoch, (epoch + 1) * o.steps_per_epoch)
    return np.stack([o.batch(step).indices for step in steps])


def shards_of(sizes: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum(sizes), indices, side="right")


@pytest.mark.parametrize(
    ("sizes", "batch", "lanes", "block"),
    [
        (UNEVEN, 16, 8, 9),
        (np.full(10, 100), 20, 10, 64),
        (np.array([1000]), 50, 2, 5000),
        (np.full(77, 13), 8, 4, 1),
    ],
    ids=str,
)
def test_an_epoch_has_every_sample_once_but_the_tail(
    sizes: np.ndarray, batch: int, lanes: int, block: int
) -> None:
    o = order(sizes, batch, lanes=lanes, block=block)
    total = int(sizes.sum())
    assert o.steps_per_epoch == total // batch
    missed = []
    for epoch in range(3):
        seen = epoch_of(o, epoch).ravel()
        assert len(np.unique(seen)) == len(seen) == total // batch * batch
        assert 0 <= seen.min() <= seen.max() < total
        missed.append(set(range(total)) - set(seen.tolist()))
    if missed[0]:
        assert len({frozenset(m) for m in missed}) > 1, (
            "the tail that is dropped should be another each epoch"
        )


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first = epoch_of(order(), 0)
    assert not np.array_equal(first, epoch_of(order(), 1))
    assert not np.array_equal(first, epoch_of(order(seed=2), 0))
    assert np.array_equal(first, epoch_of(order(), 0))
    one_shard = order(np.array([64]), 8, lanes=2, block=32)
    assert not np.array_equal(epoch_of(one_shard, 0), epoch_of(one_shard, 1)), (
        "blocks are shuffled again each epoch"
    )


def test_slots_are_those_of_the_whole_batch_from_any_step() -> None:
    """What makes a batch independent of processes and workers, and a resume free."""
    whole = order(repeats=3)
    for step in (0, 5, 12, 13, 40):
        batch = whole.batch(step)
        for slots in (np.arange(4), np.arange(8, 16), np.array([2, 3, 14, 15])):
            part = pickle.loads(pickle.dumps(order(repeats=3))).batch(step, slots)
            assert part.epoch == batch.epoch
            for name in ("indices", "views", "positions"):
                assert np.array_equal(getattr(part, name), getattr(batch, name)[slots]), name


def test_each_lane_gives_as_much_to_every_batch_and_neighbours_are_of_two_lanes() -> None:
    sizes = np.full(32, 50)
    o = order(sizes, 64, lanes=16, block=30)
    laid = {int(index): place for place, index in enumerate(_laid_out(o, 0))}
    lane_length = 1600 // 16
    for step in range(o.steps_per_epoch):
        lanes = np.array([laid[int(i)] for i in o.batch(step).indices]) // lane_length
        assert (np.bincount(lanes, minlength=16) == 4).all()
        assert (lanes[::2] != lanes[1::2]).all()
        assert (lanes.reshape(8, 8) // 2 == np.arange(8)[:, None]).all(), (
            "a pair of lanes fills 2 B / L slots in a row"
        )


def _laid_out(o: LaneOrder, epoch: int) -> np.ndarray:
    """The epoch's samples end to end, before blocks are shuffled."""
    return o._indices(epoch, np.arange(o.num_samples))


def test_a_lane_reads_its_blocks_one_after_the_other() -> None:
    sizes = np.full(20, 100)
    o = order(sizes, 20, lanes=4, block=50)
    laid = {int(index): place for place, index in enumerate(_laid_out(o, 0))}
    places = np.array(
        [[laid[int(i)] for i in o.batch(step).indices] for step in range(o.steps_per_epoch)]
    )
    lane = places // 500
    for number in range(4):
        within = places[lane == number] - number * 500  # in the order of steps
        lead = number * 50 // 4
        assert (np.diff((within + lead) // 50) >= 0).all()
        assert not (np.diff(within) > 0).all(), "a block is shuffled"


@pytest.mark.parametrize("block", [1, 2, 7])
def test_shards_ahead_of_blocks_shorter_than_a_step_are_all_that_it_reads(block: int) -> None:
    sizes = np.full(60, 3)
    o = order(sizes, 24, lanes=4, block=block)
    for step in range(2 * o.steps_per_epoch):
        assert set(shards_of(sizes, o.batch(step).indices)) <= set(
            o.shards_ahead(step, np.arange(24)).tolist()
        )


@pytest.mark.parametrize("repeats", [1, 3])
def test_shards_ahead_are_what_this_block_and_the_next_read(repeats: int) -> None:
    sizes = np.array([40, 60, 50, 70, 30, 80, 55, 45, 90, 80])
    o = order(sizes, 20, lanes=4, block=25, repeats=repeats)
    slots = np.arange(10)
    for step in range(2 * o.steps_per_epoch):
        ahead = o.shards_ahead(step, slots)
        assert len(set(ahead.tolist())) == len(ahead)
        assert set(shards_of(sizes, o.batch(step, slots).indices)) <= set(ahead.tolist())
        # A block of 25 images lasts 25 * repeats / 5 steps; what a step reads was announced that
        # long before, in its own epoch or the last.
        later = o.batch(step + repeats * 5 - repeats, slots).indices
        assert set(shards_of(sizes, later)) <= set(ahead.tolist())


@pytest.mark.parametrize("repeats", [1, 3])
def test_nothing_is_announced_that_is_read_only_after_the_end(repeats: int) -> None:
    """A lane has 50 images in 5 shards, a block is a shard, and a step reads one image, or a third
    of one.
    """
    sizes = np.full(10, 10)
    o = order(sizes, 2, lanes=2, block=10, repeats=repeats)
    slot = np.array([0])
    read = [
        set(shards_of(sizes, o.batch(step, slot).indices)) for step in range(3 * o.steps_per_epoch)
    ]
    for end in (1, 10, 11, 49, 50, 51, 73, 100, 117, 150):
        for step in range(max(0, end - 60), end):
            announced = set(o.shards_ahead(step, slot, end).tolist())
            assert read[step] <= announced <= set.union(*read[step:end]), (step, end)
    assert len(o.shards_ahead(9, slot)) == 2
    assert len(o.shards_ahead(9, slot, 10)) == 1


def test_only_the_shards_under_two_blocks_are_needed_at_once() -> None:
    """What bounds the disk that a process needs, and what a resume reads again."""
    sizes = np.full(200, 100)
    o = order(sizes, 64, lanes=16, block=100)
    held: list[int] = []
    for step in range(0, o.steps_per_epoch, 7):
        ahead = o.shards_ahead(step, np.arange(64))
        held.append(len(ahead))
        assert len(o.shards_ahead(step, np.arange(8))) <= 2 * 4
    assert o.shards_at_once(16) == 16 * 3
    assert np.mean(held) == pytest.approx(16 * 3, rel=0.15)


def test_repeats_of_an_image_share_a_micro_batch_and_never_a_pair() -> None:
    o = order(np.full(8, 60), 48, lanes=8, block=30, repeats=3)
    seen = []
    for step in range(o.steps_per_epoch):
        batch = o.batch(step)
        assert (batch.indices[::2] != batch.indices[1::2]).all()
        seen += list(zip(batch.indices.tolist(), batch.views.tolist(), strict=True))
    assert len(set(seen)) == len(seen)
    images = np.unique([index for index, _ in seen])
    assert len(images) == 8 * -(-o.steps_per_epoch * 6 // 3)
    assert {view for _, view in seen} == {0, 1, 2}


def test_a_subset_is_all_that_comes() -> None:
    subset = np.flatnonzero(np.arange(200) % 7 < 2)
    o = order(subset=subset, batch=8, lanes=4)
    seen = epoch_of(o, 0).ravel()
    assert len(np.unique(seen)) == len(seen) == len(subset) // 8 * 8
    assert set(seen.tolist()) <= set(subset.tolist())
    assert set(o.shards_ahead(0, np.arange(8)).tolist()) <= {0, 1, 2, 4, 5}


def test_an_unreadable_sample_is_replaced_by_the_next_of_its_shard_or_of_the_next_shard() -> None:
    o = order()
    assert o.successor(0) == 1
    assert o.successor(6) == 0, "around the end of the shard"
    assert o.successor(2, another_shard=True) == 9
    assert o.successor(108, another_shard=True) == 111, (
        "shard 2 has 3 samples, the first of shard 4 is 110"
    )
    assert o.successor(199, another_shard=True) == 39 % 7
    part = order(subset=np.array([3, 5, 8, 120]), batch=2, lanes=2)
    assert part.successor(5) == 3
    assert part.successor(5, another_shard=True) == 8
    assert part.successor(8, another_shard=True) == 120


@pytest.mark.parametrize(
    ("batch", "micro", "lanes"),
    [
        (2048, 256, 64),
        (2048, None, 64),
        (128, 64, 64),
        (16, 8, 16),
        (6, 2, 6),
        (2, None, 2),
        (1000, None, 50),
        (96, 32, 48),
    ],
)
def test_as_many_lanes_as_the_batch_allows(batch: int, micro: int | None, lanes: int) -> None:
    assert default_lanes(batch, micro) == lanes
    assert lanes_fit(lanes, batch, micro)
    assert lanes in fitting_lanes(batch, micro)


@pytest.mark.parametrize(
    ("batch", "micro", "lanes"), [(2048, 32, 128), (2048, 16, 256), (256, 4, 128), (1024, 2, 1024)]
)
def test_small_micro_batches_take_more_lanes(batch: int, micro: int, lanes: int) -> None:
    assert default_lanes(batch, micro) == lanes
    assert lanes_fit(lanes, batch, micro)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(
        InputError,
        match=(
            r"train.batch_size_global is 256 and there are 200 training samples: set it to 200 or"
            r" less"
        ),
    ):
        order(batch=256)
    with pytest.raises(
        InputError,
        match=r"4 training samples \(a part of 200, by data.fraction or data.keep_classes\)",
    ):
        order(subset=np.arange(4))


def test_labels_of_sorted_shards_mix_within_a_batch() -> None:
    """Shards of one class each, the worst case: a batch still sees about as many classes as it has
    lanes.
    """
    sizes = np.full(128, 40)
    o = order(sizes, 64, lanes=32, block=40)
    classes = [
        len(np.unique(shards_of(sizes, o.batch(step).indices))) for step in range(o.steps_per_epoch)
    ]
    assert min(classes) >= 32


# ---- the block where the recipe says none --------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "block"),
    [
        (np.full(1024, 1251), 312),  # ImageNet-1K
        (np.full(2048, 6676), 1669),  # ImageNet-21K of the Hub
        (np.array([1000, 3000, 2003]), 500),
        (np.full(60, 1000), 256),
        (np.full(3, 1027), 256),
        (np.full(3, 1028), 257),
        (np.full(3, 16_387), 4096),
        (np.full(3, 16_400), 4096),
        (np.array([4000, 0, 0, 0]), 1000),
        (np.array([], dtype=np.int64), 256),
    ],
    ids=str,
)
def test_a_block_is_a_quarter_of_the_mean_shard(sizes: np.ndarray, block: int) -> None:
    assert default_block(sizes) == block


def test_a_block_of_a_subset_is_a_quarter_of_what_shards_hold_of_it() -> None:
    """An even half; half the shards whole, where the others count for nothing; next to nothing."""
    sizes = np.full(8, 4000)
    assert default_block(sizes, np.arange(0, 32_000, 2)) == 500
    assert default_block(sizes, np.arange(16_000)) == 1000
    assert default_block(sizes, np.arange(0, 32_000, 400)) == 256


@pytest.mark.parametrize(
    ("num_samples", "num_shards", "batch"), [(1_281_167, 1024, 2048), (2_003_000, 300, 2048)]
)
def test_with_that_block_a_lane_has_a_shard_or_two(
    num_samples: int, num_shards: int, batch: int
) -> None:
    """Under a resumption's first batch, and with the next block; at an epoch's end those of the
    next one come besides.
    """
    sizes = np.diff(np.arange(num_shards + 1) * num_samples // num_shards)
    lanes = default_lanes(batch, None)
    o = order(sizes, batch, lanes=lanes, block=default_block(sizes))
    slots = np.arange(o.batch_size_global)
    per_lane = len(slots) // lanes
    ahead, first = [], []
    for step in range(0, o.steps_per_epoch - 2 * o.block // per_lane, 7):
        ahead.append(len(o.shards_ahead(step, slots)))
        first.append(len(np.unique(shards_of(sizes, o.batch(step).indices))))
    assert max(first) <= max(ahead) <= 2 * lanes
    assert np.mean(first) == pytest.approx(1.25 * lanes, rel=0.05)
    assert np.mean(ahead) == pytest.approx(1.5 * lanes, rel=0.05)
    assert o.shards_at_once(lanes) == pytest.approx(1.5 * lanes, abs=1)


@pytest.mark.parametrize(
    ("micro_batch_size", "num_processes"), [(None, 3), (8, 3), (12, 6), (6, 12)]
)
def test_processes_may_cut_a_pair_of_lanes(
    micro_batch_size: int | None, num_processes: int
) -> None:
    o = order(batch=24)
    share = share_of_process(24, micro_batch_size, num_processes)
    for step in (0, 3):
        whole, together = o.batch(step).indices, np.full(24, -1)
        for rank in range(num_processes):
            part = RankSlice(rank, num_processes, share.micro_batch_size, share.num_forwards)
            for micro in range(share.num_forwards):
                slots = part.slots(micro)
                together[slots] = o.batch(step, slots).indices
                read = set(shards_of(UNEVEN, together[slots]).tolist())
                assert read <= set(o.shards_ahead(step, slots).tolist())
        assert np.array_equal(together, whole)
