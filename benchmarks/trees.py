"""What a process and its descendants use, from /proc (Linux): memory, and processor time."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SAMPLED_EVERY_S = 0.1
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> Iterator[Path]:
    """/proc/PID of a process and its descendants, those that end meanwhile left out."""
    waiting = [Path(f"/proc/{pid}")]
    while waiting:
        process = waiting.pop()
        try:
            for thread in (process / "task").iterdir():
                waiting += [
                    Path(f"/proc/{child}") for child in (thread / "children").read_text().split()
                ]
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield process


def tree_bytes(pid: int) -> int:
    """Resident memory, what processes share counted once (PSS); without the kernel's file cache."""
    total = 0
    for process in tree(pid):
        try:
            lines = (process / "smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def tree_cpu_s(pid: int) -> float:
    """Processor time so far, to 10 ms; that of descendants that have ended included, once their
    parent has waited for them.
    """
    ticks = 0
    for process in tree(pid):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return ticks / _TICKS_PER_S


@contextmanager
def sampled_bytes(pid: int) -> Iterator[list[int]]:
    """`tree_bytes`, before the block and again and again while it runs."""
    samples, over = [tree_bytes(pid)], threading.Event()

    def sample() -> None:
        while not over.wait(_SAMPLED_EVERY_S):
            samples.append(tree_bytes(pid))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()
