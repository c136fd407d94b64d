"""Which sample goes where: every one once, and of a source over shards only a few of those at a
time.
"""

from collections.abc import Sequence

import numpy as np
import pytest

from distill.datatools.plan import Plan, ShardOptions, order, shards_of


class Shards:
    """A source over shards, as far as an order needs it."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.shards, self.shard_sizes = tuple(sizes), np.array(sizes)

    def __len__(self) -> int:
        return int(self.shard_sizes.sum())


class Loose:
    shards = ()

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def all_of(source: Shards | Loose, seed: int | None) -> np.ndarray:
    return order(source, np.arange(len(source)), seed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "sizes",
    [[1], [5], [3, 4, 5], [2] * 16, [2] * 17, list(range(1, 41)), [7] * 64, [100] + [1] * 50],
)
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_every_sample_comes_once(sizes: list[int], seed: int | None) -> None:
    for source in (Shards(sizes), Loose(sum(sizes))):
        indices = all_of(source, seed)
        assert np.array_equal(np.sort(indices), np.arange(sum(sizes)))
        # Any part of it alone is that part of the whole.
        part = np.arange(sum(sizes))[len(indices) // 3 :: 2]
        assert np.array_equal(order(source, part, seed), indices[part])  # type: ignore[arg-type]


def test_the_seed_is_what_makes_it() -> None:
    for source in (Shards([50] * 40), Loose(2000)):
        assert np.array_equal(all_of(source, 3), all_of(source, 3))
        assert not np.array_equal(all_of(source, 3), all_of(source, 4))
        assert np.array_equal(all_of(source, None), np.arange(2000))


def test_a_new_shard_needs_at_most_two_windows_of_the_old_ones() -> None:
    source = Shards([100] * 200)
    indices = all_of(source, 0)
    for start in range(0, 19_200, 400):  # the last window has 8 shards
        needed = shards_of(source, indices[start : start + 400])
        assert 12 < len(needed) <= 32
    # They come from everywhere in the source, not from 16 neighbours.
    assert max(shards_of(source, indices[:1600])) - min(shards_of(source, indices[:1600])) > 100


def test_samples_of_a_window_are_mixed() -> None:
    source = Shards([100] * 32)
    first = all_of(source, 0)[:1600] // 100
    counts = np.bincount(first[:400], minlength=32)
    assert np.count_nonzero(counts) == 16
    assert counts[counts > 0].min() > 8  # 25 on average


def test_shards_are_even() -> None:
    asked = ShardOptions("tar", 0, None, None, True, None, None)
    for num_samples, num_shards in ((10, 3), (60, 9), (7, 7), (1_281_167, 2000)):
        plan = Plan(asked, "", num_samples, num_shards, "jpg")
        sizes = [len(plan.positions(i)) for i in range(num_shards)]
        assert sum(sizes) == num_samples
        assert max(sizes) - min(sizes) <= 1
        assert plan.positions(0)[0] == 0
        assert plan.positions(num_shards - 1)[-1] == num_samples - 1
