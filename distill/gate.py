"""Before a step: whether everyone has its part of the batch. A stream may have to wait for minutes, and a wait must hear a signal.

Once one process is in a step's collectives the others must follow, with a batch or without: so they agree before it, with a
few bytes between the hosts, for which no device waits.
"""

from contextlib import nullcontext

from distill.checkpoint import BrokenOff, Signals
from distill.data.loader import TrainLoader
from distill.engine import Engine

# A process that is still alive says so that often, so no wait for a shard is taken for a process that hangs.
_SAY_EVERY_S = 1.0


class Gate:
    """Lets all processes into a step, or none.

    Args:
        loader: of this process.
        may_wait: its batches come from afar; without, the gate stands open.
    """

    def __init__(self, loader: TrainLoader, engine: Engine, signals: Signals, *, may_wait: bool) -> None:
        self._loader, self._engine, self._signals, self._may_wait = loader, engine, signals, may_wait

    def opens(self) -> bool:
        """True when every process has its part of the next step; False when one waits and one was asked to stop. Collective: every rank."""
        if not self._may_wait:
            return True
        while True:
            lacking, stopping = self._engine.any_on_hosts(not self._is_here(), self._signals.received is not None)
            if not lacking:
                return True
            if stopping:
                return False

    def _is_here(self) -> bool:
        in_process = not self._loader.num_workers  # the batch is made in the call
        try:
            with self._signals.breaking_off() if in_process else nullcontext():
                return self._loader.ready(_SAY_EVERY_S)
        except BrokenOff:
            return False
