"""The time of a run: all of it, training alone (for the speed), and an estimate of the rest."""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_WINDOW_S = 30.0  # of recent training, which the speed and the time left follow from


class Clock:
    """Counts from its creation; a resume adds the seconds of earlier sessions."""

    def __init__(self, num_processes: int) -> None:
        self._num_processes = num_processes
        self._start = time.monotonic()
        self._earlier = 0.0
        self._earlier_device = 0.0
        self._earlier_training: Mapping[str, float] = {
            "steps": 0,
            "seconds": 0.0,
            "data_wait_seconds": 0.0,
        }
        self._num_steps = 0  # of this session
        self._busy = 0.0  # seconds of training since the last lap, up to the mark
        self._mark = self._start
        self._trained = 0.0  # seconds of training of this session, up to the last lap
        self._steps: deque[tuple[float, int]] = deque(maxlen=1000)  # (training seconds, step)
        self._started = False  # the oldest of these is the start, before the first step
        self._pauses: dict[str, list[float]] = {}
        self.data_wait_s = 0.0  # of this session: the host waited for a batch
        self._taken_data_wait_s = 0.0

    def add_earlier(
        self, seconds: float, device_seconds: float, training: Mapping[str, float] | None
    ) -> None:
        """Add the time of the sessions before this one, with their own numbers of processes.

        Args:
            training: what `training` returned; None if the checkpoint does not record it.
        """
        self._earlier, self._earlier_device = seconds, device_seconds
        self._earlier_training = training or {"steps": 0, "seconds": 0.0, "data_wait_seconds": 0.0}

    def training(self) -> dict[str, float]:
        """Return the steps, seconds and seconds of waiting for data of all sessions, evaluations
        and saves left out.
        """
        now = {
            "steps": self._num_steps,
            "seconds": self.trained_s if self._num_steps else 0.0,
            "data_wait_seconds": self.data_wait_s,
        }
        return {key: value + self._earlier_training[key] for key, value in now.items()}

    def throughput(self, batch_size_global: int) -> dict[str, float]:
        """Return the mean speed of the run, and how long the main process waited for data."""
        training = self.training()
        return {
            "images_per_s": training["steps"] * batch_size_global / max(training["seconds"], 1e-9),
            "training_seconds": training["seconds"],
            "data_wait_seconds": training["data_wait_seconds"],
        }

    @property
    def seconds(self) -> float:
        """Wall time of the run, evaluation and saving included."""
        return self._earlier + time.monotonic() - self._start

    @property
    def device_seconds(self) -> float:
        """Wall time times processes."""
        return self._earlier_device + (time.monotonic() - self._start) * self._num_processes

    def start(self, step: int) -> None:
        """Start to count training, with `step` steps done."""
        self._busy, self._mark, self._trained = 0.0, time.monotonic(), 0.0
        self._steps.clear()
        self._steps.append((0.0, step))
        self._started = True

    @property
    def trained_s(self) -> float:
        """Seconds of training in this session, evaluations and saves left out."""
        return self._trained + self._busy + time.monotonic() - self._mark

    def lap(self) -> float:
        """Seconds of training since the last lap, pauses left out."""
        now = time.monotonic()
        lap, self._busy, self._mark = self._busy + now - self._mark, 0.0, now
        self._trained += lap
        return lap

    @contextmanager
    def paused(self, what: str) -> Iterator[None]:
        """Training pauses inside, for an evaluation or a save."""
        start = time.monotonic()
        self._busy += start - self._mark
        try:
            yield
        finally:
            self._mark = time.monotonic()
            self._pauses.setdefault(what, []).append(self._mark - start)

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time inside as waiting for the next batch."""
        start = time.monotonic()
        yield
        self.data_wait_s += time.monotonic() - start

    def take_data_wait_s(self) -> float:
        """Return the seconds of waiting for data since the last call."""
        taken, self._taken_data_wait_s = self._taken_data_wait_s, self.data_wait_s
        return self.data_wait_s - taken

    def stepped(self, step: int) -> None:
        """Count a step. The first one is slow (workers start, kernels are chosen) and is soon left
        out.
        """
        now = self.trained_s
        self._num_steps += 1
        self._steps.append((now, step))
        while len(self._steps) > 2 and (self._started or now - self._steps[1][0] > _WINDOW_S):
            self._steps.popleft()
            self._started = False

    @property
    def step_s(self) -> float | None:
        """Seconds of training that a step takes, over the last half minute; None before the first
        step.
        """
        if len(self._steps) < 2:
            return None
        (start, first), (end, last) = self._steps[0], self._steps[-1]
        return (end - start) / (last - first) if last > first else None

    def left_s(self, num_steps: int, num_pauses: Mapping[str, int]) -> float | None:
        """Seconds that are left; None before the first step.

        Args:
            num_steps: steps to do.
            num_pauses: how many pauses of each kind remain; a kind without a measurement counts
                zero.
        """
        if self.step_s is None:
            return None
        known = {what: sum(seen) / len(seen) for what, seen in self._pauses.items()}
        return num_steps * self.step_s + sum(
            count * known.get(what, 0.0) for what, count in num_pauses.items()
        )
