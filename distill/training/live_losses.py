"""Losses for the screen from the first step on, without waiting for the device."""

import time
from collections.abc import Sequence

import torch

from distill.engine import Engine
from distill.student.student import Student

_EVERY_S = 0.25  # the screen is drawn four times a second


class LiveLosses:
    """The mean total loss of each student since the last log, over the main process's own batches.

    At most four times a second a number for each student is copied to pinned memory, and read at a
    later step when the copy is complete. On the CPU it is read at once.
    """

    def __init__(self, engine: Engine, students: Sequence[Student]) -> None:
        self._cuda, self._world_size = engine.device.type == "cuda", engine.world_size
        # After a resume these are the sums of all processes since the last log.
        self._before = {
            s.name: (s.losses, float(s.losses.sums[0]), s.losses.steps) for s in students
        }
        self._host = torch.empty(len(students), pin_memory=self._cuda)
        self._copied = torch.cuda.Event() if self._cuda else None  # type: ignore[no-untyped-call]
        self._pending: dict[str, tuple[float, int]] = {}  # total before, steps; of the running copy
        self._next_s = 0.0

    def poll(self, students: Sequence[Student]) -> dict[str, float]:
        """Return the losses that have arrived, if any, and start to copy newer ones when it is
        time.
        """
        if not self._pending and time.monotonic() >= self._next_s:
            self._copy(students)
        copied = self._copied is None or self._copied.query()  # type: ignore[no-untyped-call]
        if not self._pending or not copied:
            return {}
        sums, pending = self._host.tolist(), self._pending
        self._pending, self._next_s = {}, time.monotonic() + _EVERY_S
        return {
            name: (total - before) * self._world_size / steps
            for total, (name, (before, steps)) in zip(sums, pending.items(), strict=False)
        }

    def _copy(self, students: Sequence[Student]) -> None:
        totals = []
        for student in students:
            owner, before, steps_before = self._before[student.name]
            if owner is not student.losses:  # a log has taken them
                before, steps_before = 0.0, 0
            if steps := student.losses.steps - steps_before:
                self._pending[student.name] = before, steps
                totals.append(student.losses.sums[0])
        if totals:
            self._host[: len(totals)].copy_(torch.stack(totals), non_blocking=True)
        if totals and self._copied is not None:
            self._copied.record()
