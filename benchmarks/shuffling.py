"""How good the order of a stream is against a true permutation, and what it costs: labels and
shards alone, no images.

Scales: ImageNet-21K (14.2 million samples of 21,841 classes of uneven size, 2,048 shards) and
ImageNet-1K (1.28 million, 1,000 even classes, 1,024 shards). Shards are `sorted` (an image folder
written class after class, the worst case), mixed in `windows` (the sorted ones as `distill data
shard`
writes them again: permuted, and mixed 16 by 16) or `shuffled` (as it writes an image folder).
Orders: ours, with one of block, lanes and shard size changed at a time; a permutation
(`distill.data.order.shuffled`); the peers' buffer over shuffled shards, one in each of 8 processes.

Columns, each over pairs of successive batches at random places of an epoch:

    classes/batch, /micro   distinct classes, relative to independent draws
    chi2/batch, /micro      of the class counts, over its degrees of freedom: 1 for independent
                            draws, c for classes in clumps of c
    r(1), r(B)              autocorrelation of labels: neighbours in a batch; the same slot of
                            successive batches
    shard r(1), r(B)        the same for shards
    again                   how often two samples of a batch meet again in the next epoch, relative
                            to chance
    first                   shards under the first batch after a start or a resume, over all
                            processes
    at once, GB             shards under the current and the next blocks of all lanes, the maximum
                            (at an epoch's end); their bytes

An order is called as good as a permutation where distinct classes are within 2 % of it, chi2 within
0.05, and both r of labels within 0.001.

    OMP_NUM_THREADS=1 python -m benchmarks.shuffling
    OMP_NUM_THREADS=1 python -m benchmarks.shuffling --scales imagenet-1k \\
        --blocks 1024 4096 --lanes 32 64
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.label_orders import (
    KINDS,
    QUICK,
    SCALES,
    Scale,
    batches_of,
    buffered,
    labels_of,
    shard_sizes,
)
from benchmarks.timing import common_arguments, finish
from distill.data.order.lanes import LaneOrder, default_block
from distill.data.order.shuffled import Order, TrainOrder

_SEED = 0


class Bound(NamedTuple):
    """What counts as good as a permutation."""

    classes: float = 0.02
    chi2: float = 0.05
    r: float = 0.001


BOUND = Bound()


# ---- figures -------------------------------------------------------------------------------------


def distinct(rows: np.ndarray) -> float:
    """Distinct values of a row, on average."""
    ordered = np.sort(rows, axis=1)
    return float((np.diff(ordered, axis=1) != 0).sum(1).mean() + 1)


def chi2(rows: np.ndarray, parts: np.ndarray) -> float:
    """Chi-square of the counts in a row over its degrees of freedom, on average. parts: [K] of the
    whole.
    """
    expected = rows.shape[1] * parts
    counts = (np.bincount(row, minlength=len(parts)) for row in rows)
    return float(
        np.mean([((count - expected) ** 2 / expected).sum() / (len(parts) - 1) for count in counts])
    )


def autocorrelation(first: np.ndarray, second: np.ndarray, parts: np.ndarray) -> float:
    """(P(same) - chance) / (1 - chance)."""
    chance = float((parts**2).sum())
    return (float((first == second).mean()) - chance) / (1 - chance)


def lags(rows: np.ndarray, parts: np.ndarray) -> tuple[float, float]:
    """Autocorrelation of neighbours in a row, and of the same place in the two rows of
    each pair.
    """
    return autocorrelation(rows[:, :-1], rows[:, 1:], parts), autocorrelation(
        rows[::2], rows[1::2], parts
    )


def met_again(order: TrainOrder, batches: np.ndarray) -> float:
    """How often two samples of a batch of epoch 0 share one of epoch 1, against chance."""
    step_of = np.full(order.num_samples, -1, dtype=np.int32)
    steps = order.steps_per_epoch
    for step in range(steps):
        step_of[order.batch(steps + step).indices] = step
    pairs = 0
    for row in batches:
        counts = np.unique(step_of[row][step_of[row] >= 0], return_counts=True)[1]
        pairs += int((counts * (counts - 1) // 2).sum())
    size = batches.shape[1]
    chance = (size - 1) / (order.num_samples - 1) * steps * size / order.num_samples
    return float(pairs / (len(batches) * size * (size - 1) / 2) / chance)


@dataclass(frozen=True)
class Reckoning:
    """What is the same for all orders of a data set."""

    scale: Scale
    steps: tuple[int, ...]
    micro: int

    def figures(
        self, batches: np.ndarray, labels: np.ndarray, sizes: np.ndarray
    ) -> dict[str, float]:
        """Of [T, B] indices."""
        parts = np.bincount(labels, minlength=self.scale.num_classes) / len(labels)
        rows = labels[batches]
        micros = rows.reshape(-1, self.micro)
        shards = np.searchsorted(np.cumsum(sizes), batches, side="right")
        r1, rb = lags(rows, parts)
        shard_r1, shard_rb = lags(shards, sizes / sizes.sum())
        return {
            "classes_batch": distinct(rows) / independent(parts, rows.shape[1]),
            "classes_micro": distinct(micros) / independent(parts, self.micro),
            "chi2_batch": chi2(rows, parts),
            "chi2_micro": chi2(micros, parts),
            "r1": r1,
            "rb": rb,
            "shard_r1": shard_r1,
            "shard_rb": shard_rb,
        }


def independent(parts: np.ndarray, count: int) -> float:
    """Distinct classes that so many independent draws give."""
    return float((1 - (1 - parts) ** count).sum())


def as_good(figures: dict[str, float], permuted: dict[str, float]) -> bool:
    """Within BOUND of a permutation."""
    return (
        all(
            abs(figures[f"classes_{of}"] / permuted[f"classes_{of}"] - 1) <= BOUND.classes
            for of in ("batch", "micro")
        )
        and all(
            abs(figures[f"chi2_{of}"] - permuted[f"chi2_{of}"]) <= BOUND.chi2
            for of in ("batch", "micro")
        )
        and all(abs(figures[r] - permuted[r]) <= BOUND.r for r in ("r1", "rb"))
    )


def costs(order: LaneOrder, steps: Sequence[int], sample_bytes: float) -> dict[str, float]:
    """Shards of a first batch and in use at once, over all lanes; reckoned: what the check of the
    cache takes for the latter.
    """
    firsts, at_once = [], []
    slots = np.arange(order.batch_size_global)
    for step in steps[::2]:
        firsts.append(
            len(np.unique(np.searchsorted(order._firsts, order.batch(step).indices, side="right")))
        )
        at_once.append(len(order.shards_ahead(step, slots)))
    shard_bytes = sample_bytes * order.num_samples / (len(order._firsts) - 1)
    return {
        "first": float(np.mean(firsts)),
        "at_once": max(at_once),
        "at_once_bytes": max(at_once) * shard_bytes,
        "reckoned": order.shards_at_once(order.lanes),
    }


# ---- the table -----------------------------------------------------------------------------------


class Setting(NamedTuple):
    block: int
    lanes: int
    num_shards: int


def settings_of(scale: Scale, asked: argparse.Namespace) -> Iterator[Setting]:
    """The middle one, and those that differ from it in one number."""
    block = asked.block or default_block(shard_sizes(scale, scale.num_shards))
    middle = Setting(block, asked.middle_lanes, scale.num_shards)
    others = [middle._replace(block=block) for block in asked.blocks]
    others += [middle._replace(lanes=lanes) for lanes in asked.lanes]
    others += [middle._replace(num_shards=scale.num_shards * times // 4) for times in (1, 16)]
    yield from sorted(
        {middle, *others},
        key=lambda s: (s.num_shards != middle.num_shards, s.lanes != middle.lanes, s),
    )


_HEAD = (
    f"{'block':>7}{'lanes':>6}{'shards':>7}{'of':>6} |"
    f" {'classes':>8}{'micro':>7}{'chi2':>8}{'micro':>7}{'r(1)':>9}{'r(B)':>9}"
    f" |{'shard r(1)':>11}{'r(B)':>8} |{'again':>6}{'first':>7}{'at once':>8}{'GB':>7}"
)


def line(label: str, figures: dict[str, float], good: bool) -> str:
    cells = (
        f"{label:26} |"
        f" {figures['classes_batch']:>8.3f}{figures['classes_micro']:>7.3f}"
        f"{figures['chi2_batch']:>8.3f}{figures['chi2_micro']:>7.3f}"
        f"{figures['r1']:>9.4f}{figures['rb']:>9.4f}"
        f" |{figures['shard_r1']:>11.4f}{figures['shard_rb']:>8.4f} |"
    )
    cells += f"{figures['again']:>6.2f}" if "again" in figures else f"{'':6}"
    if "first" in figures:
        gb = figures["at_once_bytes"] / 1e9
        cells += f"{figures['first']:>7.0f}{figures['at_once']:>8.0f}{gb:>7.1f}"
    return cells + ("  as good" if good else "")


def measure_scale(name: str, scale: Scale, asked: argparse.Namespace) -> dict[str, Any]:
    """A table for each kind of shards; returns every figure, and the smallest block that is as good
    as a permutation.
    """
    generator = np.random.default_rng(_SEED)
    steps_per_epoch = scale.num_samples // scale.batch_size
    firsts = generator.choice(steps_per_epoch - 1, asked.pairs, replace=False)
    reckoning = Reckoning(
        scale, tuple(int(s) for first in firsts for s in (first, first + 1)), asked.micro
    )
    settings = list(settings_of(scale, asked))
    plain = Order(scale.num_samples, scale.batch_size, _SEED)
    permuted = batches_of(plain)(reckoning.steps)
    found: dict[Setting, tuple[np.ndarray, dict[str, float]]] = {}
    for setting in settings:
        order = LaneOrder(
            shard_sizes(scale, setting.num_shards),
            scale.batch_size,
            _SEED,
            lanes=setting.lanes,
            block=setting.block,
        )
        batches = batches_of(order)(reckoning.steps)
        cost = costs(order, reckoning.steps, scale.sample_bytes)
        again = {"again": met_again(order, batches)} if asked.again else {}
        found[setting] = (batches, cost | again)
    result: dict[str, Any] = {}
    for kind in KINDS:
        labels = {
            s: labels_of(scale, kind, shard_sizes(scale, s), asked.window)
            for s in {each.num_shards for each in settings}
        }
        sizes = shard_sizes(scale, scale.num_shards)
        whole = reckoning.figures(permuted, labels[scale.num_shards], sizes)
        print(
            f"\n{name}: {scale.num_samples:,} samples, {scale.num_classes:,} classes, shards"
            f" {kind}; batches of {scale.batch_size}, micro {asked.micro}"
        )
        print(_HEAD)
        print(line("a permutation", whole, True))
        rows: list[dict[str, Any]] = [{"order": "permutation", **whole}]
        good_blocks = []
        for setting, (batches, more) in found.items():
            sizes_here = shard_sizes(scale, setting.num_shards)
            figures = reckoning.figures(batches, labels[setting.num_shards], sizes_here) | more
            good = as_good(figures, whole)
            if good and (setting.lanes, setting.num_shards) == (
                asked.middle_lanes,
                scale.num_shards,
            ):
                good_blocks.append(setting.block)
            shard_size = scale.num_samples // setting.num_shards
            label = f"{setting.block:>7}{setting.lanes:>6}{setting.num_shards:>7}{shard_size:>6}"
            print(line(label, figures, good), flush=True)
            rows.append({"order": "lanes", **setting._asdict(), **figures, "as_good": good})
        for buffer in asked.buffers:
            figures = reckoning.figures(
                buffered(scale, sizes, buffer)(reckoning.steps), labels[scale.num_shards], sizes
            )
            good = as_good(figures, whole)
            print(line(f"buffer of {buffer:,}", figures, good), flush=True)
            rows.append({"order": "buffer", "buffer": buffer, **figures, "as_good": good})
        smallest = min(good_blocks, default=None)
        print(
            f"the smallest block as good as a permutation with {asked.middle_lanes} lanes: "
            + (
                f"{smallest:,}"
                if smallest
                else f"none up to {max(asked.blocks):,}: write the shards again, shuffled"
            )
        )
        result[kind] = {"rows": rows, "smallest_block": smallest}
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scales", nargs="+", choices=tuple(SCALES), default=list(SCALES))
    parser.add_argument("--blocks", type=int, nargs="+", default=[256, 1024, 4096, 16384, 65536])
    parser.add_argument("--lanes", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256])
    parser.add_argument(
        "--block", type=int, help="while another number changes; by default that of a run"
    )
    parser.add_argument("--middle-lanes", type=int, default=64, help="while another number changes")
    parser.add_argument(
        "--window", type=int, default=16, help="shards that are mixed among themselves"
    )
    parser.add_argument(
        "--buffers", type=int, nargs="+", default=[1000, 10_000], help="of the peers"
    )
    parser.add_argument("--micro", type=int, default=256, help="samples of a process's micro-batch")
    parser.add_argument("--pairs", type=int, default=32, help="of successive batches")
    parser.add_argument(
        "--no-again",
        dest="again",
        action="store_false",
        help="leave out the column that takes a whole epoch",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a data set too small to mean anything: does it run?"
    )
    parser.add_argument("--device", choices=("cpu",), default="cpu", help=argparse.SUPPRESS)
    common_arguments(parser, rounds=1)
    asked = parser.parse_args(arguments)
    scales = {name: SCALES[name] for name in asked.scales}
    if asked.quick:
        vars(asked).update(
            blocks=[64, 512, 4096],
            lanes=[8, 16],
            block=512,
            middle_lanes=16,
            buffers=[100],
            micro=64,
            pairs=16,
        )
        scales = {"quick": QUICK}
    figures = {name: measure_scale(name, scale, asked) for name, scale in scales.items()}
    print()
    finish("shuffling", asked, torch.device("cpu"), {"bound": BOUND._asdict(), "scales": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
