"""Transfers from a server with faults: each fault is survived or explained, and no byte is lost."""

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import FolderServer
from transfers import CONTENT, QUICK, SHA256, SIZE, failure, fetched

from distill.data.stream.transport import TransferError, Transport, wait_s
from distill.data.stream.web import _asked_wait_s


@pytest.mark.parametrize("kind", ["reset", "truncate", "chunked", "stall"])
@pytest.mark.parametrize("after_bytes", [0, 1, 2_000_003])
def test_a_broken_transfer_continues_where_it_was(
    server: FolderServer, tmp_path: Path, kind: Any, after_bytes: int
) -> None:
    transport = (
        Transport(retries=2, timeout_s=1.0, first_wait_s=0.001) if kind == "stall" else QUICK
    )
    server.fault("a.bin", kind, after_bytes=after_bytes)
    assert fetched(server, tmp_path / "a", transport, size=SIZE, sha256=SHA256) == CONTENT
    if kind != "stall":  # a loaded machine may stall once more
        assert server.requests["/a.bin"] == 2
        assert server.bytes_served["/a.bin"] == SIZE
    if after_bytes:
        assert server.log[1].headers["range"] == f"bytes={after_bytes}-"


def test_without_ranges_it_starts_over(deaf: FolderServer, tmp_path: Path) -> None:
    deaf.fault("a.bin", "reset", after_bytes=2_000_003)
    assert fetched(deaf, tmp_path / "a", sha256=SHA256) == CONTENT
    assert deaf.bytes_served["/a.bin"] == 2_000_003 + SIZE


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_may_pass_is_tried_again(server: FolderServer, tmp_path: Path, status: int) -> None:
    server.fault("a.bin", "status", status=status, on=(1, 2))
    assert fetched(server, tmp_path / "a") == CONTENT
    assert server.requests["/a.bin"] == 3


@pytest.mark.parametrize("guard", ["If-Range", "ETag alone", "none"])
@pytest.mark.parametrize("size", [SIZE, 600_000])
def test_two_states_of_a_file_are_not_spliced(
    folder: Path, tmp_path: Path, guard: str, size: int
) -> None:
    changed = CONTENT[::-1][:size]
    with FolderServer(folder, etags=guard != "none", if_range=guard == "If-Range") as server:
        server.fault("a.bin", "reset", after_bytes=1_000_000, on=(1,))
        server.fault("a.bin", "hold", on=(2,))
        thread = threading.Thread(target=fetched, args=(server, tmp_path / "a"))
        thread.start()
        while server.requests["/a.bin"] < 2:
            time.sleep(0.01)
        (folder / "new").write_bytes(changed)
        (folder / "new").replace(folder / "a.bin")
        server.release.set()
        thread.join()
    assert (tmp_path / "a").read_bytes() == changed
    assert server.requests["/a.bin"] == (3 if guard == "ETag alone" else 2)


def test_progress_forgives_failures(server: FolderServer, tmp_path: Path) -> None:
    server.fault("a.bin", "reset", after_bytes=400_000, on=range(1, 9))
    transport = Transport(retries=0, timeout_s=60, first_wait_s=0.001)
    assert fetched(server, tmp_path / "a", transport, sha256=SHA256) == CONTENT
    assert server.requests["/a.bin"] == 9


def test_failures_without_progress_are_bounded(
    server: FolderServer, deaf: FolderServer, tmp_path: Path
) -> None:
    server.fault("a.bin", "reset", after_bytes=1000, on=(1,))
    server.fault("a.bin", "status", status=503, on=None)
    said = failure(lambda: fetched(server, tmp_path / "a"), TransferError)
    assert f"{server.url}/a.bin: at byte 1000, tried 4 times: the server answers 503" in said
    assert server.requests["/a.bin"] == 4

    deaf.fault(
        "a.bin", "truncate", after_bytes=1000, on=None
    )  # the same bytes again and again are no progress
    said = failure(lambda: fetched(deaf, tmp_path / "a"), TransferError)
    assert f"ended after 1000 of {SIZE} bytes" in said
    assert deaf.requests["/a.bin"] == 4

    url = f"{server.url}/a.bin"
    server.close()
    assert "refused" in failure(lambda: QUICK.read(url), TransferError)


@contextmanager
def speaking(answer: Callable[[socket.socket, str], None]) -> Iterator[str]:
    """The URL of a server that does with each connection, and what was asked there, as `answer`
    says.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def speak(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                answer(connection, connection.recv(1 << 16).decode())

        def listen() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(
                        target=speak, args=(listening.accept()[0],), daemon=True
                    ).start()

        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/a.bin"
        listening.shutdown(socket.SHUT_RDWR)


def drop_by_drop(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x")
        threading.Event().wait(0.02)  # other tests replace time.sleep, for this thread too


@pytest.mark.parametrize("where", ["body", "headers", "chunk", "redirect", "a byte a try"])
def test_a_trickle_is_given_up(where: str, tmp_path: Path) -> None:
    """The timeout of a socket begins again with each byte."""

    def answer(connection: socket.socket, asked: str) -> None:
        match where:
            case "body":
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            case "headers":
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
            case "chunk":
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;")
            case "redirect":
                connection.sendall(
                    b"HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 1000000\r\n\r\n"
                )
            case _:
                at = int(asked.partition("bytes=")[2].partition("-")[0] or 0)
                header = (
                    f'HTTP/1.1 206 P\r\nETag: "x"\r\nContent-Range: bytes {at}-999/1000\r\n\r\nx'
                )
                connection.sendall(header.encode())
                time.sleep(1.0)
                return
        drop_by_drop(connection)

    began = time.monotonic()
    with speaking(answer) as url:
        transport = Transport(retries=1, timeout_s=0.25, first_wait_s=0.001)
        said = failure(lambda: transport.fetch(url, tmp_path / "a"), TransferError)
    assert said.startswith(f"{url}: at byte ")
    assert ("bytes came in 1 s" in said) == (where == "body")
    assert time.monotonic() - began < 60


def test_waits_that_a_server_asks_for_are_bounded_together(
    server: FolderServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("distill.data.stream.transport.time.sleep", slept.append)
    server.fault("a.bin", "status", status=429, retry_after="200", on=None)
    transport = Transport(retries=1000, timeout_s=60, first_wait_s=0.001)
    assert "answers 429" in failure(
        lambda: fetched(server, tmp_path / "a", transport), TransferError
    )
    assert slept == [200.0] * 9


def test_a_server_that_sends_a_little_each_time_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = CONTENT[:200_000]

    def answer(connection: socket.socket, asked: str) -> None:
        at = int(asked.partition("bytes=")[2].partition("-")[0] or 0)
        part = content[at : at + 1000]
        place = (
            f"Content-Range: bytes {at}-{at + len(part) - 1}/{len(content)}\r\nContent-Length:"
            f" {len(part)}"
        )
        connection.sendall(f'HTTP/1.1 206 P\r\nETag: "x"\r\n{place}\r\n\r\n'.encode() + part)

    monkeypatch.setattr("distill.data.stream.transport.time.sleep", lambda _: pytest.fail("waits"))
    with speaking(answer) as url:
        Transport(retries=3, timeout_s=60).fetch(url, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == content


def test_a_promised_checksum_lets_it_continue_without_a_version(
    folder: Path, tmp_path: Path
) -> None:
    with FolderServer(folder, etags=False) as server:
        server.fault("a.bin", "reset", after_bytes=2_000_003, on=(1, 2))
        assert fetched(server, tmp_path / "a", sha256=SHA256) == CONTENT
        assert server.log[1].headers["range"] == "bytes=2000003-"
        assert server.bytes_served["/a.bin"] == SIZE
        server.fault("a.bin", "reset", after_bytes=2_000_003, on=(3,))
        assert fetched(server, tmp_path / "a", size=SIZE) == CONTENT
        assert "range" not in server.log[-1].headers


def test_waits_grow_are_bounded_and_hear_the_server() -> None:
    assert [wait_s(n, None, 0.5, 0.0) for n in (0, 1, 2, 50)] == [0.5, 1.0, 2.0, 30.0]
    assert wait_s(2, None, 0.5, 1.0) == 1.0
    assert wait_s(0, 20.0, 0.5, 0.0) == 20.0
    assert wait_s(0, 1e9, 0.5, 0.0) == 300.0
    assert wait_s(3, 0.0, 0.5, 0.0) == 4.0

    def asked(name: str, value: str) -> float | None:
        headers = Message()
        headers[name] = value
        return _asked_wait_s(headers)

    assert asked("Retry-After", "7") == 7.0
    assert asked("RateLimit", '"resolvers";r=0;t=56') == 56.0
    later = asked(
        "Retry-After", format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    )
    assert later is not None
    assert 3000 < later <= 3600
    assert asked("Retry-After", "Thu, 01 Jan 1970 00:00:00 GMT") == 0.0
    assert asked("Retry-After", "soon") is None


def test_retry_after_is_waited_and_no_random_generator_moves(
    server: FolderServer, tmp_path: Path
) -> None:
    server.fault("a.bin", "status", status=429, retry_after="1")
    before, before_numpy, start = (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        time.monotonic(),
    )  # type: ignore[index]
    assert fetched(server, tmp_path / "a") == CONTENT
    assert time.monotonic() - start >= 1.0
    assert random.getstate() == before
    assert np.random.get_state()[1].tolist() == before_numpy  # type: ignore[index]


@pytest.mark.parametrize("kind", ["corrupt", "shorten"])
def test_a_file_other_than_promised_is_fetched_once_more(
    server: FolderServer, tmp_path: Path, kind: Any
) -> None:
    server.fault("a.bin", kind, after_bytes=1_500_000, on=(1, 3, 4))
    assert fetched(server, tmp_path / "a", size=SIZE, sha256=SHA256) == CONTENT
    assert server.requests["/a.bin"] == 2
    said = failure(lambda: fetched(server, tmp_path / "a", size=SIZE, sha256=SHA256), TransferError)
    assert f"{server.url}/a.bin: it" in said
    assert ("SHA-256" if kind == "corrupt" else "1500000 bytes") in said
    assert server.requests["/a.bin"] == 4


def test_a_length_that_the_server_hides_is_still_held_to_the_promise(
    deaf: FolderServer, tmp_path: Path
) -> None:
    deaf.fault("a.bin", "chunked", on=None)
    assert fetched(deaf, tmp_path / "a", size=SIZE) == CONTENT
    said = failure(lambda: fetched(deaf, tmp_path / "a", size=SIZE - 1), TransferError)
    assert f"more than the {SIZE - 1} bytes" in said
    said = failure(lambda: fetched(deaf, tmp_path / "a", size=SIZE + 1), TransferError)
    assert f"ended at byte {SIZE} of {SIZE + 1}" in said
