"""A random order of images: each once, from all places, shard by shard."""

import numpy as np
import pytest

from distill.data.order.sampled import random_order
from distill.data.records import NO_SIZES


class Sized:
    """The sizes of a source, which are all that an order depends on."""

    def __init__(self, *shards: int, count: int = 0) -> None:
        self.shard_sizes = np.array(shards, dtype=np.int64) if shards else NO_SIZES
        self._count = sum(shards) or count

    def __len__(self) -> int:
        return self._count


@pytest.mark.parametrize(
    "source", [Sized(count=1), Sized(count=1000), Sized(3), Sized(700, 1, 130), Sized(*[50] * 90)]
)
def test_each_image_comes_once_and_fewer_are_the_first(source: Sized) -> None:
    order = random_order(source, len(source), 0)
    assert sorted(order.tolist()) == list(range(len(source)))
    few = len(source) // 2
    assert random_order(source, few, 0).tolist() == order[:few].tolist()
    if len(source) > 100:
        assert random_order(source, few, 1).tolist() != order[:few].tolist()


@pytest.mark.parametrize("source", [Sized(count=10_000), Sized(*[100] * 100)])
def test_a_batch_has_images_of_all_places(source: Sized) -> None:
    """Images are often sorted by class: 100 of 10,000 in order would be of one."""
    order = random_order(source, 10_000, 0)
    for batch in order[:6400].reshape(-1, 64):
        places = len(np.unique(batch // 1000))
        assert places >= 8, batch


def test_a_shard_is_read_in_one_place() -> None:
    """Its images are within one lane, or two neighbouring ones, of each batch of 64."""
    order = random_order(Sized(*[256] * 100), 25_600, 0)
    for shard in (0, 41, 99):
        lanes = np.flatnonzero(order // 256 == shard) % 64
        assert len(np.unique(lanes)) <= 2
