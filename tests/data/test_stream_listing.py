"""A path -> its shards, in order, with their counts: names, folders, servers, file systems, the
Hub.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import COMMIT, Hub
from servers import FolderServer

from distill.data.stream.cache import ShardCache
from distill.data.stream.hub import parse_hub_path
from distill.data.stream.listing import list_shards
from distill.data.stream.manifest import Manifest, ShardEntry, write_manifest
from distill.data.stream.names import display_url, expand_braces, names_files, unsigned
from distill.data.stream.opening import cache_folder, count_samples, open_stream
from distill.data.stream.transport import TransferError, Transport
from distill.errors import InputError
from distill.recipe.schema import ShardsSpec, StreamSpec

TRANSPORT = Transport(retries=0, timeout_s=5)


def tar_of(indices: range) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for i in indices:
            for name, content in (
                (f"{i:04d}.jpg", b"image %d" % i),
                (f"{i:04d}.cls", b"%d" % (i % 2)),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def parquet_of(indices: range, names: list[str] | None = None, padding: int = 0) -> bytes:
    table = pa.table(
        {
            "image": [{"bytes": b"image %d" % i, "path": None} for i in indices],
            "label": [i % 2 for i in indices],
        }
    )
    said: dict[str, Any] = {"padding": "x" * padding}
    if names:
        label = {"names": names, "_type": "ClassLabel"}
        said["huggingface"] = json.dumps(
            {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
        )
    buffer = io.BytesIO()
    if not indices:
        table = table.cast(parquet_schema())
    pq.write_table(table.replace_schema_metadata(said), buffer)
    return buffer.getvalue()


def parquet_schema() -> pa.Schema:
    return pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
        ]
    )


def fill(folder: Path, names: str, content=tar_of) -> list[Path]:
    """Files of 1, 2, 3, ... samples."""
    files = [folder / name for name in names.split()]
    for count, file in enumerate(files, 1):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content(range(count)))
    return files


def cache_in(folder: Path) -> ShardCache:
    return ShardCache(folder / "cache", 10**9)


def listed(root: Path, path: object, **fields) -> list[str]:
    """The names of the shards."""
    spec = StreamSpec(kind="stream", path=str(path), **fields)
    return [
        shard.name
        for shard in list_shards(spec, root, "data.train", TRANSPORT, cache_in(root)).shards
    ]


def sizes(root: Path, path: object, cache: str = "cache", **fields) -> list[int]:
    spec = StreamSpec(kind="stream", path=str(path), **{"labelled": False} | fields)
    return open_stream(
        spec, root, "data.train", ShardsSpec(cache=cache, retries=0)
    ).shard_sizes.tolist()


@pytest.fixture
def served(tmp_path):
    (tmp_path / "served").mkdir()
    with FolderServer(tmp_path / "served") as server:
        yield server


# ---- names ---------------------------------------------------------------------------------------


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
def test_braces(path, names):
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
def test_what_signs_a_url(url, plain, kept):
    assert (display_url(url), unsigned(url)) == (plain, kept)


def test_a_host_is_no_pattern():
    assert not names_files("http://[::1]:80/shards")
    assert names_files("http://[::1]:80/shards/a-[0-9].tar")
    assert names_files("http://h/A.TAR")


def test_a_user_without_a_name(monkeypatch):
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert cache_folder(ShardsSpec(), Path()).name == f"distill-shards-{os.getuid()}"


def test_files_by_name(tmp_path):
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


def test_folders(tmp_path):
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
def test_paths_that_are_refused(tmp_path, path, fields, message):
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


def test_a_server_that_wants_a_password_is_not_an_empty_one(tmp_path, served):
    served.fault("/manifest.json", "status", on=None, status=401)
    for path in (f"{served.url}/", f"{served.url}/a-{{0..1}}.tar"):
        with pytest.raises(InputError, match=r"manifest.json: the server answers 401"):
            listed(tmp_path, path)


def test_files_that_fsspec_opens(tmp_path):
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


# ---- counts --------------------------------------------------------------------------------------


def test_counts_of_parquet_are_read_from_footers_alone(tmp_path, served):
    # The last footer is larger than what is asked for at first.
    for i, padding in enumerate((0, 0, 200_000)):
        (tmp_path / f"served/{i}.parquet").write_bytes(
            parquet_of(range(300 + i), ["ox", "yak"], padding)
        )
    spec = StreamSpec(kind="stream", path=f"{served.url}/{{0..2}}.parquet")
    source = open_stream(spec, tmp_path, "data.train", ShardsSpec(cache="cache", retries=0))
    assert (source.shard_sizes.tolist(), source.classes) == ([300, 301, 302], ("ox", "yak"))
    assert not any(
        seen.status == 200 for seen in served.log if seen.path.endswith("parquet")
    )  # parts only


def test_counts_of_info_files(tmp_path, served):
    fill(tmp_path / "served", "train-0.tar train-1.tar val-0.tar")
    said = {
        "name": "x",
        "splits": {
            "train": {
                "filenames": ["train-0.tar", "train-1.tar"],
                "shard_lengths": [1, 2],
                "num_samples": 3,
            },
            "val": {"filenames": ["val-0.tar"], "shard_lengths": [3]},
        },
    }
    (tmp_path / "served/_info.json").write_text(json.dumps(said))
    assert sizes(tmp_path, served.url, split="train") == [1, 2]
    assert sizes(tmp_path, f"{served.url}/{{val-0,train-1}}.tar") == [3, 2]
    assert sizes(tmp_path, "served", split="val") == [3]
    assert not any(seen.path.endswith(".tar") for seen in served.log)
    with pytest.raises(
        InputError, match=r"data.train.split: .* has several splits: choose one of 'train', 'val'"
    ):
        sizes(tmp_path, served.url)
    with pytest.raises(InputError, match=r"no split 'vall' \(did you mean 'val'"):
        sizes(tmp_path, served.url, split="vall")
    (tmp_path / "served/train-1.tar").unlink()
    with pytest.raises(
        InputError, match=r"1 of 2 shards do not exist, the first of them .*train-1.tar"
    ):
        sizes(tmp_path, "served", split="train")


def test_counts_of_a_manifest_for_some_of_its_shards(tmp_path, served):
    files = fill(tmp_path / "served", "a-0.tar a-1.tar a-2.tar")
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    entries = [ShardEntry(f.name, i + 1, f.stat().st_size, hashes[i]) for i, f in enumerate(files)]
    np.save(tmp_path / "served/labels.npy", np.array([0, 0, 1, 0, 1, 0], np.int32))
    said = hashlib.sha256((tmp_path / "served/labels.npy").read_bytes()).hexdigest()
    write_manifest(
        tmp_path / "served",
        Manifest("tar", ("ox", "yak"), tuple(entries), "labels.npy", said, None, "test"),
    )
    for place in ("served", served.url):
        spec = StreamSpec(kind="stream", path=f"{place}/a-{{2,1}}.tar")
        listing = list_shards(spec, tmp_path, "data.train", TRANSPORT, cache_in(tmp_path))
        assert [(s.num_samples, s.sha256) for s in listing.shards] == [
            (3, hashes[2]),
            (2, hashes[1]),
        ]
        assert listing.labels.tolist() == [0, 1, 0, 0, 1]
        assert listing.classes == ("ox", "yak")
    assert listed(tmp_path, f"{served.url}/manifest.json") == ["a-0.tar", "a-1.tar", "a-2.tar"]
    np.save(tmp_path / "served/labels.npy", np.array([0, 0, 1, 0, 1, 1], np.int32))
    with pytest.raises(InputError, match=r"labels.npy is not what the manifest's sha256 says"):
        listed(tmp_path, served.url)
    assert listed(tmp_path, served.url, labelled=False) == ["a-0.tar", "a-1.tar", "a-2.tar"]
    with pytest.raises(InputError, match=r"data.train.split: the manifest in .* knows no splits"):
        listed(tmp_path, "served", split="train")
    with pytest.raises(InputError, match=r"data.train.container: .* holds tar shards"):
        listed(tmp_path, "served", container="parquet")
    (tmp_path / "served/manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest.json: damaged"):
        listed(tmp_path, served.url)


def test_shards_made_without_labels(tmp_path):
    (file,) = fill(tmp_path / "shards", "a-0.tar")
    entry = ShardEntry(
        file.name, 1, file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()
    )
    write_manifest(tmp_path / "shards", Manifest("tar", None, (entry,), None, None, None, "test"))
    with pytest.raises(
        InputError, match=r"data.train.path: .* made without labels: set labelled: false"
    ):
        sizes(tmp_path, "shards", labelled=True)
    assert sizes(tmp_path, "shards") == [1]


def test_counts_of_local_tars_are_kept(tmp_path, monkeypatch):
    files = fill(tmp_path / "shards", "a-0.tar a-1.tar")
    assert sizes(tmp_path, "shards") == [1, 2]
    monkeypatch.setattr("distill.data.stream.shard_fetcher.index_tar", None)
    assert sizes(tmp_path, "shards") == [1, 2]
    monkeypatch.undo()
    files[1].write_bytes(tar_of(range(9)))
    assert sizes(tmp_path, "shards") == [1, 9]
    files[1].write_bytes(tar_of(range(9))[:3000])
    with pytest.raises(InputError, match=r"data.train.path: .*a-1.tar: cut at byte 3000"):
        sizes(tmp_path, "shards")


def test_counting_remote_tars(tmp_path, served):
    fill(tmp_path / "served", "a-0.tar a-1.tar a-2.tar")
    path = f"{served.url}/a-{{0..2}}.tar"
    with pytest.raises(
        InputError,
        match=r"data.train.path: nothing says how many .*distill data inspect '.*' --count",
    ):
        sizes(tmp_path, path)
    calls = []
    spec = StreamSpec(kind="stream", path=path, labelled=False)
    settings = ShardsSpec(cache="cache", retries=0)
    counts = count_samples(
        spec, tmp_path, "data", settings, lambda done, of: calls.append((done, of))
    )
    assert counts.tolist() == [1, 2, 3]
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert sizes(tmp_path, path) == [1, 2, 3]
    assert all(served.requests[f"/a-{i}.tar"] == 1 for i in range(3))
    with pytest.raises(InputError, match="nothing says how many"):
        sizes(tmp_path, path, cache="another")
    served.fault("/a-1.tar", "shorten", on=None, after_bytes=700)
    with pytest.raises(InputError, match=r"data.path: .*a-1.tar: cut at byte 700"):
        count_samples(spec, tmp_path, "data", ShardsSpec(cache="third", retries=0))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (
            [parquet_of(range(3), ["ox", "yak"]), parquet_of(range(3), ["yak", "ox"])],
            "name other classes in their schemas",
        ),
        (
            [parquet_of(range(3)), parquet_of(range(3))[:-1]],
            "1.parquet: it does not end as a Parquet file does",
        ),
        ([parquet_of(range(3)), parquet_of(range(0))], "1.parquet holds no samples: remove it"),
        ([b"", b""], "0.parquet: it does not end as"),
    ],
)
def test_parquet_that_is_refused(tmp_path, contents, message):
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.parquet").write_bytes(content)
    with pytest.raises(InputError, match=rf"data.train.path: .*{message}"):
        sizes(tmp_path, "*.parquet", labelled=True)


def test_a_column_that_is_not_there_names_the_file(tmp_path):
    (tmp_path / "0.parquet").write_bytes(parquet_of(range(3)))
    with pytest.raises(
        InputError,
        match=(
            r"data.train.path: .*0.parquet: no column 'jpg'.*set `image` to one of 'image', 'label'"
        ),
    ):
        sizes(tmp_path, "0.parquet", image="jpg")


# ---- the Hub -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("hf://datasets/o/n", ("o/n", None, None)),
        ("hf://datasets/o/n@v1/", ("o/n", "v1", None)),
        (
            "hf://datasets/o/n@refs/convert/parquet/default/*.parquet",
            ("o/n", "refs/convert/parquet", "default/*.parquet"),
        ),
        ("hf://datasets/o/n/data/{0..9}.tar", ("o/n", None, "data/{0..9}.tar")),
    ],
)
def test_hub_paths(path, parts):
    assert parse_hub_path(path, "data.train") == parts


ASKING = """
import json, sys
from pathlib import Path
from distill.data.stream.opening import open_stream
from distill.errors import InputError
from distill.recipe.schema import ShardsSpec, StreamSpec

for fields in json.loads(sys.argv[1]):
    try:
        source = open_stream(StreamSpec(kind="stream", **fields), Path(sys.argv[2]), "data.train", ShardsSpec(cache="cache", retries=0, timeout_s=5))
        said = {
            "sizes": source.shard_sizes.tolist(), "classes": source.classes, "urls": [s.url for s in source.shards],
            "images": [source.read(i).decode() for i in range(len(source))], "fingerprint": source.fingerprint(),
            "labels": source.labels[list(range(len(source)))].tolist(), "sha256": [s.sha256 for s in source.shards],
        }
    except InputError as error:
        said = str(error)
    print("SAID", json.dumps(said), flush=True)
"""


README = """---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': ox
          '1': yak
---
"""


def test_the_hub(tmp_path, served):
    """Webdataset and Parquet repositories, a gate, and what is not there, in a process of its own,
    since the endpoint is read at import.
    """
    hub = Hub(tmp_path / "served", served)
    info = {
        "splits": {
            "train": {"filenames": ["x-train-0.tar", "x-train-1.tar"], "shard_lengths": [1, 2]}
        }
    }
    tars = {f"x-train-{i}.tar": tar_of(range(i + 1)) for i in range(2)} | {
        "x-validation-0.tar": tar_of(range(3))
    }
    hub.repository("timm/wds", tars | {"_info.json": json.dumps(info).encode()})
    tables = {
        f"data/train-{i:05d}-of-00002.parquet": parquet_of(range(i + 2), ["ox", "yak"])
        for i in range(2)
    }
    hub.repository(
        "o/table",
        tables | {"data/test-00000-of-00001.parquet": parquet_of(range(1), ["ox", "yak"])},
        README,
    )
    hub.repository("o/pictures", {"a.txt": b"text"})
    hub.gated("o/gated")
    (tmp_path / "classes.txt").write_text("ox\nyak\n")
    asked = [
        {"path": "hf://datasets/timm/wds", "split": "train", "classes": "classes.txt"},
        {"path": "hf://datasets/timm/wds@v1/x-train-{1..1}.tar", "classes": "classes.txt"},
        {"path": "hf://datasets/o/table", "split": "train"},
        {"path": "hf://datasets/timm/wds", "split": "validation", "classes": "classes.txt"},
        {"path": "hf://datasets/o/table", "split": "trai"},
        {"path": "hf://datasets/timm/wds", "split": "train"},
        {"path": "hf://datasets/o/gated", "split": "train"},
        {"path": "hf://datasets/o/none"},
        {"path": "hf://datasets/timm/wds/y-*.tar"},
        {"path": "hf://datasets/o/pictures"},
    ]
    environment = {
        **os.environ,
        "HF_ENDPOINT": served.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_secret",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-c", ASKING, json.dumps(asked), str(tmp_path)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    said = [
        json.loads(line.removeprefix("SAID "))
        for line in done.stdout.splitlines()
        if line.startswith("SAID")
    ]
    assert len(said) == len(asked), done.stderr
    whole, part, table, uncounted, *refused = said
    root = f"hf://datasets/timm/wds@{COMMIT}"
    assert whole["urls"] == [f"{root}/x-train-0.tar", f"{root}/x-train-1.tar"]
    assert (whole["sizes"], whole["images"], whole["labels"]) == (
        [1, 2],
        ["image 0", "image 0", "image 1"],
        [0, 0, 1],
    )
    assert whole["sha256"] == [
        hashlib.sha256(tars[f"x-train-{i}.tar"]).hexdigest() for i in range(2)
    ]
    assert (part["sizes"], part["urls"]) == ([2], [f"{root}/x-train-1.tar"])
    assert (table["sizes"], table["classes"], table["labels"]) == (
        [2, 3],
        ["ox", "yak"],
        [0, 1, 0, 1, 0],
    )
    assert table["images"] == ["image 0", "image 1", "image 0", "image 1", "image 2"]
    assert any(seen.path == "/datasets/timm/wds/resolve/v1/README.md" for seen in served.log)
    assert "--count" in uncounted
    for message, expected in zip(
        refused,
        (
            (
                "data.train.split: hf://datasets/o/table has no split 'trai' (did you mean"
                " 'train'?): choose one of "
            ),
            "data.train.classes: nothing in hf://datasets/timm/wds names its classes",
            (
                "is a gated dataset on the Hub. You must be authenticated to access it: accept the"
                f" terms at {served.url}/datasets/o/gated"
            ),
            "data.train.path: hf://datasets/o/none: ",
            "data.train.path: hf://datasets/timm/wds/y-*.tar: ",
            "data.train.container: a.txt is neither .tar nor .parquet",
        ),
        strict=True,
    ):
        assert expected in message, message
    fetched = [seen for seen in served.log if seen.path.endswith(("0.tar", "1.tar", "2.parquet"))]
    assert len(fetched) >= 4
    assert all(seen.headers["authorization"] == "Bearer hf_secret" for seen in fetched)
