"""A shard as a local file with random access."""

import os
from pathlib import Path

import numpy as np
import pytest
from shard_files import flipped, open_local

from distill.data.stream.local import (
    ENTRY,
    DamagedShardError,
    NoImageError,
    add_checksums,
    append_index,
)


def write_local(path: Path, records: list[bytes], names: tuple[str, ...] | None = None) -> Path:
    path.write_bytes(b"".join(records))
    entries = np.zeros(len(records), ENTRY)
    entries["size"] = [len(record) for record in records]
    entries["offset"] = np.cumsum(entries["size"]) - entries["size"]
    entries["label"] = np.arange(len(records)) - 1
    fd = os.open(path, os.O_RDONLY)
    add_checksums(fd, entries)
    os.close(fd)
    append_index(path, entries, names, has_checksums=True)
    return path


def test_a_local_shard(tmp_path: Path) -> None:
    records = [os.urandom(size) for size in (10, 1, 70_000, 333)]
    shard = open_local(write_local(tmp_path / "s", [*records, b""], ("ox", "Größe")))
    assert len(shard) == 5
    assert [shard.read(i) for i in (3, 0, 2, 1)] == [records[i] for i in (3, 0, 2, 1)]
    assert [shard.label(i) for i in range(5)] == [-1, 0, 1, 2, 3]
    assert (shard.lowest_label, shard.highest_label, shard.names) == (-1, 3, ("ox", "Größe"))
    assert shard.first_row_with(-1, 2) == (3, 2)
    with pytest.raises(NoImageError):
        shard.read(4)


def test_each_damaged_byte_is_noticed(tmp_path: Path) -> None:
    """Of the records when they are read, of the index when it is opened."""
    content = write_local(tmp_path / "s", [b"abcdefgh", b"ijkl"], ("ox",)).read_bytes()
    for at in range(len(content)):
        (tmp_path / "s").write_bytes(flipped(content, at))
        with pytest.raises(DamagedShardError, match="checksum" if at < 12 else "index"):
            [open_local(tmp_path / "s").read(row) for row in (0, 1)]
    for size in range(len(content)):
        (tmp_path / "s").write_bytes(content[:size])
        with pytest.raises(DamagedShardError):
            open_local(tmp_path / "s")


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    write_local(tmp_path / "s", [b"abc"])
    (tmp_path / "bad").write_bytes(b"nothing")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        open_local(tmp_path / "s").read(0)
        open_local(tmp_path / "s", tmp_path / "s").read(0)
        with pytest.raises(DamagedShardError):
            open_local(tmp_path / "bad")
    assert len(os.listdir("/proc/self/fd")) == before
