"""What all transports share: the stream of bytes, and the error that another try may fix."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# Bytes of one read, so that memory stays flat however large a shard is.
PIECE_BYTES = 1 << 20
# A source that sends less than this for so many timeouts counts as silent: a shard of 100 MB would
# take a day.
LEAST_BYTES_PER_S = 1000.0
SLOW_TIMEOUTS = 4


class TransientError(Exception):
    """A failure that may pass. `wait_s`: how long the server asks us to wait, or None. `slow`:
    bytes came, but too few to continue.
    """

    def __init__(self, reason: str, wait_s: float | None = None, *, slow: bool = False) -> None:
        super().__init__(reason)
        self.wait_s, self.slow = wait_s, slow


@dataclass(frozen=True)
class ByteStream:
    """The bytes [start, ...) of a file while they arrive.

    start: 0 from a server without ranges. total: bytes of the whole file, if known. version:
    changes with the file, if known. pieces: at most PIECE_BYTES each; raises TransientError.
    """

    start: int
    total: int | None
    version: str | None
    pieces: Iterable[bytes]


def paced(pieces: Iterable[bytes], timeout_s: float) -> Iterator[bytes]:
    """The same pieces; raises TransientError when they come at less than 1 kB/s for four timeouts.
    Only the time spent waiting for them counts.
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
