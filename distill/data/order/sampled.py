"""A random order of some or all images of a source, for measurements whose batches are random
samples.
"""

import numpy as np

from distill.data.order.lanes import default_block
from distill.data.records import Source
from distill.rng import hash64, permute

_LANES = 64


def random_order(source: Source, count: int, seed: int) -> np.ndarray:
    """Return [count] int64 distinct indices, a pure function of the source's sizes and the seed.

    A source in shards is read in 64 places, each shard by shard, as `LaneOrder` does for training:
    so each batch has images of 64 places, and each shard is fetched once.
    """
    assert count <= len(source)
    key = hash64(seed, "random order")
    if not len(source.shard_sizes):
        return permute(np.arange(count), len(source), key)
    sizes = source.shard_sizes
    ends = np.cumsum(sizes)
    shards = permute(np.arange(len(sizes)), len(sizes), key)
    laid_out = np.concatenate([np.arange(ends[s] - sizes[s], ends[s]) for s in shards])
    block = default_block(sizes)
    lanes = np.array_split(laid_out, min(_LANES, len(laid_out)))
    for number, lane in enumerate(lanes):
        for start in range(0, len(lane), block):
            part = lane[start : start + block]
            mixed = permute(np.arange(len(part)), len(part), hash64(key, number, start))
            lane[start : start + block] = part[mixed]
    shortest = len(lanes[-1])
    order = np.stack([lane[:shortest] for lane in lanes], 1).flatten()
    rest = [lane[shortest:] for lane in lanes]
    return np.concatenate([order, *rest])[:count]
