"""What a server or a disk can put in the way of a stream: endless files, web pages, pipes, loops of
links. Bounded or refused, by name.
"""

import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image
from shards import add, png, write_tars

from distill.data import walk
from distill.data.decode import UnreadableImageError, read_image
from distill.data.folder import ImageFolderSource
from distill.data.guess import guess_source
from distill.data.label_sets import class_list
from distill.data.sources import open_source
from distill.data.stream import transport
from distill.data.stream.names import expand_braces
from distill.data.stream.tar import index_tar
from distill.errors import InputError
from distill.recipe import schema

IMAGES = [png(Image.new("RGB", (8, 8), (i, 0, 0))) for i in range(6)]
PAGE = b"\n<!DOCTYPE html><html><body>Welcome. " + b"x" * 3000 + b"</body></html>\r\n"


class Server(ThreadingHTTPServer):
    daemon_threads = True
    pages: bytes = PAGE
    files: dict[str, bytes]
    endless: str = ""
    sent = 0


class Handler(BaseHTTPRequestHandler):
    """Answers 200 with a page for every path that it does not know."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        body = self.server.files.get(self.path, self.server.pages)
        self.send_response(200)
        if self.path == self.server.endless:
            self.send_header("Connection", "close")
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b" " * 65536)
                    self.server.sent += 65536
            except OSError:
                return
        self.send_header(
            "Content-Type", "text/html" if body is self.server.pages else "application/octet-stream"
        )
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write_tars(tmp_path / "made", IMAGES, 3, labels=[0, 1, 0, 1, 0, 1])
    server = Server(("127.0.0.1", 0), Handler)
    server.files = {f"/d/{path.name}": path.read_bytes() for path in (tmp_path / "made").iterdir()}
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def opened(
    server: Server, tmp_path: Path, name: str = "shard-{00000..00001}.tar", **options: object
) -> object:
    url = f"http://127.0.0.1:{server.server_address[1]}/d/{name}"
    spec = schema.StreamSpec(kind="stream", path=url, labelled=False, **options)
    shards = schema.ShardsSpec(cache=str(tmp_path / "cache"), retries=0, timeout_s=5)
    return open_source(spec, Path(), "data.train", shards)


def test_pages_for_unknown_paths_are_no_manifest(server: Server, tmp_path: Path) -> None:
    counts = {
        "splits": {
            "train": {"filenames": ["shard-00000.tar", "shard-00001.tar"], "shard_lengths": [3, 3]}
        }
    }
    with pytest.raises(InputError, match="nothing says how many samples"):
        opened(server, tmp_path)
    server.files["/d/info.json"] = json.dumps(
        counts
    ).encode()  # while manifest.json and _info.json are pages
    source = opened(server, tmp_path)
    assert [source.read(i) for i in range(6)] == IMAGES  # type: ignore[attr-defined]


@pytest.mark.parametrize("answer", [b"Not Found", b'{"error": "no such file"}', b"[]", b""])
def test_other_answers_for_unknown_paths_are_no_manifest(
    server: Server, tmp_path: Path, answer: bytes
) -> None:
    server.pages = answer
    with pytest.raises(InputError, match="nothing says how many samples"):
        opened(server, tmp_path)
    counts = {
        "splits": {
            "train": {"filenames": ["shard-00000.tar", "shard-00001.tar"], "shard_lengths": [3, 3]}
        }
    }
    server.files["/d/info.json"] = json.dumps(counts).encode()
    source = opened(server, tmp_path)
    assert [source.read(i) for i in range(6)] == IMAGES  # type: ignore[attr-defined]


def test_a_page_in_place_of_a_shard_says_so(server: Server, tmp_path: Path) -> None:
    counts = {"splits": {"train": {"filenames": ["gone.tar"], "shard_lengths": [3]}}}
    server.files["/d/_info.json"] = json.dumps(counts).encode()
    with pytest.raises(
        UnreadableImageError, match=r"d/gone\.tar: a web page \(HTML\) in place of a tar file"
    ):
        read_image(opened(server, tmp_path, "gone.tar"), 0)  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"d/gone\.parquet: a web page \(HTML\) in place of a Parquet file"
    ):
        opened(server, tmp_path, "gone.parquet")


def test_a_file_without_end_is_bounded(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport.Transport.read, "__kwdefaults__", {"most_bytes": 1 << 20})
    server.endless = "/d/manifest.json"
    with pytest.raises(InputError, match=r"d/manifest\.json: more than 1 MB"):
        opened(server, tmp_path)
    assert server.sent < 1 << 24  # what lay in buffers came on top


@pytest.mark.parametrize("count", [0, -3, 1 << 62])
def test_counts_that_no_shard_has_are_refused(server: Server, tmp_path: Path, count: int) -> None:
    counts = {"splits": {"train": {"filenames": ["shard-00000.tar"], "shard_lengths": [count]}}}
    server.files["/d/_info.json"] = json.dumps(counts).encode()
    with pytest.raises(
        InputError, match=rf"_info\.json says that shard-00000\.tar holds {count} samples"
    ):
        opened(server, tmp_path, "shard-00000.tar")


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"splits": {"a": {"filenames": ["x"], "shard_lengths": [1e999]}}}']
)
def test_json_that_no_parser_takes_is_no_listing(
    server: Server, tmp_path: Path, content: str
) -> None:
    server.files["/d/_info.json"] = content.encode()
    with pytest.raises(InputError, match="nothing says how many samples"):
        opened(server, tmp_path)


# ---- on disk -------------------------------------------------------------------------------------


def test_pipes_sockets_and_devices_among_images_are_unreadable_images(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "cat"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(IMAGES[0])
    os.mkfifo(folder / "b.png")
    (folder / "c.png").symlink_to("/dev/zero")
    (folder / "d.png").symlink_to("nothing")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "e.png"))
    source = ImageFolderSource(tmp_path / "train", None, "data.train")
    assert len(source) == 5
    for index, kind in (
        (1, "it is a pipe"),
        (2, "it is a device"),
        (3, "No such file"),
        (4, "it is a socket"),
    ):
        with pytest.raises(
            UnreadableImageError, match=rf"{'abcde'[index]}\.png: unreadable image \(.*{kind}"
        ):
            read_image(source, index)


def test_a_pipe_as_a_shard_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(InputError, match=r"x\.tar is a pipe, not a file"):
        open_source(
            schema.StreamSpec(kind="stream", path=str(tmp_path / "x.tar"), labelled=False), Path()
        )


def test_a_pipe_as_a_class_list_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "names.txt")
    with pytest.raises(
        InputError,
        match=r"data.train.classes: cannot read .*names.txt \(it is a pipe, not a file\)",
    ):
        class_list("names.txt", tmp_path, "data.train")


def test_links_that_double_at_every_level_are_refused(tmp_path: Path) -> None:
    for level in range(30):
        (tmp_path / f"real{level}").mkdir()
    for level in range(29):
        for name in "ab":
            (tmp_path / f"real{level}" / name).symlink_to(tmp_path / f"real{level + 1}")
    (tmp_path / "real29" / "x.png").write_bytes(IMAGES[0])
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "real0")
    with pytest.raises(
        InputError, match=r"data.train.path: more than 16 paths in .*cat lead to one folder"
    ):
        ImageFolderSource(tmp_path / "root", None, "data.train")
    stream = schema.StreamSpec(kind="stream", path=str(tmp_path / "root"), labelled=False)
    with pytest.raises(InputError, match="more than 16 paths in"):
        open_source(stream, Path())


def test_links_in_a_ring_end_and_two_ways_count_twice(tmp_path: Path) -> None:
    folder, shared = tmp_path / "root" / "cat", tmp_path / "shared"
    folder.mkdir(parents=True)
    shared.mkdir()
    (shared / "x.PNG").write_bytes(IMAGES[0])
    (shared / "back").symlink_to(folder)
    (folder / "self.png").symlink_to("self.png")
    for name in ("one", "two"):
        (folder / name).symlink_to(shared)
    assert walk.files_below(folder, (".png",), "k") == [b"one/x.PNG", b"self.png", b"two/x.PNG"]


def test_two_stars_do_not_run_in_a_ring(tmp_path: Path) -> None:
    """Two links back in one folder are 2^40 ways for Python's glob."""
    deep = tmp_path / "root" / "x" / "train"
    deep.mkdir(parents=True)
    write_tars(deep, IMAGES, 3)
    for name in ("one", "two"):
        (deep / name).symlink_to(tmp_path / "root")
    (deep / ".hidden").mkdir()
    (deep / ".hidden" / "shard-00000.tar").write_bytes(b"")
    root = tmp_path / "root"
    both = [str(deep / f"shard-0000{i}.tar") for i in range(2)]
    for pattern in (
        "**/*.tar",
        "x/**/*.tar",
        "**/train/*.tar",
        "*/**/shard-*[01].tar",
        "**/x/**/**/*",
        "x/../**/*.tar",
    ):
        found, below = walk.matching_files(f"{root}/{pattern}", "data.train")
        assert [os.path.normpath(file) for file in found] == both, pattern
        assert all(file.startswith(below) for file in found)
    assert walk.matching_files(f"{root}/**/val/*.tar", "data.train")[0] == []
    assert walk.matching_files(f"{root}/**/*.TAR", "data.train")[0] == []
    spec = schema.StreamSpec(kind="stream", path=f"{root}/**/*.tar", labelled=False)
    assert open_source(spec, Path()).read(5) == IMAGES[5]


@pytest.mark.parametrize(
    "braces", ["{0..99999999999}", "{0..9999}{0..9999}", "{1,2,3,4,5,6,7,8,9,10}" * 8]
)
def test_braces_of_more_files_than_there_are_are_refused(braces: str) -> None:
    with pytest.raises(InputError, match="stand for more than 10,000,000 files"):
        expand_braces(f"x-{braces}.tar")
    assert expand_braces("x-{0..99999999999999999999}.tar") == ["x-0..99999999999999999999.tar"]


def test_endings_in_capitals_name_shards(tmp_path: Path) -> None:
    """As a path, a folder and a pattern; in guesses, listings and tables."""
    for path in write_tars(tmp_path / "set", IMAGES, 3):
        path.rename(path.with_suffix(".TAR"))
    for path in (
        tmp_path / "set",
        tmp_path / "set" / "*.TAR",
        tmp_path / "set" / "shard-00000.TAR",
    ):
        spec = guess_source(str(path), labelled=False)
        assert spec.kind == "stream"
        source = open_source(spec, Path())
        assert source.read(2) == IMAGES[2]
    import datasets

    rows = {"image": [{"bytes": image, "path": None} for image in IMAGES], "label": [0, 1] * 3}
    (tmp_path / "table").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "table" / "part.PARQUET")
    spec = guess_source(str(tmp_path / "table"))
    assert spec.kind == "parquet"
    assert open_source(spec, Path()).read(3) == IMAGES[3]
    assert guess_source(str(tmp_path / "table" / "part.PARQUET")).kind == "parquet"
    unlabelled = guess_source(str(tmp_path / "table"), labelled=False)
    assert open_source(unlabelled, Path()).read(3) == IMAGES[3]


def test_a_label_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for i in range(2):
            add(archive, f"{i}.png", IMAGES[i])
            add(archive, f"{i}.cls", bytes([0xFE + i]))
    with (
        (tmp_path / "x.tar").open("rb") as file,
        pytest.raises(InputError, match=r"key .0.: its label .* not UTF-8"),
    ):
        index_tar(file.fileno())
