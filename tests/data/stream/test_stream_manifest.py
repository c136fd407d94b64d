"""The manifest of a set of shards: what is written is read, and what was changed since
is refused.
"""

import dataclasses
import json
from pathlib import Path

import pytest

from distill.data.stream.manifest import (
    MANIFEST_FILE,
    Manifest,
    ShardEntry,
    _checksum,
    manifest_text,
    read_manifest,
    write_manifest,
)
from distill.errors import InputError

LABELLED = Manifest(
    container="tar",
    classes=("tench", 'gold"fish', "Größe"),
    shards=(
        ShardEntry("shard-00000.tar", 3, 10240, "ab" * 32),
        ShardEntry("shard-00001.tar", 2, 9216, "cd" * 32),
    ),
    labels_file="labels.npy",
    labels_sha256="ef" * 32,
    resize=256,
    made_from="/data/train",
    num_skipped=1,
)
UNLABELLED = dataclasses.replace(
    LABELLED, classes=None, labels_file=None, labels_sha256=None, resize=None
)


@pytest.mark.parametrize("manifest", [LABELLED, UNLABELLED])
def test_what_is_written_is_read(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest)
    assert [file.name for file in tmp_path.iterdir()] == [MANIFEST_FILE]
    content = (tmp_path / MANIFEST_FILE).read_bytes()
    assert read_manifest(content, "here") == manifest
    assert json.loads(content)["num_samples"] == manifest.num_samples == 5


def test_each_shard_has_a_line() -> None:
    assert sum('"file": "shard-' in line for line in manifest_text(LABELLED).splitlines()) == 2


def test_layout_does_not_break_the_seal() -> None:
    loose = json.dumps(json.loads(manifest_text(LABELLED)), indent=4, ensure_ascii=False)
    assert read_manifest(loose.encode(), "here") == LABELLED


@pytest.mark.parametrize("at", ['num_samples": 3', "ab" * 32, "tench", "/data/train", "10240"])
def test_a_changed_one_is_refused(at: str) -> None:
    text = manifest_text(LABELLED)
    changed = text.replace(at, at[:-1] + ("7" if at[-1] != "7" else "8"))
    assert changed != text
    with pytest.raises(
        InputError,
        match=r"^s3://b/manifest\.json: damaged, its content is not what its sha256 says: fetch",
    ):
        read_manifest(changed.encode(), "s3://b/manifest.json")


def test_one_cut_short_is_refused() -> None:
    content = manifest_text(LABELLED).encode()
    for end in (0, 1, len(content) // 2, len(content) - 3):
        with pytest.raises(InputError, match=r"^here: damaged, no JSON"):
            read_manifest(content[:end], "here")
    with pytest.raises(InputError, match=r"^here: damaged, no JSON"):
        read_manifest(b"\xff\xfe" + content, "here")


@pytest.mark.parametrize("content", [b"[]", b'{"shards": []}', b"3"])
def test_other_json_is_no_manifest(content: bytes) -> None:
    with pytest.raises(InputError, match="here: no manifest of distill data shard"):
        read_manifest(content, "here")


def test_another_format_is_refused() -> None:
    record = json.loads(manifest_text(LABELLED)) | {"format": 2}
    with pytest.raises(
        InputError, match="here: format 2, and this version reads 1: use the version"
    ):
        read_manifest(json.dumps(record).encode(), "here")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_samples": 6}, "counts do not add up"),
        ({"container": "zip"}, "container 'zip'"),
        ({"shards": [], "num_samples": 0}, "no shards"),
        ({"shards": None}, "TypeError"),
        ({"labels": {"file": "../labels.npy", "sha256": "00"}}, "no plain name"),
        (
            {"shards": [{"file": "/etc/passwd", "num_samples": 5, "size": 1, "sha256": ""}]},
            "no plain name",
        ),
        ({"shards": [{"num_samples": 5, "size": 1, "sha256": ""}]}, "KeyError"),
    ],
)
def test_a_sealed_one_that_is_nonsense_is_refused(change: dict[str, object], said: str) -> None:
    record = json.loads(manifest_text(LABELLED)) | change
    record["sha256"] = _checksum({key: value for key, value in record.items() if key != "sha256"})
    with pytest.raises(InputError, match=f"here: damaged .*{said}"):
        read_manifest(json.dumps(record).encode(), "here")
