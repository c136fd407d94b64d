"""The faults that the server of `servers` makes, its fixed answers, and the requests it logs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

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
