"""Asking a run to stop: SLURM's SIGUSR1 before the time limit, SIGTERM at preemption, Ctrl-C."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from distill.processes import several_processes

_WATCHED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class WaitInterruptedError(BaseException):
    """Raised by a signal amid work that may be dropped."""


class Signals:
    """Context manager that notes a stop signal instead of dying of it; the loop looks at `received`
    between steps.

    A second Ctrl-C raises KeyboardInterrupt, for a user who cannot wait. A SIGINT that was ignored
    stays ignored: shells start what runs in the background so, and Ctrl-C at their terminal is not
    meant for it. Old handlers return on exit, but for one of several processes that ends by an
    error: its launcher sends SIGTERM as soon as another one has died, and this one must live to say
    what it saw. Main thread only (Python delivers signals nowhere else).

    Attributes:
        received: name of the first signal ("SIGTERM", "SIGUSR1", "SIGINT"), or None.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._interrupts = 0
        self._breaks_off = False
        self._pid = os.getpid()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        self._pid = os.getpid()
        for number in _WATCHED:
            if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)
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
    def breaking_off(self) -> Iterator[None]:
        """Inside, a signal raises WaitInterruptedError wherever it finds the main thread: for work that has no
        end of its own and may be dropped.
        """
        self._breaks_off = True
        try:
            if self.received:
                raise WaitInterruptedError
            yield
        finally:
            self._breaks_off = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A forked data-loading worker: it must die of its parent's terminate(), and must leave
            # Ctrl-C and SIGUSR1, which reach the whole process group, to the parent, which still
            # needs it for the steps before the stop.
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number).name
        if self._breaks_off:
            self._breaks_off = False  # once: it shall not meet what cleans up
            raise WaitInterruptedError
