"""A fake Hugging Face Hub: a real HTTP server on loopback, with repositories in memory.

    with FakeHub() as hub:
        hub.account("hf_alice", "alice", organizations=("lab",))
        with hub.connected(monkeypatch, cache=tmp_path, token="hf_alice"):
            HfApi().create_repo("alice/net")
        hub["alice/net"].files()                # {".gitattributes": b"..."}
        hub.environment                         # HF_ENDPOINT and so on, for another process

It speaks what `huggingface_hub` asks for model repositories: whoami, create, validate-yaml,
preupload, the batches and uploads of large files (basic transfer), commit with parentCommit, pull
requests, branches, model info, tree, paths-info, refs, and resolve with ETag and X-Repo-Commit.
Large files are read from another host name (localhost instead of 127.0.0.1), as from the real Hub,
so a client must not send its token there.

Faults are ordered as in `servers`, by a path that may be a pattern:

    hub.fault("*/commit/main", "status", status=429, retry_after="1")
    hub.fault("/lfs/*", "cut", after_bytes=1000)    # reset once so much of the request is read
    hub.fault("*/commit/main", "unanswered")        # carried out, and the connection is reset
    hub.fault("*/commit/main", "hold")              # waits for hub.release.set()
    hub.cut_after(5000)   # reset after so many bytes of all requests; down until hub.restore()
"""

import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import pytest
from fake_hub_answers import Hub, answer
from fake_hub_repository import Account, RefusedError, Repository
from loopback import LoopbackServer
from server_faults import Discarded, Fault, FaultOrders, Kind, Reply, Request

_PIECE = 1 << 16


class _CutError(Exception):
    """The connection is to be reset."""


class FakeHub:
    """See the module.

    Attributes:
        bytes_received: of all requests, with their headers.
        log: every request that was read completely, in order.
        read_at: `bytes_received` when each of them was read.
    """

    def __init__(self) -> None:
        self.faults = FaultOrders()
        self.requests: Counter[str] = self.faults.requests
        self.log: list[Request] = []
        self.read_at: list[int] = []
        self.release = threading.Event()
        self.lock = threading.RLock()
        self.bytes_received = 0
        self._limit: int | None = None
        self._http = LoopbackServer(self, _Handler)
        self.url = self._http.url
        self.hub = Hub(self.url, f"http://localhost:{self._http.server_port}/cdn")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.release.set()
        self._http.close()

    def __getitem__(self, repo_id: str) -> Repository:
        return self.hub.repositories[repo_id]

    def __contains__(self, repo_id: str) -> bool:
        return repo_id in self.hub.repositories

    def account(
        self, token: str, name: str, *, role: str = "write", organizations: Sequence[str] = ()
    ) -> None:
        """Makes an account and its token known."""
        self.hub.accounts[token] = Account(name, role, tuple(organizations))

    def repository(
        self, repo_id: str, files: dict[str, bytes] | None = None, **how: Any
    ) -> Repository:
        """Makes a repository, with one more commit if files are given."""
        made = self.hub.repositories[repo_id] = Repository(repo_id, **how)
        if files:
            made.add(files)
        return made

    def fault(self, path: str, kind: Kind, *, on: Sequence[int] | None = (), **how: Any) -> None:
        """Orders a fault; without `on`, for the next request of a path that fits."""
        self.faults.order(path, kind, on=on, **how)

    def cut_after(self, num_bytes: int) -> None:
        """Resets the connection after `num_bytes` more of any requests, and every later one until
        `restore`.
        """
        with self.lock:
            self._limit = self.bytes_received + num_bytes

    def restore(self) -> None:
        with self.lock:
            self._limit = None

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use this Hub instead of the real one."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    @contextmanager
    def connected(
        self, monkeypatch: pytest.MonkeyPatch, *, cache: Path, token: str | None = None
    ) -> Iterator[None]:
        """Makes this process use this Hub, whatever its environment said when huggingface_hub was
        imported, with an empty cache and no token but `token`.
        """
        with monkeypatch.context() as patch:
            connect(patch, self.url, cache, token)
            try:
                yield
            finally:
                forget_client()  # it was made online

    @staticmethod
    def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
        """Makes huggingface_hub in this process repeat failed requests at once."""
        from huggingface_hub.utils import _http

        hurried = SimpleNamespace(sleep=lambda seconds: None, time=time.time)
        monkeypatch.setattr(_http, "time", hurried)

    def received(self, wanted: int) -> int:
        """Counts bytes that are about to be read. Returns how many may be read before the cut."""
        with self.lock:
            if self._limit is None:
                self.bytes_received += wanted
                return wanted
            allowed = max(0, min(wanted, self._limit - self.bytes_received))
            self.bytes_received += allowed
            return allowed


def connect(patch: pytest.MonkeyPatch, url: str, cache: Path, token: str | None) -> None:
    """Points huggingface_hub in this process at a Hub and an empty cache."""
    from huggingface_hub import constants

    forget_client()  # it may have connections to an earlier Hub on the same port
    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_TOKEN_PATH": str(cache / "token"),
    }.items():
        patch.setattr(constants, name, value, raising=False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)
    if token is not None:
        patch.setenv("HF_TOKEN", token)


def forget_client() -> None:
    """Has huggingface_hub in this process make a new HTTP client for its next request."""
    from huggingface_hub import utils

    # Versions below 1 have another name for it.
    close = "close_session" if hasattr(utils, "close_session") else "reset_sessions"
    getattr(utils, close)()


class _Counted:
    """The stream of requests, counted and cut by the Hub."""

    def __init__(self, stream: Any, owner: FakeHub) -> None:
        self._stream, self._owner = stream, owner

    def readline(self, limit: int = -1) -> bytes:
        line: bytes = self._stream.readline(limit)
        if self._owner.received(len(line)) < len(line):
            raise _CutError
        return line

    def read(self, size: int) -> bytes:
        allowed = self._owner.received(size)
        content: bytes = self._stream.read(allowed)
        if allowed < size:
            raise _CutError
        return content

    def close(self) -> None:
        self._stream.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: LoopbackServer

    def setup(self) -> None:
        super().setup()
        self.rfile = _Counted(self.rfile, self.server.owner)  # type: ignore[assignment]

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except _CutError:
            self._reset()

    def log_message(self, *_: object) -> None:
        """Silence: `FakeHub.log` has it."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - the names that http.server calls

    def _answer(self) -> None:
        owner = self.server.owner
        path, number, fault = owner.faults.next(self.path)
        body = self._body(fault)
        read_at = owner.bytes_received
        if fault is not None and fault.kind == "hold":
            owner.release.wait()
        if fault is not None and fault.kind == "status":
            wait = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
            reply = Reply(b'{"error": "fault"}', fault.status, {**fault.headers, **wait})
        else:
            try:
                with owner.lock:
                    reply = answer(owner.hub, self.command, self.path, dict(self.headers), body)
            except RefusedError as refused:
                code = {"X-Error-Code": refused.code} if refused.code else {}
                message = json.dumps({"error": refused.message}).encode()
                headers = {"X-Error-Message": refused.message, **code}
                reply = Reply(message, refused.status, headers)
        headers = {key.lower(): value for key, value in self.headers.items()}
        query = urlsplit(self.path).query
        owner.log.append(Request(path, query, number, self.command, headers, reply.status))
        owner.read_at.append(read_at)
        if fault is not None and fault.kind == "unanswered":
            raise _CutError
        self._send(reply)

    def _body(self, fault: Fault | None) -> bytes:
        cut = fault.after_bytes or 0 if fault is not None and fault.kind == "cut" else None
        received = b""
        for size in self._sizes():
            if cut is not None and len(received) + size > cut:
                self.rfile.read(cut - len(received))
                raise _CutError
            received += self.rfile.read(size)
        if cut is not None:
            raise _CutError
        return received

    def _sizes(self) -> Iterator[int]:
        """The sizes of the pieces to read, until the body ends."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield size
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            yield min(left, _PIECE)
            left -= min(left, _PIECE)

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.wfile = Discarded()  # type: ignore[assignment]
        self.connection.close()
        self.close_connection = True
