"""Shards are brought here in the background, by threads of the process that asks."""

import threading
import time
from collections.abc import Callable, Sequence

from distill.data.stream.exiting import is_exiting

# One connection seldom fills a line; every process of the machine has its own threads.
_THREADS = 4
# What failed is left alone for so long: whoever reads it meanwhile tries, and says why.
_REST_S = 60.0


class Prefetcher:
    """Threads that come with the first wish and go with the process. Not for another process: make
    a new one after a fork.

    Args:
        begin: brings one shard here, or returns at once where that is done or under way elsewhere.
    """

    def __init__(self, begin: Callable[[int], None]) -> None:
        self._begin = begin
        self._wake = threading.Condition()
        self._wanted: tuple[int, ...] = ()
        self._waiting: list[int] = []
        self._in_hand: set[int] = set()
        self._brought: set[int] = (
            set()
        )  # of what is wanted: with a cache too small for it, it would be fetched at every wish
        self._rests_until: dict[int, float] = {}
        self._threads: list[threading.Thread] = []

    @property
    def wanted(self) -> tuple[int, ...]:
        """What was asked for last."""
        return self._wanted

    def want(self, shards: Sequence[int]) -> None:
        """These and no others, the most urgent first. Returns at once."""
        wanted = tuple(int(shard) for shard in shards)
        with self._wake:
            if wanted == self._wanted:
                return
            self._brought &= set(wanted)
            self._wanted, self._waiting = (
                wanted,
                [shard for shard in wanted if shard not in self._brought],
            )
            while len(self._threads) < min(_THREADS, len(wanted)):
                thread = threading.Thread(target=self._run, name="shards-ahead", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._wake.notify_all()

    def _next(self) -> int:
        """Waits for a shard to bring here."""
        with self._wake:
            while True:
                while self._waiting:
                    shard = self._waiting.pop(0)
                    if (
                        shard not in self._in_hand
                        and self._rests_until.get(shard, 0.0) < time.monotonic()
                    ):
                        self._in_hand.add(shard)
                        return shard
                self._wake.wait()

    def _run(self) -> None:
        while True:
            shard = self._next()
            if is_exiting():
                return
            failed = False
            try:
                self._begin(shard)
            except Exception:  # whatever it is, the reader of the shard meets it and can say it
                failed = True
            with self._wake:
                self._in_hand.discard(shard)
                if failed:
                    self._rests_until[shard] = time.monotonic() + _REST_S
                elif shard in self._wanted:
                    self._brought.add(shard)
