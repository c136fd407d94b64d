"""What the ways of opening a file have in common: the body that is being read, and trouble that another try may mend."""

from collections.abc import Iterable
from dataclasses import dataclass

# Read at most so much at a time, so that memory stays flat however large a shard is.
PIECE_BYTES = 1 << 20


class Trouble(Exception):  # noqa: N818 - not an error yet: another try may mend it
    """A failure that may pass. wait_s: how long the server asks us to wait, where it does."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Body:
    """Bytes [start, ...) of a file, on their way.

    start: where they begin, 0 from a server that does not know ranges. total: bytes of the whole file, where known. version: what
    changes with the file, where known. pieces: the bytes, at most PIECE_BYTES at a time; raises Trouble.
    """

    start: int
    total: int | None
    version: str | None
    pieces: Iterable[bytes]
