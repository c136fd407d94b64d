"""Counts, labels and classes of a stream, and its fingerprint."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servers import FolderServer
from streams import (
    CLASSES,
    IMAGES,
    LABELS,
    TOTAL,
    OpenStream,
    assert_all_there,
    write_shards,
    write_tar,
)

from distill.data.stream.manifest import Manifest, ShardEntry, write_manifest
from distill.errors import InputError


def test_a_count_that_is_not_kept(tmp_path: Path, served: FolderServer, opened: OpenStream) -> None:
    folder = tmp_path / "served"
    write_shards(folder, "tar")
    names = [f"train-{i:04d}.tar" for i in range(4)]
    said = {"splits": {"train": {"filenames": names, "shard_lengths": [5, 1, 8, 4]}}}
    (folder / "_info.json").write_text(json.dumps(said))
    source = opened(served.url, classes="classes.txt")
    assert len(source) == TOTAL + 1
    with pytest.raises(
        InputError, match=r"data.train.path: .*train-0002.tar holds 7 samples, and 8 are promised"
    ):
        source.read(7)


def test_a_layout_that_is_refused_names_the_shard(
    tmp_path: Path, served: FolderServer, opened: OpenStream
) -> None:
    write_shards(tmp_path / "served", "tar", manifest="plain")
    with pytest.raises(
        InputError, match=r"data.train.path: .*/train-0000.tar: key '0000' has no wnid member"
    ) as info:
        opened(served.url, label="wnid").read(0)
    assert str(info.value).count("train-0000.tar") == 1
    requests = served.requests["/train-0000.tar"]
    assert requests == 1


def test_labels_outside_the_classes(tmp_path: Path, opened: OpenStream) -> None:
    (tmp_path / "two.txt").write_text("ox\nyak\n")
    write_shards(tmp_path / "shards", "tar")
    with pytest.raises(
        InputError, match=r"train-0000.tar: sample 1 has label 2, and labels go from 0 to 1"
    ):
        opened("shards", classes="two.txt").read(0)
    assert opened("shards", labelled=False).read(0) == IMAGES[0]
    write_shards(tmp_path / "named", "parquet")
    with pytest.raises(
        InputError, match=r"data.train.classes: class 'emu' is not in the class list of 2"
    ):
        opened("named", classes="two.txt")
    write_shards(tmp_path / "with", "tar", manifest="labels")
    with pytest.raises(InputError, match=r"class 'emu' is not in the class list of 2"):
        opened("with", classes="two.txt")


@pytest.mark.parametrize(
    ("kind", "manifest"), [("parquet", ""), ("tar", "plain"), ("tar", "labels")]
)
def test_classes_in_another_order(
    tmp_path: Path, opened: OpenStream, kind: str, manifest: str
) -> None:
    (tmp_path / "other.txt").write_text("emu\nzebu\nyak\nox\n")
    write_shards(tmp_path / "shards", kind, manifest=manifest)
    source = opened("shards", classes="other.txt")
    assert source.classes == ("emu", "zebu", "yak", "ox")
    names = [source.classes[label] for label in source.labels[np.arange(TOTAL)]]
    assert names == [CLASSES[label] for label in LABELS]


def test_labels_that_are_names(tmp_path: Path, opened: OpenStream) -> None:
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards/train-0000.tar", range(8), lambda i: CLASSES[LABELS[i]].encode())
    write_tar(
        tmp_path / "shards/train-0001.tar", range(8, 9), lambda i: CLASSES[LABELS[i]].encode()
    )
    source = opened("shards", classes="classes.txt")
    assert source.labels[np.arange(9)].tolist() == LABELS[:9]
    (tmp_path / "two.txt").write_text("ox\nyaks\n")
    with pytest.raises(InputError, match=r"train-0000.tar: class 'emu' is not in the class list"):
        opened("shards", classes="two.txt").read(0)


@pytest.mark.parametrize("names", ["1\n2\n0\n", "ox\n0\nemu\n"])
def test_digits_that_may_be_numbers_or_names_are_refused(
    tmp_path: Path, opened: OpenStream, names: str
) -> None:
    (tmp_path / "names.txt").write_text(names)
    write_shards(tmp_path / "shards", "tar")
    with pytest.raises(
        InputError, match=r"train-0000.tar has labels of digits, and class \d is called '[01]'"
    ):
        opened("shards", classes="names.txt").read(0)
    (tmp_path / "names.txt").write_text("0\n1\n2\n")
    assert opened("shards", classes="names.txt").labels[np.arange(TOTAL)].tolist() == LABELS


def test_a_label_that_no_index_holds(tmp_path: Path, opened: OpenStream) -> None:
    (tmp_path / "shards").mkdir()
    table = pa.table(
        {"image": pa.array([b"x"] * 3), "label": pa.array([0, 2**63 + 1, 0], pa.uint64())}
    )
    pq.write_table(table, tmp_path / "shards/0.parquet")
    with pytest.raises(
        InputError, match=r"0.parquet: row 1 has label 9223372036854775809 in column 'label'"
    ):
        opened("shards", classes="classes.txt").read(0)


def test_classes_that_nothing_names(tmp_path: Path, opened: OpenStream) -> None:
    write_shards(tmp_path / "shards", "tar")
    with pytest.raises(
        InputError,
        match=r"data.train.classes: .*a label set such as imagenet-1k, or set labelled: false",
    ):
        opened("shards")
    assert len(opened("shards", classes="imagenet-1k").classes) == 1000
    assert_all_there(opened("shards", labelled=False), labelled=False)


def test_the_fingerprint_tells_data_and_not_places(
    tmp_path: Path, served: FolderServer, opened: OpenStream
) -> None:
    write_shards(tmp_path / "served", "tar", manifest="plain")
    prints = {
        opened(path, cache=cache).fingerprint()
        for path in ("served", served.url)
        for cache in ("a", "b")
    }
    assert len(prints) == 1
    write_tar(tmp_path / "served/train-0003.tar", range(0, 4))
    content = (tmp_path / "served/train-0003.tar").read_bytes()
    old = json.loads((tmp_path / "served/manifest.json").read_text())["shards"]
    entries = [
        ShardEntry(each["file"], each["num_samples"], each["size"], each["sha256"]) for each in old
    ]
    entries[3] = ShardEntry("train-0003.tar", 4, len(content), hashlib.sha256(content).hexdigest())
    write_manifest(
        tmp_path / "served", Manifest("tar", CLASSES, tuple(entries), None, None, None, "a test")
    )
    assert opened("served").fingerprint() not in prints
    assert opened("served/train-000[0-2].tar").fingerprint() not in prints
