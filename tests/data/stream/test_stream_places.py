"""Where a transfer may go: hosts, proxies, ranges, local files, file systems and the Hub."""

import json
import os
import pickle
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servers import FolderServer
from transfers import CONTENT, QUICK, SHA256, SIZE, failure, fetched

from distill.data.stream.transport import TransferError, Transport
from distill.errors import InputError


@pytest.mark.parametrize(
    ("status", "fix"),
    [
        (401, "credentials"),
        (403, "credentials"),
        (404, "fix the path"),
        (410, "path"),
        (451, "URL"),
    ],
)
def test_what_no_retry_fixes_is_explained_at_once(
    server: FolderServer, tmp_path: Path, status: int, fix: str
) -> None:
    server.fault("a.bin", "status", status=status, on=None)
    said = failure(lambda: fetched(server, tmp_path / "a"), InputError)
    assert f"{server.url}/a.bin" in said
    assert str(status) in said
    assert fix in said
    assert server.requests["/a.bin"] == 1


def test_hosts_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "fix" in failure(lambda: QUICK.read("http://a..b/x"), InputError)
    for url in ("http://[::1/x.tar", "http://me:s3cret@[::1/x.tar?s3cret"):
        said = failure(lambda: QUICK.read(url), InputError)  # noqa: B023
        assert (
            said == "[::1/x.tar: not a URL (Invalid IPv6 URL): fix it"
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
            missing = f"{url}.no"
            assert "does not exist" in failure(lambda url=missing: QUICK.read(url), InputError)
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
