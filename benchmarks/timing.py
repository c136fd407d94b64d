"""Timing on machines that are not quiet: contestants take turns, round by round, and are compared
within each round.

A ratio is the median over rounds of the paired ratios, with a bootstrap interval: what slows the
machine for seconds slows both.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_NUM_RESAMPLES = 2000


class Spread(NamedTuple):
    """A median over rounds, and the 95 % bootstrap interval of that median."""

    median: float
    low: float
    high: float


class Stopwatch:
    """Seconds that an act takes, the device's queue emptied before and after it.

    Args:
        clock: "wall", or "cpu" for the processor time of this process, which other processes
            disturb less. A device that works by itself has wall time only.
    """

    def __init__(self, device: torch.device, clock: str) -> None:
        if clock == "cpu" and device.type != "cpu":
            raise SystemExit(
                f"--clock cpu does not see the work of {device.type}: use --clock wall"
            )
        self._clock = CLOCKS[clock]
        self._synchronise: Callable[[], None] = (
            torch.cuda.synchronize if device.type == "cuda" else lambda: None
        )

    def __call__(self, act: Callable[[], object]) -> float:
        self._synchronise()
        start = self._clock()
        act()
        self._synchronise()
        return self._clock() - start


def interleaved(
    contestants: Mapping[str, Callable[[], float]],
    num_rounds: int,
    prepare: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; who goes first changes from round to round.

    Args:
        contestants: by name, what runs one round and returns its seconds.
        prepare: runs before each round, outside every clock.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for _ in range(num_rounds):
        prepare()
        for name in names:
            seconds[name].append(contestants[name]())
        names.reverse()
    return seconds


def median(values: Sequence[float]) -> Spread:
    """Return the median of the rounds' values."""
    rounds = np.asarray(values)
    resamples = rounds[
        np.random.default_rng(0).integers(0, len(rounds), (_NUM_RESAMPLES, len(rounds)))
    ]
    low, high = np.percentile(np.median(resamples, axis=1), [2.5, 97.5])
    return Spread(float(np.median(rounds)), float(low), float(high))


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Return the median of the rounds' ratios."""
    return median([a / b for a, b in zip(numerator, denominator, strict=True)])


def show(spread: Spread, digits: int = 3) -> str:
    """ "0.991 (0.987 .. 0.995)"."""
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f} .. {spread.high:.{digits}f})"


def common_arguments(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """Add the options that every script has."""
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="timed rounds of each contestant"
    )
    parser.add_argument(
        "--threads", type=int, help="torch threads on the CPU; default: torch's own"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures to this file too"
    )


def machine(device: torch.device) -> dict[str, Any]:
    """Return the machine that a figure was measured on, and its load."""
    return {
        "device": (
            torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        ),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def finish(
    title: str, settings: argparse.Namespace, device: torch.device, figures: dict[str, Any]
) -> None:
    """Print the machine, and write the figures if the command names a file."""
    ran_on = machine(device)
    print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in ran_on.items()))
    if settings.json:
        options = {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(settings).items()
        }
        record = {"benchmark": title, "settings": options, "machine": ran_on, **figures}
        settings.json.write_text(json.dumps(record, indent=1) + "\n")
