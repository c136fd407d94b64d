"""Before a step: whether everyone has its part of the batch. A stream may have to wait for minutes,
and a wait must hear a signal.

Once one process is in a step's collectives the others must follow, with a batch or without: so they
agree before it, with a few bytes between the hosts, for which no device waits.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Protocol

from distill.checkpoint import BrokenOff, Signals
from distill.data.loader import EvalBatch, EvalLoader
from distill.engine import Engine
from distill.evaluate import EvaluationAbandoned

# A process that is still alive says so that often, so no wait for a shard is taken for a process
# that hangs.
_SAY_EVERY_S = 1.0


class Loader(Protocol):
    """Of this process. num_workers: without any it makes its batches in the call, and says nothing
    meanwhile.
    """

    num_workers: int

    def ready(self, timeout_s: float) -> bool: ...


class Gate:
    """Lets all processes go on, or none. Made by every rank together.

    Args:
        may_wait: the batches come from afar; without, the gate stands open.
    """

    def __init__(self, loader: Loader, engine: Engine, signals: Signals, *, may_wait: bool) -> None:
        self._loader, self._engine, self._signals, self._may_wait = (
            loader,
            engine,
            signals,
            may_wait,
        )
        if may_wait:
            engine.connect_hosts()

    def opens(self) -> bool:
        """True when every process has what it goes on with; False when one waits and one was asked
        to stop. Collective: every rank.

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
            with self._signals.breaking_off() if in_process else nullcontext():
                return self._loader.ready(_SAY_EVERY_S)
        except BrokenOff:
            return False


class GatedBatches:
    """The batches of an evaluation, each behind the gate; raises EvaluationAbandoned when it does
    not open.
    """

    def __init__(self, loader: EvalLoader, gate: Gate) -> None:
        self._loader, self._gate = loader, gate

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[EvalBatch]:
        batches = iter(self._loader)
        for _ in range(len(self)):
            if not self._gate.opens():
                raise EvaluationAbandoned
            yield next(batches)
