"""Losses for the screen from the first step on, without waiting for the device: what has arrived is
shown.
"""

import time
from collections.abc import Sequence

import torch

from distill.engine import Engine
from distill.student.student import Student

_EVERY_S = 0.25  # the screen is drawn four times a second


class LiveLosses:
    """The mean total loss of each student since the last log, over the main process's own batches.

    A number for each student is copied to pinned memory at most four times a second, and read at a
    later step once the copy has ended. On the CPU it is read at once.
    """

    def __init__(self, engine: Engine, students: Sequence[Student]) -> None:
        self._cuda, self._world_size = engine.device.type == "cuda", engine.world_size
        # After a resume they hold the sums of all processes since the log before.
        self._before = {
            s.name: (s.losses, float(s.losses.sums[0]), s.losses.steps) for s in students
        }
        self._host = torch.empty(len(students), pin_memory=self._cuda)
        self._copied = torch.cuda.Event() if self._cuda else None  # type: ignore[no-untyped-call]
        self._asked: dict[str, tuple[float, int]] = {}  # total before, steps; of what is on its way
        self._next_s = 0.0

    def poll(self, students: Sequence[Student]) -> dict[str, float]:
        """Return losses that have arrived, most often none, and ask for newer ones when
        it is time.
        """
        if not self._asked and time.monotonic() >= self._next_s:
            self._ask(students)
        if not self._asked or (self._copied is not None and not self._copied.query()):  # type: ignore[no-untyped-call]
            return {}
        sums, asked = self._host.tolist(), self._asked
        self._asked, self._next_s = {}, time.monotonic() + _EVERY_S
        return {
            name: (total - before) * self._world_size / steps
            for total, (name, (before, steps)) in zip(sums, asked.items(), strict=False)
        }

    def _ask(self, students: Sequence[Student]) -> None:
        totals = []
        for student in students:
            owner, before, steps_before = self._before[student.name]
            if owner is not student.losses:  # a log has taken those
                before, steps_before = 0.0, 0
            if steps := student.losses.steps - steps_before:
                self._asked[student.name] = before, steps
                totals.append(student.losses.sums[0])
        if totals:
            self._host[: len(totals)].copy_(torch.stack(totals), non_blocking=True)
        if totals and self._copied is not None:
            self._copied.record()
