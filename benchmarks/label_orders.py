"""Labels in shards, without images, and the orders that `benchmarks.shuffling` compares on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from distill.data.order.shuffled import TrainOrder

KINDS = ("sorted", "windows", "shuffled")
PROCESSES = 8
_SEED = 0


@dataclass(frozen=True)
class Scale:
    """A data set. skew: standard deviation of the logarithm of class sizes. sample_bytes: of a
    file, with its place in a tar.
    """

    num_samples: int
    num_classes: int
    num_shards: int
    batch_size: int
    skew: float
    sample_bytes: float


SCALES = {
    "imagenet-21k": Scale(14_197_122, 21_841, 2048, 2048, 0.7, 92e3),
    "imagenet-1k": Scale(1_281_167, 1000, 1024, 2048, 0.0, 112e3),
}
QUICK = Scale(60_000, 50, 60, 256, 0.3, 1e3)


# ---- data ----------------------------------------------------------------------------------------


def class_sizes(scale: Scale) -> np.ndarray:
    """[K] int64, lognormal, every class with a sample at least."""
    weights = np.exp(scale.skew * np.random.default_rng(_SEED).standard_normal(scale.num_classes))
    sizes = np.maximum(1, (weights / weights.sum() * scale.num_samples).astype(np.int64))
    sizes[np.argmax(sizes)] += scale.num_samples - sizes.sum()
    return np.asarray(sizes)


def shard_sizes(scale: Scale, num_shards: int) -> np.ndarray:
    """[S] int64, even to one sample."""
    return np.asarray(np.diff(np.arange(num_shards + 1) * scale.num_samples // num_shards))


def labels_of(scale: Scale, kind: str, sizes: np.ndarray, window: int) -> np.ndarray:
    """[N] int32 labels in the order of the shards. window: shards that are mixed among
    themselves.
    """
    labels = np.repeat(np.arange(scale.num_classes, dtype=np.int32), class_sizes(scale))
    generator = np.random.default_rng(_SEED + 1)
    if kind == "shuffled":
        generator.shuffle(labels)
    elif kind == "windows":
        starts = np.concatenate([[0], np.cumsum(sizes)])
        shards = generator.permutation(len(sizes))
        grouped = [shards[i : i + window] for i in range(0, len(shards), window)]
        mixed = [
            np.concatenate([labels[starts[s] : starts[s + 1]] for s in group]) for group in grouped
        ]
        for group in mixed:
            generator.shuffle(group)
        labels = np.concatenate(mixed)
    return labels


# ---- orders --------------------------------------------------------------------------------------

Batches = Callable[[Sequence[int]], np.ndarray]  # steps in pairs -> [T, B] indices


def batches_of(order: TrainOrder) -> Batches:
    return lambda steps: np.stack([order.batch(step).indices for step in steps])


def buffered(scale: Scale, sizes: np.ndarray, buffer: int) -> Batches:
    """What the peers do: shuffled shards distributed to the processes, each read from start to end
    through a buffer.

    Of a batch each process takes its part out of one buffer. A pair of steps begins at a random
    place, with the buffer full.
    """
    starts = np.concatenate([[0], np.cumsum(sizes)])

    def batches(steps: Sequence[int]) -> np.ndarray:
        generator = np.random.default_rng(_SEED + 2)
        share = scale.batch_size // PROCESSES
        found = np.empty((len(steps), scale.batch_size), dtype=np.int64)
        for pair in range(0, len(steps), 2):
            shards = generator.permutation(len(sizes))
            for process in range(PROCESSES):
                own = shards[process::PROCESSES]
                longest = 2 * buffer + 2 * share
                needed = int(np.searchsorted(np.cumsum(sizes[own]), longest + sizes[own[0]])) + 1
                stream = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in own[:needed]])
                stream = stream[generator.integers(0, sizes[own[0]]) :]
                # Run in for a buffer's length, so that it holds what a running one does.
                taken = _through_buffer(stream, buffer, buffer + 2 * share, generator)[buffer:]
                slots = slice(process * share, (process + 1) * share)
                found[pair, slots], found[pair + 1, slots] = taken[:share], taken[share:]
        return found

    return batches


def _through_buffer(
    stream: np.ndarray, buffer: int, count: int, generator: np.random.Generator
) -> np.ndarray:
    held = stream[:buffer].copy()
    places = generator.integers(0, len(held), count)
    taken = np.empty(count, dtype=np.int64)
    for i, (place, new) in enumerate(
        zip(places.tolist(), stream[buffer : buffer + count].tolist(), strict=True)
    ):
        taken[i] = held[place]
        held[place] = new
    return taken
