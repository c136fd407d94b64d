"""What all processes agree on in a step.

`BatchBarrier`: before a step, whether every process has its part of the batch. A stream may wait
for minutes, and a signal must interrupt that wait. Once one process is in a step's collectives the
others must follow, with a batch or without. So they agree before the step, with a few bytes between
the hosts, for which no device waits.

`StepFlags`: within a step, whose loss is not finite, and whether to stop. The flags are reduced
over processes on the device and read one step later, when they have arrived; on the CPU they are
read at once. Every process reads the same flags at the same step, so all stop a student, or the
run, together.
"""

from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol

import torch

from distill.engine.core import Engine
from distill.engine.signals import Signals, WaitInterruptedError

# A waiting process takes part in the agreement this often, so the others do not time out.
_REPORT_EVERY_S = 1.0


class StopRequestedError(Exception):
    """The processes agreed to stop during an evaluation. Raised on every rank at the same batch."""


class Loader(Protocol):
    """The loader of this process. Without workers (`num_workers` 0), `ready` makes the batch and
    then returns.
    """

    num_workers: int

    def ready(self, timeout_s: float) -> bool: ...


class BatchBarrier:
    """Makes every process wait until all have their part of the batch. Constructed by every rank.

    Args:
        may_wait: the batches come from a stream; if not, the barrier never waits.
    """

    def __init__(self, loader: Loader, engine: Engine, signals: Signals, *, may_wait: bool) -> None:
        self._loader, self._engine, self._signals = loader, engine, signals
        self._may_wait = may_wait
        if may_wait:
            engine.connect_hosts()

    def wait(self) -> bool:
        """Return True on all ranks when every rank has its batch, and False on all ranks when one
        still waits and one received a signal to stop. Collective: every rank.

        Raises:
            InputError: what is wrong with this process's part.
        """
        if not self._may_wait:
            return True
        while True:
            missing, stopping = self._engine.any_on_hosts(
                not self._is_here(), self._signals.received is not None
            )
            if not missing:
                return True
            if stopping:
                return False

    def _is_here(self) -> bool:
        in_process = not self._loader.num_workers
        try:
            with self._signals.interrupting() if in_process else nullcontext():
                return self._loader.ready(_REPORT_EVERY_S)
        except WaitInterruptedError:
            return False


class StepFlags:
    """The flags of recent steps, on their way to the host. `stop_agreed`: some process received a
    signal to stop, and all processes know it.
    """

    def __init__(self, engine: Engine, num_students: int) -> None:
        self._engine = engine
        self._num_students = num_students
        self._lag = 0 if engine.device.type == "cpu" else 1
        self._waiting: deque[tuple[int, torch.Tensor, torch.cuda.Event | None]] = deque()
        self.stop_agreed = False

    def exchange(
        self, step: int, not_finite: Sequence[torch.Tensor | None], stop_requested: bool
    ) -> list[tuple[int, int]]:
        """Send this step's flags and receive those of the previous step. Collective: every rank.

        Args:
            step: number of this step.
            not_finite: a bool scalar on the device for each student; None for a stopped one.
            stop_requested: this process received a signal to stop.

        Returns:
            (student index, step) of each loss that was not finite.
        """
        device = self._engine.device
        flags = torch.zeros(self._num_students + 1, dtype=torch.int32, device=device)
        for index, flag in enumerate(not_finite):
            if flag is not None:
                flags[index] = flag
        flags[-1].fill_(int(stop_requested))
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

    def agree_to_stop(self, step: int, stop_requested: bool) -> bool:
        """Return whether some process received a signal to stop; called outside a step, after
        `drain`. Collective: every rank.

        On CUDA the result is that of the previous call, which has arrived.
        """
        self.exchange(step, [None] * self._num_students, stop_requested)
        return self.stop_agreed

    def drain(self) -> list[tuple[int, int]]:
        """Read all flags that are still on their way, before weights are evaluated or saved. Waits
        for the device.
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
