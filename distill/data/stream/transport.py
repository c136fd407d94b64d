"""Bytes from anywhere: failures are tried again after growing waits, a transfer resumes where it
broke off, and two versions of a file are never spliced.
Where a file lies:

- http(s)://..., through the proxies of the environment, with the USER:PASSWORD@ of the URL;
- hf://datasets/OWNER/NAME[@REVISION]/FILE, the Hub, with the user's token;
- SCHEME://..., whatever else fsspec opens;
- a path, a local file.
"""

import hashlib
import io
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from distill.data.stream.byte_stream import (
    LEAST_BYTES_PER_S,
    SLOW_TIMEOUTS,
    ByteStream,
    TransientError,
    paced,
)
from distill.data.stream.filesystem import open_file
from distill.data.stream.web import address_of, open_web
from distill.errors import InputError

# The longest wait of our own, and the longest that a server may ask for: the Hub's rate limits
# cover five minutes.
_LONGEST_WAIT_S = 30.0
_LONGEST_ASKED_S = 300.0
# The sum of the waits of one transfer that its server asks for.
_MOST_ASKED_S = 1800.0
# A transfer that breaks off after every piece fails at last, although it makes progress.
_MOST_TRIES = 1000

# The largest file that is read into memory: manifests, lists of counts, labels.
MOST_READ_BYTES = 1 << 26


class TransferError(OSError):
    """A failure that outlived the retries. The message names the file, the offset, the last reason
    and the number of tries.
    """


def wait_s(failures: int, asked_s: float | None, first_wait_s: float, chance: float) -> float:
    """Seconds to wait after `failures` in a row: they double, with up to half left to `chance` in
    [0, 1]; at least the time that the server asked for.
    """
    own = min(_LONGEST_WAIT_S, first_wait_s * 2.0 ** min(failures, 30)) * (1 - chance / 2)
    return own if asked_s is None else max(own, min(asked_s, _LONGEST_ASKED_S))


class Transport:
    """Fetches files. Holds nothing open, so it may be pickled, forked and shared by threads.

    A transfer at less than 1 kB/s fails after about 4 * (retries + 1) timeouts, however its bytes
    are distributed over that time.

    Args:
        retries: how many failures in a row are allowed without a new byte.
        timeout_s: seconds without a byte after which a connection counts as stalled.
        first_wait_s: seconds to wait after the first failure; it doubles up to 30 s.
    """

    def __init__(self, *, retries: int, timeout_s: float, first_wait_s: float = 0.5) -> None:
        self.retries, self.timeout_s, self.first_wait_s = retries, timeout_s, first_wait_s

    def size(self, url: str) -> int | None:
        """The size of a file in bytes; None if the server does not say.

        Raises:
            InputError, TransferError: as `fetch`.
        """
        tries = _Tries(self, url)
        while True:
            try:
                # The first byte rather than HEAD, which signed URLs refuse.
                with self._open(url, 0, 1, None, again=tries.made > 0) as body:
                    return body.total
            except TransientError as trouble:
                tries.failed(trouble, 0)

    def read(
        self, url: str, start: int = 0, end: int | None = None, *, most_bytes: int = MOST_READ_BYTES
    ) -> bytes:
        """A small file, or the bytes [start, end) of any; fewer if the file ends before `end`.

        Raises:
            InputError, TransferError: as `fetch`; more than `most_bytes`.
        """
        assert 0 <= start <= (start if end is None else end), (start, end)
        if start == end:
            return b""
        content = io.BytesIO()
        self._pour(
            url,
            start,
            end,
            _Sink(content, hashed=False, most_bytes=most_bytes, display_url=_display_url(url)),
            None,
        )
        return content.getvalue()

    def fetch(
        self, url: str, path: Path, *, size: int | None = None, sha256: str | None = None
    ) -> None:
        """Write the file to `path`, created or overwritten, in pieces of 1 MiB. If it is not the
        promised file it is fetched once more.

        Raises:
            InputError: retries do not help: no such file, host or repository, no access.
            TransferError: the retries did not help, or the bytes are not the promised ones.
            OSError: `path` cannot be written.
        """
        with path.open("wb") as file:
            sink = _Sink(file, hashed=sha256 is not None)
            for again in (False, True):
                if again:
                    sink.restart()
                wrong = self._pour(url, 0, None, sink, size)
                if (
                    wrong is None
                    and sha256 is not None
                    and sink.digest.hexdigest() != sha256.lower()
                ):
                    wrong = f"its SHA-256 is {sink.digest.hexdigest()} and {sha256} was promised"
                if wrong is None:
                    return
        raise TransferError(
            f"{_display_url(url)}: {wrong}, in both of 2 transfers: it has changed, or is damaged"
            " where it lies"
        )

    def _open(
        self, url: str, start: int, end: int | None, version: str | None, again: bool
    ) -> AbstractContextManager[ByteStream]:
        if _is_web(url):
            return open_web(address_of(url), start, end, version, self.timeout_s)
        return open_file(url, start, end, again)

    def _pour(
        self, url: str, start: int, end: int | None, sink: "_Sink", size: int | None
    ) -> str | None:
        """Write the bytes [start, end) into the sink, each once. Returns what is wrong with the
        size, or None.
        """
        tries = _Tries(self, url)
        at = start
        version: str | None = None
        total: int | None = None
        while True:
            try:
                with self._open(url, at, end, version, again=tries.made > 0) as body:
                    same = body.version == version and (body.version is not None or sink.hashed)
                    same = same and (total is None or body.total is None or total == body.total)
                    if at > start and not (body.start == at and same):
                        sink.restart()
                        at, version = start, None
                    if body.start > at:
                        raise TransientError(
                            "the file has changed, or the server sends another part than asked for"
                        )
                    version, total = body.version, body.total
                    if size is not None and total is not None and total != size:
                        return f"it has {total} bytes and {size} were promised"
                    for piece in _from(body.start, paced(body.pieces, self.timeout_s), at, end):
                        sink.write(piece)
                        at += len(piece)
                        if size is not None and at > size:
                            return f"it has more than the {size} bytes that were promised"
                goal = min((stop for stop in (end, total, size) if stop is not None), default=at)
                if at < goal:
                    raise TransientError(f"the answer ended at byte {at} of {goal}")
                return None
            except TransientError as trouble:
                tries.failed(trouble, at)
                # Without a version nothing would show that the rest is of the same file.
                if version is None and not sink.hashed:
                    sink.restart()
                    at = start


class _Sink:
    """The file that bytes are written to and their hash. Errors of the disk are not retried."""

    def __init__(
        self, file: IO[bytes], hashed: bool, most_bytes: int | None = None, display_url: str = ""
    ) -> None:
        self._file, self.hashed = file, hashed
        self._most_bytes, self._display_url = most_bytes, display_url
        self.digest = hashlib.sha256()

    def write(self, piece: bytes) -> None:
        if self._most_bytes is not None and self._file.tell() + len(piece) > self._most_bytes:
            raise InputError(
                f"{self._display_url}: more than {self._most_bytes / 1e6:,.0f} MB, which no file of"
                " its name has: change the URL or the server"
            )
        self._file.write(piece)
        if self.hashed:
            self.digest.update(piece)

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self.digest = hashlib.sha256()


class _Tries:
    """Counts the failures of one transfer and waits after each.

    A try that gets further than all before it resets the count. But a try slower than 1 kB/s uses
    up the time that a transfer may take without progress, and a faster one gives it back.
    """

    def __init__(self, transport: Transport, url: str) -> None:
        self._transport, self._url = transport, url
        self._furthest = self._failures = self.made = 0
        self._granted_s = self._left_s = (
            SLOW_TIMEOUTS * transport.timeout_s * (transport.retries + 1)
        )
        self._asked_s = 0.0
        self._began = time.monotonic()

    def failed(self, trouble: TransientError, at: int) -> None:
        """Count a failure at offset `at` and wait. Raises TransferError if there were too many."""
        self.made += 1
        gained = max(0, at - self._furthest)
        self._furthest += gained
        self._left_s += gained / LEAST_BYTES_PER_S - (time.monotonic() - self._began)
        self._left_s = min(self._left_s, self._granted_s)
        progress = gained > 0 and not trouble.slow
        self._failures = 0 if progress else self._failures + 1
        asked_s = 0.0 if trouble.wait_s is None else min(trouble.wait_s, _LONGEST_ASKED_S)
        self._asked_s += asked_s
        enough = self._failures > self._transport.retries or self.made >= _MOST_TRIES
        if enough or self._left_s < 0 or self._asked_s > _MOST_ASKED_S:
            times = "once" if self.made == 1 else f"{self.made} times"
            raise TransferError(
                f"{_display_url(self._url)}: at byte {at}, tried {times}: {trouble}"
            ) from trouble
        if not progress or trouble.wait_s is not None:
            chance = random.SystemRandom().random()  # no generator of the run's is touched
            time.sleep(
                wait_s(
                    max(0, self._failures - 1), trouble.wait_s, self._transport.first_wait_s, chance
                )
            )
        self._began = time.monotonic()


def _from(start: int, pieces: Iterator[bytes], at: int, end: int | None) -> Iterator[bytes]:
    """The bytes [at, end) of pieces that begin at `start` or before, and may end after `end`."""
    here = start
    for piece in pieces:
        first, here = here, here + len(piece)
        yield piece[max(0, at - first) : None if end is None else max(0, end - first)]
        if end is not None and here >= end:
            return


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://", "hf://"))


def _display_url(url: str) -> str:
    return address_of(url).display_url if _is_web(url) else url
