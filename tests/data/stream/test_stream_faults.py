"""Faults of servers, shards and the cache, as a reader of the stream meets them."""

import os
from pathlib import Path

import numpy as np
import pytest
from server_faults import Kind
from servers import FolderServer
from streams import IMAGES, TOTAL, OpenStream, assert_all_there, write_shards

from distill.data.records import UnreadableShardError
from distill.data.stream.opening import count_samples
from distill.errors import InputError
from distill.recipe.schema import ShardsSpec, StreamSpec


@pytest.mark.parametrize("fault", ["truncate", "reset", "status"])
def test_faults_that_pass_leave_no_trace(
    tmp_path: Path, served: FolderServer, opened: OpenStream, fault: Kind
) -> None:
    write_shards(tmp_path / "served", "tar", manifest="plain")
    served.fault("/train-0002.tar", fault, **({"after_bytes": 3000} if fault != "status" else {}))
    assert_all_there(opened(served.url, retries=2))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_shard_that_is_cut_for_good_is_named_with_its_byte(
    tmp_path: Path, served: FolderServer, opened: OpenStream, kind: str
) -> None:
    write_shards(tmp_path / "served", kind)
    source = (
        opened(f"{served.url}/train-{{0000..0003}}.{kind}", classes="classes.txt")
        if kind == "parquet"
        else None
    )
    if source is None:
        counted(tmp_path, served)
        source = opened(
            f"{served.url}/train-{{0000..0003}}.tar", classes="classes.txt", cache="other"
        )
    served.fault(f"/train-0002.{kind}", "shorten", on=None, after_bytes=2000)
    where = "cut at byte 2000" if kind == "tar" else r"it has 2000 bytes and \d+ were promised"
    with pytest.raises(UnreadableShardError, match=rf"/train-0002.{kind}: .*{where}"):
        source.read(8)
    requests = served.requests[f"/train-0002.{kind}"]
    with pytest.raises(UnreadableShardError, match=where):
        source.read(9)
    with pytest.raises(UnreadableShardError, match=where):
        _ = source.labels[np.array([0, 10])]
    assert served.requests[f"/train-0002.{kind}"] == requests  # remembered
    assert source.read(0) == IMAGES[0]
    assert f"train-0002.{kind}, " in source.describe(8)


def counted(tmp_path: Path, served: FolderServer) -> None:
    """A list of counts in the folder of the other cache."""
    spec = StreamSpec(kind="stream", path=f"{served.url}/train-{{0000..0003}}.tar")
    count_samples(spec, tmp_path, "data.train", ShardsSpec(cache="other", retries=0))
    for file in (tmp_path / "other").iterdir():
        if file.is_file():
            file.unlink()


def test_a_corrupt_shard_is_named_with_its_byte(
    tmp_path: Path, served: FolderServer, opened: OpenStream
) -> None:
    write_shards(tmp_path / "served", "tar")
    counted(tmp_path, served)
    source = opened(f"{served.url}/train-{{0000..0003}}.tar", classes="classes.txt", cache="other")
    served.fault("/train-0002.tar", "corrupt", after_bytes=1)
    assert source.read(8) == IMAGES[8]  # fetched once more
    served.fault("/train-0003.tar", "corrupt", on=None, after_bytes=1)
    with pytest.raises(
        UnreadableShardError, match=r"train-0003.tar: the header at byte 0 is damaged"
    ):
        source.read(TOTAL - 1)


def test_a_manifest_catches_what_a_tar_does_not(
    tmp_path: Path, served: FolderServer, opened: OpenStream
) -> None:
    """A changed byte of an image: fetched again, and given up when it comes again."""
    write_shards(tmp_path / "served", "tar", manifest="plain")
    served.fault("/train-0000.tar", "corrupt", on=(1,), after_bytes=600)
    served.fault("/train-0003.tar", "corrupt", on=None, after_bytes=600)
    source = opened(served.url)
    assert source.read(0) == IMAGES[0]
    assert served.requests["/train-0000.tar"] == 2
    with pytest.raises(UnreadableShardError, match=r"train-0003.tar: .*SHA-256"):
        source.read(TOTAL - 1)


def test_a_missing_shard_and_a_dead_server(
    tmp_path: Path, served: FolderServer, opened: OpenStream
) -> None:
    write_shards(tmp_path / "served", "tar", manifest="plain")
    source = opened(served.url)
    served.fault("/train-0000.tar", "status", on=None, status=404)
    for _ in range(2):
        with pytest.raises(InputError, match=r"train-0000.tar: .*404"):
            source.read(0)
    assert served.requests["/train-0000.tar"] == 1
    served.close()
    with pytest.raises(UnreadableShardError, match=r"train-0001.tar: at byte 0, tried"):
        source.read(5)
    with pytest.raises(InputError, match=r"data.train.path: .*at byte 0.*fix the server"):
        opened(served.url + "/train-{0000..0003}.parquet", labelled=False)


def test_damage_in_the_cache_is_repaired(
    tmp_path: Path, served: FolderServer, opened: OpenStream
) -> None:
    write_shards(tmp_path / "served", "tar", manifest="plain")
    source = opened(served.url)
    assert source.read(1) == IMAGES[1]
    (file,) = (f for f in (tmp_path / "cache").iterdir() if f.suffix == "")
    whole = file.read_bytes()
    at = whole.index(IMAGES[1]) + 20
    file.write_bytes(whole[:at] + b"#####" + whole[at + 5 :])
    assert source.read(1) == IMAGES[1]
    assert served.requests["/train-0000.tar"] == 2
    file.write_bytes(whole[:-10] + b"#" * 10)  # the index
    assert opened(served.url).read(1) == IMAGES[1]
    assert served.requests["/train-0000.tar"] == 3


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_local_shards_are_held_to_their_manifest(
    tmp_path: Path, opened: OpenStream, kind: str
) -> None:
    write_shards(tmp_path / "shards", kind, manifest="plain")
    # The index of a tar is made again when the file changes; of Parquet a checked copy is cached.
    if kind == "tar":
        assert opened("shards").read(8) == IMAGES[8]
    file = tmp_path / f"shards/train-0002.{kind}"
    content = file.read_bytes()
    at = content.index(IMAGES[8]) + 5
    file.write_bytes(content[:at] + b"#" + content[at + 1 :])
    with pytest.raises(
        UnreadableShardError, match=rf"train-0002.{kind}: its SHA-256 is not the promised"
    ):
        opened("shards").read(8)
    file.write_bytes(content[:-512])
    with pytest.raises(
        UnreadableShardError,
        match=rf"has {len(content) - 512} bytes, and {len(content)} are promised",
    ):
        opened("shards").read(8)


def test_a_local_tar_that_is_cut_while_it_is_open(tmp_path: Path, opened: OpenStream) -> None:
    write_shards(tmp_path / "shards", "tar")
    source = opened("shards", classes="classes.txt")
    assert source.read(0) == IMAGES[0]
    os.truncate(tmp_path / "shards/train-0000.tar", 3000)
    with pytest.raises(UnreadableShardError, match=r"train-0000.tar: cut at byte 3000"):
        source.read(4)
