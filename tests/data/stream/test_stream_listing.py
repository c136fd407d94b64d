"""The shards that a path names: braces, patterns, folders, servers and file systems."""

import json
import os
from pathlib import Path

import fsspec
import pytest
from listings import fill, listed, parquet_of, sizes
from servers import FolderServer

from distill.data.stream.names import display_url, expand_braces, names_files, unsigned
from distill.data.stream.opening import cache_folder, open_stream
from distill.data.stream.transport import TransferError
from distill.errors import InputError
from distill.recipe.schema import ShardsSpec, StreamSpec


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("a-{0000..0002}.tar", ["a-0000.tar", "a-0001.tar", "a-0002.tar"]),
        ("a-{8..11}.tar", ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]),
        ("a-{098..101}", ["a-098", "a-099", "a-100", "a-101"]),
        ("{train,extra}/{0..1}.tar", ["train/0.tar", "train/1.tar", "extra/0.tar", "extra/1.tar"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_braces(path: str, names: list[str]) -> None:
    assert expand_braces(path) == names


@pytest.mark.parametrize(
    ("url", "plain", "kept"),
    [
        ("/a/b?.tar", "/a/b?.tar", "/a/b?.tar"),
        (
            "http://me:p@ss@h/a.tar?X-Amz-Date=1&X-Amz-Signature=2",
            "http://h/a.tar",
            "http://me:p@ss@h/a.tar",
        ),
        ("https://h/a.tar?v=3&sig=x&se=y", "https://h/a.tar", "https://h/a.tar?v=3"),
        (
            "https://h/a.tar?Expires=1&Signature=2&Key-Pair-Id=3&version=4",
            "https://h/a.tar",
            "https://h/a.tar?version=4",
        ),
        ("s3://bucket/a-?.tar", "s3://bucket/a-?.tar", "s3://bucket/a-?.tar"),
    ],
)
def test_what_signs_a_url(url: str, plain: str, kept: str) -> None:
    assert (display_url(url), unsigned(url)) == (plain, kept)


def test_a_host_is_no_pattern() -> None:
    assert not names_files("http://[::1]:80/shards")
    assert names_files("http://[::1]:80/shards/a-[0-9].tar")
    assert names_files("http://h/A.TAR")


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert cache_folder(ShardsSpec(), Path()).name == f"distill-shards-{os.getuid()}"


def test_files_by_name(tmp_path: Path) -> None:
    fill(tmp_path, "b/t-1.tar a/t-0.tar a/t-2.tar a/u.tar other.tar")
    assert listed(tmp_path, "{b,a}/t-*.tar") == ["b/t-1.tar", "a/t-0.tar", "a/t-2.tar"]
    assert listed(tmp_path, tmp_path / "a/t-{0,2}.tar") == ["t-0.tar", "t-2.tar"]
    assert listed(tmp_path, f"file://{tmp_path}/a/u.tar") == ["u.tar"]
    assert listed(tmp_path, "**/*.tar") == [
        "a/t-0.tar",
        "a/t-2.tar",
        "a/u.tar",
        "b/t-1.tar",
        "other.tar",
    ]
    assert sizes(tmp_path, "{b,a}/t-*.tar") == [1, 2, 3]


def test_folders(tmp_path: Path) -> None:
    fill(tmp_path / "odd [1]", "x-1.tar sub/x-0.tar README")
    assert listed(tmp_path, "odd [1]/") == ["sub/x-0.tar", "x-1.tar"]
    fill(tmp_path / "both", "train-0.tar train-1.tar validation-0.tar")
    assert listed(tmp_path, "both", split="train") == ["train-0.tar", "train-1.tar"]
    fill(tmp_path / "deep", "train/0.parquet train/1.parquet test/0.parquet", parquet_of)
    assert listed(tmp_path, "deep", split="test") == ["0.parquet"]
    fill(tmp_path / "mixed", "0.tar 0.parquet")
    assert listed(tmp_path, "mixed", container="parquet") == ["0.parquet"]


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        ("shardz", {}, r"data.train.path: .*shardz does not exist \(did you mean 'shards'"),
        ("shards/trian-0.tar", {}, r"trian-0.tar does not exist \(did you mean 'train-0.tar'"),
        ("shards/*.tarr", {}, r"data.train.path: no file matches .*shards/\*.tarr"),
        (
            "shards/train-{0..3}.tar",
            {},
            r"2 of 4 files do not exist, the first of them .*shards/train-2.tar",
        ),
        ("shards/train-{0,0}.tar", {}, r"names .*train-0.tar twice"),
        (
            "shards",
            {},
            r"data.train.split: .*shards has files of 2 splits side by side, train, validation",
        ),
        (
            "shards",
            {"split": "trian"},
            r"data.train.split: no file in .* is of split 'trian' \(did you mean 'train'",
        ),
        (
            "shards/train-*.tar",
            {"split": "train"},
            r"data.train.split: .*names files, which have no splits",
        ),
        ("mixed", {}, r"data.train.container: there are tar and Parquet files"),
        (
            "mixed/*",
            {},
            r"data.train.container: .* is neither .tar nor .parquet|there are tar and Parquet",
        ),
        ("packed", {}, r"data.train.path: .*packed/0.tar.gz is compressed.*unpack"),
        ("packed/{0..0}.tar.gz", {}, r"0.tar.gz is compressed"),
        ("empty", {}, r"empty has no .tar or .parquet files"),
        (
            "http://127.0.0.1:1/a-*.tar",
            {},
            r"a web server does not list its files: name them in braces",
        ),
        (
            "nosuch://bucket/*.tar",
            {},
            r"data.train.path: nosuch://bucket/.*: Protocol not known: nosuch: install",
        ),
        ("nosuch://bucket/a.tar", {}, r"nosuch"),
        ("http://me:secret@127.0.0.1:1/a-*.tar", {}, r"http://127.0.0.1:1/a-\*.tar: a web server"),
        ("http://me:secret@[::1/x.tar", {}, r"data.train.path: http://\[::1/x.tar is no URL"),
        ("http://me:secret@[::1]:1/shards", {}, r"http://\[::1\]:1/shards/manifest.json: "),
        (
            "upwards",
            {},
            (
                r"data.train.path|upwards/_info.json names ../shards/train-0.tar, which is no file"
                r" of its folder"
            ),
        ),
        ("hf://models/a/b", {}, r"data sets of the Hub are hf://datasets/OWNER/NAME"),
    ],
)
def test_paths_that_are_refused(
    tmp_path: Path, path: str, fields: dict[str, str], message: str
) -> None:
    fill(
        tmp_path,
        "shards/train-0.tar shards/train-1.tar shards/val-0.tar mixed/0.tar mixed/0.parquet"
        " packed/0.tar.gz",
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "upwards").mkdir()
    said = {"splits": {"train": {"filenames": ["../shards/train-0.tar"], "shard_lengths": [1]}}}
    (tmp_path / "upwards/_info.json").write_text(json.dumps(said))
    with pytest.raises((InputError, TransferError), match=message) as info:
        listed(tmp_path, path, **fields)
    assert "\n" not in str(info.value)
    assert "secret" not in str(info.value)


def test_a_server_that_wants_a_password_is_not_an_empty_one(
    tmp_path: Path, served: FolderServer
) -> None:
    served.fault("/manifest.json", "status", on=None, status=401)
    for path in (f"{served.url}/", f"{served.url}/a-{{0..1}}.tar"):
        with pytest.raises(InputError, match=r"manifest.json: the server answers 401"):
            listed(tmp_path, path)


def test_files_that_fsspec_opens(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for i in range(3):
        memory.pipe_file(f"/bucket/t-{i}.parquet", parquet_of(range(i + 1), ["ox", "yak"]))
    try:
        assert listed(tmp_path, "memory://bucket/*.parquet") == [
            "t-0.parquet",
            "t-1.parquet",
            "t-2.parquet",
        ]
        spec = StreamSpec(kind="stream", path="memory://bucket/t-{1,2}.parquet")
        source = open_stream(spec, tmp_path, "data.train", ShardsSpec(cache="cache", retries=0))
        assert (source.shard_sizes.tolist(), source.classes) == ([2, 3], ("ox", "yak"))
        assert [source.read(i) for i in range(5)] == [
            b"image 0",
            b"image 1",
            b"image 0",
            b"image 1",
            b"image 2",
        ]
    finally:
        memory.store.clear()
