"""What all processes agree on in a step.

`BatchBarrier`: before a step, whether every process has its part of the batch. A stream may have to
wait for minutes, and a wait must hear a signal. Once one process is in a step's collectives the
others must follow, with a batch or without, so they agree before it, with a few bytes between the
hosts, for which no device waits.

`StepFlags`: within a step, whose loss is not finite, and whether to stop. The flags are reduced
over processes on the device and read one step later, when they have long arrived; on the CPU there
is nothing to wait for and they are read at once. Every process reads the same flags at the same
step, so all stop a student, or the run, together.
"""

from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol

import torch

from distill.engine.core import Engine
from distill.engine.signals import Signals, WaitInterruptedError

# A process that is still alive says so this often, so no wait for a shard is taken for a process
# that hangs.
_REPORT_EVERY_S = 1.0


class StopRequestedError(Exception):
    """The processes agreed to stop during an evaluation. Raised on every rank at the same batch."""


class Loader(Protocol):
    """The loader of this process. Without workers (`num_workers` 0) it makes its batches in the
    call to `ready`, which returns only then.
    """

    num_workers: int

    def ready(self, timeout_s: float) -> bool: ...


class BatchBarrier:
    """Holds every process back until all have their part of the batch. Constructed by every rank.

    Args:
        may_wait: the batches come from a stream; if not, the barrier holds nothing back.
    """

    def __init__(self, loader: Loader, engine: Engine, signals: Signals, *, may_wait: bool) -> None:
        self._loader, self._engine, self._signals = loader, engine, signals
        self._may_wait = may_wait
        if may_wait:
            engine.connect_hosts()

    def wait(self) -> bool:
        """Collective. Returns True on all ranks when every rank has its batch, and False on all
        ranks when one of them still waits and one was asked to stop.

        Raises:
            InputError: what is wrong with this process's part.
        """
        if not self._may_wait:
            return True
        while True:
            lacking, stopping = self._engine.any_on_hosts(
                not self._is_here(), self._signals.received is not None
            )
            if not lacking:
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
        """Whether some process was asked to stop, outside a step, once all flags have been read. Collective: every rank.

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
