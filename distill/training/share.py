"""The share of a process in a global batch: the number and size of its micro-batches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from distill.errors import InputError


@dataclass(frozen=True)
class Share:
    """How a global batch is spread over the processes.

    Attributes:
        micro_batch_size: samples of one forward of a process.
        num_forwards: forwards of a process in each step.
        group_size: neighbouring processes that form a statistics group: their forwards together
            are one micro-batch of the recipe, over which BatchNorm and DIST compute. 1 where a
            process forwards whole micro-batches.
    """

    micro_batch_size: int
    num_forwards: int
    group_size: int = 1


def share_of_process(
    batch_size_global: int, micro_batch_size: int | None, num_processes: int
) -> Share:
    """The forwards of each process, with the smallest statistics group.

    Of M micro-batches a batch and W processes, g = W / gcd(W, M) processes form a group. Without a
    `micro_batch_size` the global batch is one micro-batch, and all processes are one group.

    Raises:
        InputError: the batch does not divide; names numbers of processes that work.
    """
    micro = micro_batch_size or batch_size_global
    group_size = _group_size(batch_size_global, micro, num_processes)
    if group_size is None:
        good = [
            n
            for n in range(1, batch_size_global // 2 + 1)
            if _group_size(batch_size_global, micro, n) is not None
        ]
        around = nearest_numbers(good, num_processes)
        of_micro = f" of micro-batches of {micro}" if micro_batch_size else ""
        raise InputError(
            f"train.batch_size_global {batch_size_global} does not divide into pairs of"
            f" samples{of_micro} on {num_processes} processes: start"
            f" {' or '.join(map(str, around))} processes, or change the batch size"
        )
    size = micro // group_size
    return Share(size, batch_size_global // (size * num_processes), group_size)


def _group_size(batch_size_global: int, micro_batch_size: int, num_processes: int) -> int | None:
    """Processes that share a micro-batch; None where its parts are no pairs, which mixing needs."""
    num_micro = batch_size_global // micro_batch_size
    group_size = num_processes // math.gcd(num_processes, num_micro)
    return None if micro_batch_size % (2 * group_size) else group_size


def nearest_numbers(good: Sequence[int], wanted: int) -> list[int]:
    """The four of the numbers that are nearest to `wanted`."""
    return sorted(sorted(good, key=lambda n: abs(n - wanted))[:4])
