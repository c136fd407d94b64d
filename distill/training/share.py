"""The share of a process: how many micro-batches of which size it takes of a global batch."""

from collections.abc import Sequence
from dataclasses import dataclass

from distill.errors import InputError


@dataclass(frozen=True)
class Share:
    """How one global batch is spread: `num_forwards` micro-batches of `micro_batch_size` samples on
    each process.
    """

    micro_batch_size: int
    num_forwards: int


def share_of_process(
    batch_size_global: int, micro_batch_size: int | None, num_processes: int
) -> Share:
    """The micro-batches of each process.

    Raises:
        InputError: the batch does not divide; names the numbers of processes that would do.
    """
    unit = micro_batch_size or 2
    if batch_size_global % (unit * num_processes):
        good = [
            n
            for n in range(1, batch_size_global // unit + 1)
            if batch_size_global % (unit * n) == 0
        ]
        around = nearest_numbers(good, num_processes)
        what = f"micro-batches of {unit}" if micro_batch_size else "an even share for each"
        raise InputError(
            f"train.batch_size_global {batch_size_global} does not divide into {what} on"
            f" {num_processes} processes: start {' or '.join(map(str, around))} processes, or"
            " change the batch size"
        )
    share = batch_size_global // num_processes
    size = micro_batch_size or share
    return Share(size, share // size)


def nearest_numbers(good: Sequence[int], wanted: int) -> list[int]:
    """The four nearest of the numbers that would do."""
    return sorted(sorted(good, key=lambda n: abs(n - wanted))[:4])
