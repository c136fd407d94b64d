"""Signals that stop a run: SLURM's SIGUSR1 before the time limit, SIGTERM at preemption, Ctrl-C."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from distill.processes import several_processes

_WATCHED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class WaitInterruptedError(BaseException):
    """Raised by a signal during work that may be dropped."""


class Signals:
    """Context manager that records a stop signal, so that the process does not end by it; the loop
    reads `received` between steps.

    A second Ctrl-C raises KeyboardInterrupt, for a user who cannot wait. A SIGINT that was ignored
    stays ignored: shells start background commands like this, and Ctrl-C at their terminal is not
    meant for them. The old handlers return on exit, except in one of several processes that ends by
    an error: its launcher sends SIGTERM as soon as another one has died, and this process must
    live until it has printed its own error. Main thread only (Python delivers signals only there).

    Attributes:
        received: name of the first signal ("SIGTERM", "SIGUSR1", "SIGINT"), or None.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._interrupts = 0
        self._may_interrupt = False
        self._pid = os.getpid()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        self._pid = os.getpid()
        for number in _WATCHED:
            if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        fails = isinstance(error, Exception) and several_processes()
        for number, handler in self._previous.items():
            if fails and number != signal.SIGINT:
                handler = signal.SIG_IGN
            # None: a handler that C code installed, which Python cannot put back.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # type: ignore[arg-type]
        self._previous.clear()

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside, a signal raises WaitInterruptedError in the main thread, for work that may be
        dropped and may never end.
        """
        self._may_interrupt = True
        try:
            if self.received:
                raise WaitInterruptedError
            yield
        finally:
            self._may_interrupt = False

    def _record(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A forked data-loading worker: its parent's terminate() must end it. Ctrl-C and SIGUSR1
            # reach the whole process group, but the parent still needs the worker for the steps
            # before the stop.
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number).name
        if self._may_interrupt:
            self._may_interrupt = False  # once: what cleans up must not be interrupted
            raise WaitInterruptedError
