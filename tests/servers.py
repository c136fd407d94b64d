"""A real HTTP server on loopback over a folder, with faults made to order.

    # In a thread of its own; FolderServer(folder, ranges=False) ignores Range.
    with FolderServer(folder) as server:
        # The next request of a.tar; `on=(1, 3)` counts requests from 1, `on=None` is each.
        server.fault("a.tar", "reset", after_bytes=1000)
        server.fault("*.tar", "status", status=503, retry_after="1", on=None)
        read(f"{server.url}/a.tar")
        server.requests["/a.tar"], server.bytes_served["/a.tar"], server.log[0].headers["range"]

A path is the URL's, without query, with or without the leading slash, and may be a pattern;
`requests` and `bytes_served` (body bytes, counted before they are sent, so a client never knows
more than the counter) are keyed with the slash. Below the folder nothing is special: the Hub's
`datasets/O/N/resolve/main/x.tar` is a file of that name. `reply` answers a path without a file.

Kinds of fault, each of one response:

    status      the answer is `status`, with Retry-After if `retry_after` is given and `headers`
    reset       the connection is reset after the client has received `after_bytes` of the body
    truncate    the connection ends cleanly after `after_bytes`; Content-Length promised more
    shorten     the file itself seems to end after `after_bytes` of the body
    stall       nothing comes after `after_bytes`, the connection stays open
    slow        `bytes_per_s`
    corrupt     the byte at `after_bytes` of the body is inverted
    redirect    302 to `location`
    chunked     Transfer-Encoding: chunked, no Content-Length; cut after `after_bytes` if given
    hold        the answer waits for `server.release.set()`

In a process of its own, so that it shares no interpreter lock with the reader (same arguments, the
methods over HTTP):

    with ServerProcess(folder) as server: server.url; server.fault(...); server.requests
    # Prints its URL:
    python tests/servers.py FOLDER [--port P] [--no-ranges] [--faults '[{"path": "a.tar", ...}]']
"""

import argparse
import fcntl
import hashlib
import json
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import unquote, urlsplit

from loopback import LoopbackServer
from server_faults import Discarded, Fault, Kind, Reply, Request, bytes_before, with_slash

_PIECE = 1 << 19
_CONTROL = "/.server/"


class FolderServer:
    """See the module. etags: whether ETag and Last-Modified are sent; the tag hashes the file's
    time and size. if_range: whether If-Range counts.
    """

    def __init__(
        self,
        folder: Path,
        *,
        ranges: bool = True,
        etags: bool = True,
        if_range: bool = True,
        port: int = 0,
    ) -> None:
        self.folder, self.ranges, self.etags, self.if_range = (
            folder.resolve(),
            ranges,
            etags,
            if_range,
        )
        self.requests: Counter[str] = Counter()
        self.bytes_served: Counter[str] = Counter()
        self.log: list[Request] = []
        self.release = threading.Event()
        self.faults: list[Fault] = []
        self.replies: dict[str, Reply] = {}
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._http = LoopbackServer(self, _Handler, port=port)
        self.url = self._http.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Refuses connections from now on; stalled ones end."""
        self.closing.set()
        self.release.set()
        self._http.close()

    def fault(self, path: str, kind: Kind, *, on: Sequence[int] | None = (), **how: Any) -> None:
        """Orders a fault; without `on`, for the next request of exactly this path. Of several that
        fit, the first ordered strikes.
        """
        with self.lock:
            path = with_slash(path)
            numbers = (self.requests[path] + 1,) if on is not None and not on else on
            self.faults.append(
                Fault(path, kind, None if numbers is None else tuple(numbers), **how)
            )

    def reply(
        self, path: str, body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answers a path with these bytes, with or without a file there."""
        self.replies[with_slash(path)] = Reply(body, status, headers or {})

    def find(self, path: str, number: int) -> Fault | None:
        fits = (
            f for f in self.faults if fnmatchcase(path, f.path) and (f.on is None or number in f.on)
        )
        return next(fits, None)


class ServerProcess:
    """A FolderServer in another process. `requests` and `bytes_served` are asked for at each
    access.
    """

    def __init__(self, folder: Path, *, ranges: bool = True, port: int = 0) -> None:
        options = ["--port", str(port), *([] if ranges else ["--no-ranges"])]
        command = [sys.executable, str(Path(__file__).resolve()), str(folder), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url, "the server did not start"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def fault(self, path: str, kind: Kind, **how: Any) -> None:
        """As FolderServer.fault."""
        self._ask("fault", {"path": path, "kind": kind, **how})

    @property
    def requests(self) -> Counter[str]:
        return Counter(self._ask("counts")["requests"])

    @property
    def bytes_served(self) -> Counter[str]:
        return Counter(self._ask("counts")["bytes_served"])

    def _ask(self, what: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"{self.url}{_CONTROL}{what}", data, timeout=300) as answer:
            return json.load(answer)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: LoopbackServer

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        """Orders a fault from another process."""
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.owner.fault(**order)
        self._send_reply(Reply(b"{}", 200, {}))

    def log_message(self, *_: object) -> None:
        """Silence: `FolderServer.log` has it."""

    def _answer(self) -> None:
        owner = self.server.owner
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        if path.startswith(_CONTROL):
            counts = {"requests": owner.requests, "bytes_served": owner.bytes_served}
            return self._send_reply(Reply(json.dumps(counts).encode(), 200, {}))
        with owner.lock:
            owner.requests[path] += 1
            number = owner.requests[path]
            self._fault = owner.find(path, number)
        self._path, self._seen = path, (path, parts.query, number)
        match self._fault:
            case Fault(kind="status", status=status, headers=headers, retry_after=after):
                wait = {} if after is None else {"Retry-After": after}
                return self._send_reply(Reply(b"fault", status, {**headers, **wait}))
            case Fault(kind="redirect", location=location):
                return self._send_reply(Reply(b"", 302, {"Location": location}))
            case Fault(kind="hold"):
                owner.release.wait()
        if path in owner.replies:
            return self._send_reply(owner.replies[path])
        file = (owner.folder / path.lstrip("/")).resolve()
        if not (file.is_file() and file.is_relative_to(owner.folder)):
            return self._send_reply(Reply(b"no such file", 404, {}))
        with file.open("rb") as opened:
            return self._send_file(opened, file)

    def _note(self, status: int) -> None:
        path, query, number = self._seen
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.server.owner.log.append(Request(path, query, number, self.command, headers, status))

    def _send_reply(self, reply: Reply) -> None:
        if not self.path.startswith(_CONTROL):
            self._note(reply.status)
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            if not self.path.startswith(_CONTROL):
                self._count(len(reply.body))
            self.wfile.write(reply.body)

    def _count(self, num_bytes: int) -> None:
        with self.server.owner.lock:
            self.server.owner.bytes_served[self._path] += num_bytes

    def _send_file(self, opened: BinaryIO, file: Path) -> None:
        owner, stat, fault = self.server.owner, file.stat(), self._fault
        size = stat.st_size
        if fault is not None and fault.kind == "shorten":
            size = min(size, bytes_before(fault))
        tag = '"' + hashlib.md5(f"{stat.st_mtime_ns} {stat.st_size}".encode()).hexdigest() + '"'
        span = self._span(size, tag)
        if span == (-1, -1):
            return self._send_reply(Reply(b"", 416, {"Content-Range": f"bytes */{size}"}))
        start, end = span or (0, size)
        self._note(206 if span else 200)
        self.send_response(206 if span else 200)
        if owner.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if span:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        if owner.etags:
            self.send_header("ETag", tag)
            self.send_header("Last-Modified", self.date_time_string(int(stat.st_mtime)))
        chunked = fault is not None and fault.kind == "chunked"
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(opened, start, end)
        return None

    def _span(self, size: int, tag: str) -> tuple[int, int] | None:
        """The range asked for as [start, end), None for the whole file, (-1, -1) for one outside of
        it.
        """
        asked = self.headers.get("Range", "")
        guard = self.headers.get("If-Range")
        outdated = self.server.owner.if_range and guard is not None and guard != tag
        if outdated or not (self.server.owner.ranges and asked.startswith("bytes=")):
            return None
        first, _, last = asked.removeprefix("bytes=").partition("-")
        if not first:
            return (max(0, size - int(last)), size) if size else (-1, -1)
        start, end = int(first), min(size, int(last) + 1 if last else size)
        return (start, end) if start < end else (-1, -1)

    def _send_body(self, opened: BinaryIO, start: int, end: int) -> None:
        fault = self._fault
        opened.seek(start)
        if fault is None or fault.kind in ("shorten", "hold"):
            for at in range(start, end, _PIECE):
                size = min(_PIECE, end - at)
                self._count(size)
                self.connection.sendfile(opened, at, size)
            return
        limited = (
            fault.kind in ("reset", "truncate", "stall", "chunked")
            and fault.after_bytes is not None
        )
        stop = (
            min(end, start + bytes_before(fault))
            if limited or fault.kind in ("reset", "truncate", "stall")
            else end
        )
        self._send_pieces(opened, start, stop, fault)
        match fault.kind:
            case "reset":
                while struct.unpack("i", fcntl.ioctl(self.connection, termios.TIOCOUTQ, bytes(4)))[
                    0
                ]:
                    time.sleep(0.001)  # a reset throws away what is not sent yet
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                self.wfile = Discarded()  # type: ignore[assignment]
                self.connection.close()
                self.close_connection = True
            case "stall":
                self.server.owner.closing.wait()
                self.close_connection = True
            case "truncate":
                self.close_connection = True
            case "chunked" if stop == end:
                self.wfile.write(b"0\r\n\r\n")
            case "chunked":
                self.close_connection = True

    def _send_pieces(self, opened: BinaryIO, start: int, stop: int, fault: Fault) -> None:
        piece_bytes = (
            max(1, min(_PIECE, int(fault.bytes_per_s / 50))) if fault.kind == "slow" else _PIECE
        )
        at = start
        while at < stop:
            piece = bytearray(opened.read(min(piece_bytes, stop - at)))
            if not piece:
                return
            if fault.kind == "corrupt" and at <= start + bytes_before(fault) < at + len(piece):
                piece[start + bytes_before(fault) - at] ^= 0xFF
            framed = (
                b"%x\r\n" % len(piece) + piece + b"\r\n"
                if fault.kind == "chunked"
                else bytes(piece)
            )
            self._count(len(piece))
            self.wfile.write(framed)
            at += len(piece)
            if fault.kind == "slow":
                time.sleep(len(piece) / fault.bytes_per_s)


def _main() -> None:
    parser = argparse.ArgumentParser(
        description="Serves a folder on loopback, with faults; prints its URL."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--no-ranges", action="store_true")
    parser.add_argument("--faults", type=json.loads, default=[])
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = FolderServer(given.folder, ranges=not given.no_ranges, port=given.port)
    for order in given.faults:
        server.fault(**order)
    print(server.url, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    _main()
