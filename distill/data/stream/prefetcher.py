"""Fetches shards in the background, in threads of this process."""

import threading
import time
from collections.abc import Callable, Sequence

from distill.data.stream.exiting import is_exiting

# One connection seldom uses all of the bandwidth; every process of the machine has its own threads.
_THREADS = 4
# A shard that failed is not tried again for this long; a read of it meanwhile tries, and raises.
_RETRY_AFTER_S = 60.0


class Prefetcher:
    """Threads that start with the first request and end with the process. After a fork a process
    needs a new one.

    Args:
        begin: fetches one shard, or returns at once if it is here or is being fetched elsewhere.
    """

    def __init__(self, begin: Callable[[int], None]) -> None:
        self._begin = begin
        self._wake = threading.Condition()
        self._wanted: tuple[int, ...] = ()
        self._waiting: list[int] = []
        self._in_progress: set[int] = set()
        # Of the wanted shards: with a cache too small for them they would be fetched at every
        # request.
        self._fetched: set[int] = set()
        self._retry_at: dict[int, float] = {}
        self._threads: list[threading.Thread] = []

    @property
    def wanted(self) -> tuple[int, ...]:
        """The shards of the last request."""
        return self._wanted

    def want(self, shards: Sequence[int]) -> None:
        """Fetch these shards and no others, the most urgent first. Returns at once."""
        wanted = tuple(int(shard) for shard in shards)
        with self._wake:
            if wanted == self._wanted:
                return
            self._fetched &= set(wanted)
            self._wanted = wanted
            self._waiting = [shard for shard in wanted if shard not in self._fetched]
            while len(self._threads) < min(_THREADS, len(wanted)):
                thread = threading.Thread(target=self._run, name="shards-ahead", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._wake.notify_all()

    def _next(self) -> int:
        """Wait for a shard to fetch."""
        with self._wake:
            while True:
                while self._waiting:
                    shard = self._waiting.pop(0)
                    if (
                        shard not in self._in_progress
                        and self._retry_at.get(shard, 0.0) < time.monotonic()
                    ):
                        self._in_progress.add(shard)
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
            except Exception:  # the read of the shard raises it again
                failed = True
            with self._wake:
                self._in_progress.discard(shard)
                if failed:
                    self._retry_at[shard] = time.monotonic() + _RETRY_AFTER_S
                elif shard in self._wanted:
                    self._fetched.add(shard)
