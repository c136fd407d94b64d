"""The faults that the servers of `servers` and `fake_hub` make, their fixed answers, and the
requests they log.
"""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

Kind = Literal[
    "status",
    "reset",
    "truncate",
    "shorten",
    "stall",
    "slow",
    "corrupt",
    "redirect",
    "chunked",
    "hold",
    # of the fake Hub
    "cut",
    "unanswered",
]


@dataclass(frozen=True)
class Fault:
    """What goes wrong. on: the numbers of the requests that it strikes, counted by path from 1;
    None: every one.
    """

    path: str
    kind: Kind
    on: tuple[int, ...] | None
    after_bytes: int | None = None
    status: int = 503
    retry_after: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    bytes_per_s: float = 1e6
    location: str = ""


@dataclass(frozen=True)
class Reply:
    """A fixed answer."""

    body: bytes
    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Request:
    """One request: its number among those of its path, its headers (lower case), and the status of
    the answer.
    """

    path: str
    query: str
    number: int
    method: str
    headers: dict[str, str]
    status: int


class Discarded:
    """Replaces the stream of a reset connection, which http.server flushes at the end."""

    closed = True

    def write(self, content: bytes) -> int:
        return len(content)

    def flush(self) -> None: ...

    def close(self) -> None: ...


def bytes_before(fault: Fault) -> int:
    return fault.after_bytes or 0


def with_slash(path: str) -> str:
    return "/" + path.lstrip("/")


class FaultOrders:
    """The faults that are ordered, and how often each path was asked for.

    Of several that fit a request, the first ordered strikes.
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.lock = threading.Lock()

    def order(self, path: str, kind: Kind, *, on: Sequence[int] | None = (), **how: Any) -> None:
        """Orders a fault; without `on`, for the next request of this path, or if it is a pattern
        for the next request that fits it.
        """
        with self.lock:
            path = path if path.startswith("*") else with_slash(path)
            done = sum(count for each, count in self.requests.items() if fnmatchcase(each, path))
            numbers = (done + 1,) if on is not None and not on else on
            self.faults.append(
                Fault(path, kind, None if numbers is None else tuple(numbers), **how)
            )

    def next(self, target: str) -> tuple[str, int, Fault | None]:
        """Counts a request.

        Args:
            target: of the request line.

        Returns:
            Its path, its number among those of the path, and its fault.
        """
        path = unquote(urlsplit(target).path)
        with self.lock:
            self.requests[path] += 1
            return path, self.requests[path], self._find(path)

    def _find(self, path: str) -> Fault | None:
        for fault in self.faults:
            if not fnmatchcase(path, fault.path):
                continue
            fitting = (n for each, n in self.requests.items() if fnmatchcase(each, fault.path))
            if fault.on is None or sum(fitting) in fault.on:
                return fault
        return None
