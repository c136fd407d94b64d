"""What all processes must agree on in every step without waiting for the device: whose loss is not
finite, and whether to stop.

Each step's flags are reduced over processes on the device and read one step later, when they have
long arrived; on the CPU there is nothing to wait for and they are read at once. Every process reads
the same flags at the same step, so all stop a student, or the run, together.
"""

from collections import deque
from collections.abc import Sequence

import torch

from distill.engine import Engine


class Verdicts:
    """Flags of recent steps on their way to the host. `stop_agreed`: some process was asked to
    stop, and all now know.
    """

    def __init__(self, engine: Engine, num_students: int) -> None:
        self._engine = engine
        self._num_students = num_students
        self._lag = 0 if engine.device.type == "cpu" else 1
        self._waiting: deque[tuple[int, torch.Tensor, torch.cuda.Event | None]] = deque()
        self.stop_agreed = False

    def exchange(
        self, step: int, not_finite: Sequence[torch.Tensor | None], stop_asked: bool
    ) -> list[tuple[int, int]]:
        """Send this step's flags, receive those of a step ago. Collective: every rank.

        Args:
            step: number of this step.
            not_finite: a bool scalar on the device for each student; None for one that takes no
                part.
            stop_asked: this process got a signal.

        Returns:
            (student index, step) of each loss that was not finite.
        """
        device = self._engine.device
        flags = torch.zeros(self._num_students + 1, dtype=torch.int32, device=device)
        for index, flag in enumerate(not_finite):
            if flag is not None:
                flags[index] = flag
        flags[-1].fill_(int(stop_asked))
        self._engine.max_(flags)
        if device.type == "cuda":
            host = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
            host.copy_(flags, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._waiting.append((step, host, event))
        else:
            self._waiting.append((step, flags, None))
        return self._read(self._lag)

    def agree_to_stop(self, step: int, stop_asked: bool) -> bool:
        """Whether some process was asked to stop, away from a step's verdicts: once all are
        drained. Collective: every rank.

        On CUDA the answer is that of the call before, which has long arrived.
        """
        self.exchange(step, [None] * self._num_students, stop_asked)
        return self.stop_agreed

    def drain(self) -> list[tuple[int, int]]:
        """Read all flags that are still on their way: before weights are judged or saved. Waits for
        the device.
        """
        return self._read(0)

    def _read(self, leave: int) -> list[tuple[int, int]]:
        stopped = []
        while len(self._waiting) > leave:
            step, flags, event = self._waiting.popleft()
            if event is not None:
                event.synchronize()
            *bad, stop = flags.tolist()
            self.stop_agreed = self.stop_agreed or bool(stop)
            stopped += [(index, step) for index, flag in enumerate(bad) if flag]
        return stopped
