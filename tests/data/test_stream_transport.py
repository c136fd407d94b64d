"""Bytes from anywhere: every fault of a real server on loopback is mended or explained, and no byte
is lost, doubled or spliced.
"""

import hashlib
import json
import os
import pickle
import random
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
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

from distill.data.stream.transport import TransferError, Transport, wait_s
from distill.data.stream.web import _asked_wait_s
from distill.errors import InputError

SIZE = 3_500_017  # several pieces, and no round number
CONTENT = np.random.default_rng(0).bytes(SIZE)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Transport(retries=2, timeout_s=60, first_wait_s=0.001)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "served"
    made.mkdir()
    (made / "a.bin").write_bytes(CONTENT)
    (made / "empty.bin").write_bytes(b"")
    return made


@pytest.fixture
def server(folder: Path) -> Iterator[FolderServer]:
    with FolderServer(folder) as opened:
        yield opened


@pytest.fixture
def deaf(folder: Path) -> Iterator[FolderServer]:
    """A server that ignores Range."""
    with FolderServer(folder, ranges=False) as opened:
        yield opened


def fetched(
    server: FolderServer, path: Path, transport: Transport = QUICK, **promised: Any
) -> bytes:
    transport.fetch(f"{server.url}/a.bin", path, **promised)
    return path.read_bytes()


def failure(act: Callable[[], object], kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        act()
    return str(caught.value)


@pytest.mark.parametrize("kind", ["reset", "truncate", "chunked", "stall"])
@pytest.mark.parametrize("after_bytes", [0, 1, 2_000_003])
def test_a_broken_transfer_goes_on_where_it_was(
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
        time.sleep(0.02)


@pytest.mark.parametrize("where", ["body", "headers", "chunk", "redirect", "a byte a try"])
def test_a_trickle_is_given_up(where: str, tmp_path: Path) -> None:
    """The timeout of a socket begins anew with each byte."""

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


def test_a_promised_checksum_lets_it_go_on_without_a_version(folder: Path, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("status", "mend"),
    [
        (401, "credentials"),
        (403, "credentials"),
        (404, "mend the path"),
        (410, "path"),
        (451, "URL"),
    ],
)
def test_what_no_retry_mends_is_explained_at_once(
    server: FolderServer, tmp_path: Path, status: int, mend: str
) -> None:
    server.fault("a.bin", "status", status=status, on=None)
    said = failure(lambda: fetched(server, tmp_path / "a"), InputError)
    assert f"{server.url}/a.bin" in said
    assert str(status) in said
    assert mend in said
    assert server.requests["/a.bin"] == 1


def test_hosts_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "mend" in failure(lambda: QUICK.read("http://a..b/x"), InputError)
    for url in ("http://[::1/x.tar", "http://me:s3cret@[::1/x.tar?s3cret"):
        said = failure(lambda: QUICK.read(url), InputError)  # noqa: B023
        assert (
            said == "[::1/x.tar: not a URL (Invalid IPv6 URL): mend it"
            if "@" in url
            else "not a URL" in said
        )
    assert "without a host" in failure(lambda: QUICK.read("http:///x"), InputError)

    def lookup(code: int) -> Callable[..., Any]:
        def fail(*_: object, **__: object) -> Any:
            raise socket.gaierror(code, "as the resolver says")

        return fail

    monkeypatch.setattr(socket, "getaddrinfo", lookup(socket.EAI_NONAME))
    assert "no host nowhere.example is known" in failure(
        lambda: QUICK.read("http://nowhere.example/x"), InputError
    )
    monkeypatch.setattr(
        socket, "getaddrinfo", lookup(socket.EAI_AGAIN)
    )  # the resolver may come back
    assert "tried 3 times" in failure(lambda: QUICK.read("http://nowhere.example/x"), TransferError)


def test_secrets_stay_with_their_host_and_out_of_messages(
    server: FolderServer, deaf: FolderServer
) -> None:
    other = deaf
    url = server.url.replace("//", "//me:s3cret@") + "/a.bin?signature=s3cret"
    server.fault("a.bin", "redirect", location=f"{server.url}/here.bin")
    server.fault("here.bin", "redirect", location=f"{other.url}/a.bin")
    assert QUICK.read(url) == CONTENT
    assert [seen.headers.get("authorization") for seen in (*server.log, *other.log)] == [
        "Basic bWU6czNjcmV0"
    ] * 2 + [None]
    assert server.log[0].query == "signature=s3cret"
    server.fault("a.bin", "status", status=403)
    assert "s3cret" not in failure(lambda: QUICK.read(url), InputError)
    server.fault("a.bin", "redirect", location=f"file://{__file__}")
    assert "Redirection" in failure(lambda: QUICK.read(url), InputError)


def test_a_proxy_of_the_environment_is_used(
    server: FolderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    assert QUICK.read("http://far.example/a.bin") == CONTENT
    assert server.log[0].headers["host"] == "far.example"


@pytest.mark.parametrize("ranges", [True, False])
def test_ranges_are_slices(server: FolderServer, deaf: FolderServer, ranges: bool) -> None:
    asked = server if ranges else deaf
    url = f"{asked.url}/a.bin"
    for start, end in [
        (0, 10),
        (7, 8),
        (5, 5),
        (1_000_001, 2_500_000),
        (SIZE - 3, None),
        (SIZE - 3, SIZE + 9),
        (SIZE + 1, None),
    ]:
        assert QUICK.read(url, start, end) == CONTENT[start:end], (start, end)
    asked.fault("a.bin", "truncate", after_bytes=600_000)
    assert QUICK.read(url, 500_000, 3_000_000) == CONTENT[500_000:3_000_000]
    assert QUICK.read(f"{asked.url}/empty.bin") == b""


def test_a_range_of_a_server_without_ranges_is_not_read_to_the_end(
    deaf: FolderServer, folder: Path
) -> None:
    with (folder / "large.bin").open("wb") as file:
        file.truncate(64 << 20)
    assert QUICK.read(f"{deaf.url}/large.bin", 10, 20) == bytes(10)
    deaf.close()
    assert deaf.bytes_served["/large.bin"] < 48 << 20


def test_sizes(server: FolderServer, deaf: FolderServer, folder: Path) -> None:
    for asked in (server, deaf):
        assert QUICK.size(f"{asked.url}/a.bin") == SIZE
        assert QUICK.size(f"{asked.url}/empty.bin") == 0
    assert server.bytes_served["/a.bin"] == 1
    deaf.fault("a.bin", "chunked")
    assert QUICK.size(f"{deaf.url}/a.bin") is None
    server.fault("a.bin", "status", status=503)
    assert QUICK.size(f"{server.url}/a.bin") == SIZE
    assert QUICK.size(str(folder / "a.bin")) == SIZE


def test_compressed_answers_are_refused(server: FolderServer) -> None:
    server.reply("z.bin", b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert "compressed (gzip)" in failure(lambda: QUICK.read(f"{server.url}/z.bin"), InputError)
    assert server.log[0].headers["accept-encoding"] == "identity"


def test_names_that_need_quoting(server: FolderServer, folder: Path) -> None:
    (folder / "ä b%.bin").write_bytes(b"x")
    assert QUICK.read(f"{server.url}/ä b%25.bin") == b"x"


def test_a_full_disk_is_not_the_servers_fault(server: FolderServer) -> None:
    said = failure(lambda: QUICK.fetch(f"{server.url}/a.bin", Path("/dev/full")), OSError)
    assert "No space left" in said
    assert server.requests["/a.bin"] == 1


def test_memory_stays_flat_and_plain_values_travel(
    server: FolderServer, folder: Path, tmp_path: Path
) -> None:
    with (folder / "large.bin").open("wb") as file:
        file.truncate(48 << 20)
    transport: Transport = pickle.loads(pickle.dumps(QUICK))
    server.fault("large.bin", "truncate", after_bytes=20 << 20)
    tracemalloc.start()
    try:
        transport.fetch(f"{server.url}/large.bin", tmp_path / "large", size=48 << 20)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "large").stat().st_size == 48 << 20
    assert peak_bytes < 6 << 20  # the server's pieces are in it


def test_local_files_and_fsspec(folder: Path, tmp_path: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe_file("/stream/a.bin", CONTENT)
    try:
        for url in (str(folder / "a.bin"), f"file://{folder}/a.bin", "memory://stream/a.bin"):
            QUICK.fetch(url, tmp_path / "a", size=SIZE, sha256=SHA256)
            assert (tmp_path / "a").read_bytes() == CONTENT
            assert QUICK.size(url) == SIZE
            for start, end in [
                (0, 10),
                (1_000_001, 2_500_000),
                (SIZE - 3, None),
                (SIZE - 3, SIZE + 9),
                (SIZE + 1, SIZE + 3),
            ]:
                assert QUICK.read(url, start, end) == CONTENT[start:end], (url, start, end)
            assert "SHA-256" in failure(
                lambda url=url: QUICK.fetch(url, tmp_path / "a", sha256="0" * 64), TransferError
            )
            assert "were promised" in failure(
                lambda url=url: QUICK.fetch(url, tmp_path / "a", size=3), TransferError
            )
            assert "does not exist" in failure(lambda: QUICK.read(f"{url}.no"), InputError)  # noqa: B023
        for path in (str(folder), "memory://stream"):
            assert "is a folder" in failure(lambda: QUICK.read(path), InputError)  # noqa: B023
        assert "pip install s3fs" in failure(lambda: QUICK.read("s3://bucket/x"), InputError)
        assert "knows no nosuch://" in failure(lambda: QUICK.read("nosuch://bucket/x"), InputError)
    finally:
        fs.rm("/stream", recursive=True)


def test_a_file_system_that_breaks_off_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec
    from fsspec.implementations.memory import MemoryFile

    fs = fsspec.filesystem("memory")
    fs.pipe_file("/stream/a.bin", CONTENT)
    whole, calls = MemoryFile.read, []

    def breaking(self: Any, size: int = -1) -> bytes:
        calls.append(self.tell())
        if len(calls) == 3:
            raise RuntimeError("the store's own error")
        content: bytes = whole(self, size)
        return content

    monkeypatch.setattr(MemoryFile, "read", breaking)
    try:
        QUICK.fetch("memory://stream/a.bin", tmp_path / "a", sha256=SHA256)
    finally:
        fs.rm("/stream", recursive=True)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert calls[:5] == [0, 1 << 20, 2 << 20, 2 << 20, 3 << 20]


HUB = """
import json, sys
from distill.data.stream.transport import Transport
from distill.errors import InputError
transport, said = Transport(retries=0, timeout_s=60), []
for url in sys.argv[1:]:
    try:
        said.append(transport.read(url).decode())
    except InputError as error:
        said.append(f"InputError: {error}")
print(json.dumps(said))
"""


def from_hub(
    server: FolderServer, home: Path, *urls: str, token: str | None = None, offline: bool = False
) -> list[str]:
    """What a process reads whose Hub is the server."""
    hub = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": str(int(offline)), "HF_HOME": str(home)}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    given = {**kept, **hub, **({} if token is None else {"HF_TOKEN": token})}
    ended = subprocess.run(
        [sys.executable, "-c", HUB, *urls], env=given, capture_output=True, text=True, check=True
    )
    said: list[str] = json.loads(ended.stdout)
    return said


def test_the_hub(server: FolderServer, deaf: FolderServer, folder: Path, tmp_path: Path) -> None:
    def answer(repo: str, status: int, code: str | None) -> None:
        headers = {} if code is None else {"X-Error-Code": code}
        server.fault(
            f"datasets/{repo}/resolve/*", "status", status=status, headers=headers, on=None
        )

    store = folder / "datasets/own/set/resolve"
    for revision, content in (
        ("main", "of main"),
        ("v2", "of v2"),
        ("refs/convert/parquet", "of a ref"),
    ):
        (store / revision).mkdir(parents=True)
        (store / revision / "x.tar").write_text(content)
    (folder / "cdn.bin").write_text("of the cdn")
    server.fault(
        "datasets/own/set/resolve/main/far.tar", "redirect", location=f"{deaf.url}/cdn.bin"
    )
    answer("own/gated", 403, "GatedRepo")
    answer("own/none", 404, "RepoNotFound")
    answer("own/rev", 404, "RevisionNotFound")
    answer("own/file", 404, "EntryNotFound")
    answer("own/odd", 401, None)
    root = "hf://datasets/own"
    said = from_hub(
        server,
        tmp_path / "home",
        *(
            f"{root}/set/x.tar",
            f"{root}/set@v2/x.tar",
            f"{root}/set@refs/convert/parquet/x.tar",
            f"{root}/set/far.tar",
        ),
        *(f"{root}/{repo}/x.tar" for repo in ("gated", "none", "rev", "file", "odd")),
        "hf://own/x.tar",
        token="hf_secret",
    )
    assert said[:4] == ["of main", "of v2", "of a ref", "of the cdn"]
    assert {seen.headers["authorization"] for seen in server.log} == {"Bearer hf_secret"}
    assert [seen.headers.get("authorization") for seen in deaf.log] == [None]
    wanted = [
        "accept its terms at {}/datasets/own/gated with the account",
        "no data set own/none",
        "no such revision",
    ]
    wanted += ["no such file", "your token is not valid", "names no file of the Hub"]
    for text, message in zip(wanted, said[4:], strict=True):
        assert message.startswith("InputError: hf://")
        assert text.format(server.url) in message
        assert "HF_TOKEN" not in message
    without = from_hub(
        server, tmp_path / "home", f"{root}/gated/x.tar", f"{root}/none/x.tar", f"{root}/odd/x.tar"
    )
    for message in without:
        assert "log in with `hf auth login` or set HF_TOKEN" in message
    assert (
        "HF_HUB_OFFLINE"
        in from_hub(server, tmp_path / "home", f"{root}/set/x.tar", offline=True)[0]
    )
