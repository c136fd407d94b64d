"""What the ways of opening a file have in common: the body that is being read, and trouble that
another try may mend.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# Read at most so much at a time, so that memory stays flat however large a shard is.
PIECE_BYTES = 1 << 20
# A source that sends less, for so many timeouts, is as good as silent: a shard of 100 MB would take
# a day.
LEAST_BYTES_PER_S = 1000.0
SLOW_TIMEOUTS = 4


class TransientError(Exception):
    """A failure that may pass. wait_s: how long the server asks us to wait, where it does. slow:
    bytes came, too few to go on with.
    """

    def __init__(self, reason: str, wait_s: float | None = None, *, slow: bool = False) -> None:
        super().__init__(reason)
        self.wait_s, self.slow = wait_s, slow


@dataclass(frozen=True)
class ByteStream:
    """Bytes [start, ...) of a file, on their way.

    start: where they begin, 0 from a server that does not know ranges. total: bytes of the whole
    file, where known. version: what changes with the file, where known. pieces: the bytes, at most
    PIECE_BYTES at a time; raises Trouble.
    """

    start: int
    total: int | None
    version: str | None
    pieces: Iterable[bytes]


def paced(pieces: Iterable[bytes], timeout_s: float) -> Iterator[bytes]:
    """The same pieces; raises Trouble when they come at less than 1 kB/s for four timeouts. Only
    time spent waiting for them counts.
    """
    waited_s, num_bytes, coming = 0.0, 0, iter(pieces)
    while True:
        began = time.monotonic()
        piece = next(coming, None)
        waited_s += time.monotonic() - began
        if piece is None:
            return
        yield piece
        num_bytes += len(piece)
        if waited_s >= SLOW_TIMEOUTS * timeout_s:
            if num_bytes < LEAST_BYTES_PER_S * waited_s:
                raise TransientError(f"only {num_bytes} bytes came in {waited_s:.0f} s", slow=True)
            waited_s, num_bytes = 0.0, 0
