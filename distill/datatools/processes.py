"""This process's part of the work, and the local processes that do it."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from distill.errors import InputError
from distill.processes import end_with

Item = TypeVar("Item")
Result = TypeVar("Result")
Context = TypeVar("Context")


@dataclass(frozen=True)
class Rank:
    """This process among those of a launch, which need not run at the same time."""

    rank: int
    world_size: int

    def share(self, count: int) -> range:
        """This process's numbers of 0..count-1: a contiguous range, since neighbours come from
        neighbouring parts of a stream.
        """
        return range(
            self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size
        )


def read_rank(environment: Mapping[str, str]) -> Rank:
    """RANK and WORLD_SIZE, as torchrun and Accelerate set them, or a script for a job array.

    Raises:
        InputError: one without the other, or no such numbers.
    """
    rank, world_size = environment.get("RANK", ""), environment.get("WORLD_SIZE", "")
    if not rank and world_size in ("", "1"):
        return Rank(0, 1)
    if not (rank.isdigit() and world_size.isdigit() and int(rank) < int(world_size)):
        raise InputError(
            f"RANK={rank} and WORLD_SIZE={world_size}: should be a process's number, from 0, and"
            " how many there are; a launcher (torchrun, accelerate launch) sets them. For one"
            " process, unset both"
        )
    return Rank(int(rank), int(world_size))


def num_workers_here(asked: int | None, environment: Mapping[str, str]) -> int:
    """The number of local processes: as given, or this process's share of the available cores."""
    if asked is not None:
        return asked
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, cores // int(environment.get("LOCAL_WORLD_SIZE", "1") or "1"))


def runs(pid: int) -> bool:
    """Whether a process of this machine is running; a zombie, ended but not waited for, is not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except ProcessLookupError:
        return False
    except OSError:  # another user's, or no /proc
        return True


# The context of the workers, set once in each, so that it is not sent with every item.
_context: Any = None


def _begin(context: Any, parent: int) -> None:
    global _context
    _context = context
    end_with(parent, signal.SIGKILL)
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches every process of a terminal: the first one ends the others


def _call(work: Callable[[Any, Item], Result], item: Item) -> Result:
    return work(_context, item)


def in_processes(
    work: Callable[[Context, Item], Result],
    context: Context,
    items: Sequence[Item],
    num_workers: int,
) -> Iterator[Result]:
    """Yield work(context, item) of each item as they finish; in this process if `num_workers` is 0.

    The first error stops it: started items finish, the rest do not start.

    Raises:
        InputError: a process was killed; and what `work` raises.
    """
    if num_workers == 0 or not items:
        yield from (work(context, item) for item in items)
        return
    num_workers = min(num_workers, len(items))
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    pool = ProcessPoolExecutor(
        num_workers,
        multiprocessing.get_context(method),
        initializer=_begin,
        initargs=(context, os.getpid()),
    )
    waiting: set[Future[Result]] = set()
    try:
        for item in items:
            waiting.add(pool.submit(_call, work, item))
            if len(waiting) > 2 * num_workers:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise InputError(
            "one of the local processes was killed, often for want of memory: the same command"
            " continues, perhaps with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
