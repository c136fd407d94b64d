"""Time of a run: all of it for the bill, training alone for the speed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Counts from its making. Seconds of earlier sittings are added on resume; `device_seconds` counts every process."""

    def __init__(self, num_processes: int) -> None:
        self._num_processes = num_processes
        self._start = time.monotonic()
        self._earlier = 0.0
        self._earlier_device = 0.0
        self._busy = 0.0
        self._mark = self._start

    def add_earlier(self, seconds: float, device_seconds: float) -> None:
        """Time of the sittings before this one, with their own numbers of processes."""
        self._earlier, self._earlier_device = seconds, device_seconds

    @property
    def seconds(self) -> float:
        """Wall time of the run, evaluation and saving included."""
        return self._earlier + time.monotonic() - self._start

    @property
    def device_seconds(self) -> float:
        """Wall time times processes."""
        return self._earlier_device + (time.monotonic() - self._start) * self._num_processes

    def go(self) -> None:
        """Training starts here."""
        self._busy, self._mark = 0.0, time.monotonic()

    def lap(self) -> float:
        """Seconds of training since the last lap, pauses left out."""
        now = time.monotonic()
        busy, self._busy, self._mark = self._busy + now - self._mark, 0.0, now
        return busy

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Something else than training goes on inside."""
        self._busy += time.monotonic() - self._mark
        yield
        self._mark = time.monotonic()
