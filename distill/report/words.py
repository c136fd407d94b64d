"""Figures as text."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from distill.console import hours_minutes

_Value = TypeVar("_Value")

NOT_KNOWN = "–"
NOT_MEASURED = "not measured"
NOT_RECORDED = "not recorded"


def figure(value: float | None, pattern: str = ".2f") -> str:
    """Return a number as text; a dash if it is not known."""
    return NOT_KNOWN if value is None else format(value, pattern)


def recorded(value: _Value | None, shown: Callable[[_Value], str]) -> str:
    """Return a value of report.json as text, or that it is not recorded."""
    return NOT_RECORDED if value is None else shown(value)


def millions(count: int | None) -> str:
    """Return a number of parameters: "0.08 M"."""
    return NOT_KNOWN if count is None else f"{count / 1e6:,.2f} M"


def energy(joules: float | None) -> str:
    """Return an energy in watt-hours or kilowatt-hours."""
    if joules is None:
        return NOT_MEASURED
    watt_hours = joules / 3600
    return f"{watt_hours:.3g} Wh" if watt_hours < 1000 else f"{watt_hours / 1000:,.4g} kWh"


def size(num_bytes: float | None) -> str:
    """Return a size of memory: "1.3 GiB"."""
    if num_bytes is None:
        return NOT_KNOWN
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


def duration(seconds: float | None) -> str:
    """Return a duration as hours, minutes and seconds."""
    return NOT_KNOWN if seconds is None else hours_minutes(seconds)


def hours(count: float | None) -> str:
    """Return hours of devices with three digits, or to a hundredth."""
    if count is None:
        return NOT_KNOWN
    return f"{count:,.2f}" if count >= 10 else f"{count:.3g}"


def date(seconds: float) -> str:
    """Return a time in UTC, to the minute."""
    with suppress(OverflowError, ValueError, OSError):  # a year that no calendar has
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    return NOT_KNOWN


_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: tuple[float, ...], width: int = 24) -> str:
    """Return a curve in a line of text: each character is one of eight heights."""
    count = min(width, len(values))
    chosen = [values[round(i * (len(values) - 1) / max(count - 1, 1))] for i in range(count)]
    low, span = min(chosen), (max(chosen) - min(chosen)) or 1.0
    return "".join(_BARS[min(int(8 * (value - low) / span), 7)] for value in chosen)
