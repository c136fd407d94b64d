"""What a folder of shards was begun with: the same source wherever it lies, and no other in its
place.
"""

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cutting import cut
from servers import FolderServer
from shards import describe, write_tars

from distill.data.sources import open_source
from distill.data.stream.manifest import MANIFEST_FILE, Manifest, read_manifest, write_manifest
from distill.datatools.named import Named, open_named
from distill.datatools.plan import source_fingerprint
from distill.errors import InputError
from distill.files import sha256_of
from distill.recipe import schema


def fingerprint(root: Path, cache: str = "cache", **fields: object) -> str:
    """Of the stream in `in`, or at `path`."""
    spec = schema.StreamSpec(kind="stream", **({"path": "in", "labelled": False} | fields))
    settings = schema.ShardsSpec(cache=str(root / cache), retries=0, timeout_s=5)
    return source_fingerprint(open_source(spec, root, "SOURCE", settings), spec)


def of_folder(named: Named) -> str:
    return source_fingerprint(named.source, named.spec)


def test_the_last_image_counts(
    photos: Path, tmp_path: Path, make_picture: Callable[..., bytes]
) -> None:
    """Of many images some are read, the first and the last among them."""
    shutil.copytree(photos, tmp_path / "other")
    last = max((tmp_path / "other").rglob("*.*"))
    last.write_bytes(make_picture(99, (90, 64), "JPEG"))
    assert of_folder(open_named(str(tmp_path / "other"))) != of_folder(open_named(str(photos)))


def test_an_image_that_cannot_be_read_is_part_of_it(photos: Path, tmp_path: Path) -> None:
    prints = []
    for name in ("one", "two"):
        shutil.copytree(photos, tmp_path / name)
        named = open_named(str(tmp_path / name))
        prints.append(of_folder(named))
        min((tmp_path / name / "cat").iterdir()).unlink()
        prints.append(of_folder(named))
    assert prints[0] == prints[2] != prints[1] == prints[3]


def test_other_labels_of_the_same_shards(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "in")
    before = fingerprint(tmp_path, labelled=True)
    manifest = read_manifest((tmp_path / "in" / MANIFEST_FILE).read_bytes(), "manifest")
    labels = np.load(tmp_path / "in/labels.npy")
    np.save(tmp_path / "in/labels.npy", (labels + 1) % 3)
    said = vars(manifest) | {"labels_sha256": sha256_of(tmp_path / "in/labels.npy")}
    write_manifest(tmp_path / "in", Manifest(**said))
    assert fingerprint(tmp_path, labelled=True) != before


def test_tars_without_checksums_are_known_by_size_and_time(tmp_path: Path) -> None:
    (path,) = write_tars(tmp_path / "in", [b"a" * 100], 1)
    os.utime(path, (1, 1))
    before = fingerprint(tmp_path)
    write_tars(tmp_path / "in", [b"b" * 100], 1)
    os.utime(path, (2, 2))
    assert fingerprint(tmp_path) != before
    write_tars(tmp_path / "in", [b"b" * 20_000], 1)
    os.utime(path, (1, 1))
    assert fingerprint(tmp_path) != before


def test_a_checksum_says_more_than_a_time(tmp_path: Path) -> None:
    (path,) = write_tars(tmp_path / "in", [b"a" * 100], 1)
    describe(tmp_path / "in")
    before = fingerprint(tmp_path)
    os.utime(path, (1, 1))
    assert fingerprint(tmp_path) == before
    write_tars(tmp_path / "in", [b"b" * 100], 1)
    describe(tmp_path / "in")
    assert fingerprint(tmp_path) != before


def test_a_table_that_is_written_again_under_its_url(tmp_path: Path) -> None:
    """As long as it was, and with as many rows: its footer has other statistics."""
    with FolderServer(tmp_path) as server:
        prints = []
        for number, image in enumerate((b"a", b"b")):
            pq.write_table(pa.table({"image": [image * 50] * 3}), tmp_path / "0.parquet")
            prints.append(fingerprint(tmp_path, f"cache-{number}", path=f"{server.url}/0.parquet"))
        assert prints[0] != prints[1]
        assert fingerprint(tmp_path, "another", path=f"{server.url}/0.parquet") == prints[1]


def test_what_counts_as_an_image_is_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in/0.tar", "w") as archive:
        for name in ("a.jpg", "a.png"):
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
    assert fingerprint(tmp_path, image="jpg") != fingerprint(tmp_path, image="png")


def test_a_converted_stream_is_refused_for_another(
    whole: Path, photos: Path, tmp_path: Path
) -> None:
    """Shards are a source again; those of another seed hold the same images and are
    another stream.
    """
    cut(whole, tmp_path / "out", samples_per_shard=20)
    shutil.copytree(whole, tmp_path / "moved")
    assert cut(tmp_path / "moved", tmp_path / "out", samples_per_shard=20) is not None
    cut(photos, tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="begun with other input: SOURCE or --classes"):
        cut(tmp_path / "other", tmp_path / "out", samples_per_shard=20)
