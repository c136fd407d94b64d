"""A shard as a file of this machine with random access to its records.

    record bytes ... | entries | names | trailer

An entry holds the position, size, checksum and label of a record. Entries and records are read with
pread, so an open shard costs a file descriptor and no memory, and processes share the page cache.
For a local tar the file is the index alone, and the records are read from the tar.
"""

import json
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

# offset, size: position of the record's bytes (size 0: the record holds no image). checksum: as
# computed by `checksum`. label: a class, or an index into the names; -1 without.
ENTRY = np.dtype([("offset", "<i8"), ("size", "<u4"), ("checksum", "<u4"), ("label", "<i8")])
_ENTRY = struct.Struct("<qIIq")
# magic, bytes of records, number of entries, bytes of names, flags, CRC-32 of the index up to here
_TRAILER = struct.Struct("<8sqqqII")
_MAGIC = b"distilS2"
_CRC_BYTES = 4
_HAS_CHECKSUMS = 1


class DamagedShardError(OSError):
    """The bytes of a shard are not what they should be. The message says where, and does not name
    the shard.
    """


class NoImageError(OSError):
    """The record is there and holds no image; reading it again does not help."""


def checksum(record: bytes | memoryview) -> int:
    """32 bits that are checked at every read: XXH3 takes 1 us for a photograph of 100 kB, zlib's
    CRC-32 takes 17.
    """
    return xxhash.xxh3_64_intdigest(record) & 0xFFFFFFFF


def append_index(
    path: Path, entries: np.ndarray, names: tuple[str, ...] | None, *, has_checksums: bool
) -> None:
    """Append the index to a file of records.

    Args:
        path: the records; created if it does not exist.
        entries: [n] ENTRY.
        names: the label names that labels index, if they are names.
    """
    data_end = path.stat().st_size if path.exists() else 0
    body = entries.astype(ENTRY).tobytes()
    text = b"" if names is None else json.dumps(names).encode()
    trailer = _TRAILER.pack(
        _MAGIC, data_end, len(entries), len(text), _HAS_CHECKSUMS if has_checksums else 0, 0
    )[:-_CRC_BYTES]
    with path.open("ab") as file:
        index = body + text + trailer
        file.write(index + zlib.crc32(index).to_bytes(_CRC_BYTES, "little"))


def add_checksums(fd: int, entries: np.ndarray) -> None:
    """Fill in the checksum of every record."""
    for entry in entries:
        entry["checksum"] = checksum(os.pread(fd, int(entry["size"]), int(entry["offset"])))


class LocalShard:
    """An open shard. Safe to use from several threads, and after a fork.

    Args:
        file: a file with an index (`append_index`); may be closed afterwards.
        data: the file of the records, if not `file`.

    Raises:
        DamagedShardError: the index is cut short or changed.
        OSError: a file cannot be opened.
    """

    def __init__(self, file: BinaryIO, data: Path | None = None) -> None:
        self._fd = self._data_fd = -1
        self._fd = os.dup(file.fileno())
        size = os.fstat(self._fd).st_size
        tail = os.pread(self._fd, _TRAILER.size, max(0, size - _TRAILER.size))
        if len(tail) < _TRAILER.size or tail[:8] != _MAGIC:
            raise DamagedShardError("the file ends without its index")
        _, first, num, num_text, flags, crc = _TRAILER.unpack(tail)
        self._first, self._num, self._has_checksums = (
            int(first),
            int(num),
            bool(flags & _HAS_CHECKSUMS),
        )
        length = num * ENTRY.itemsize + num_text
        whole = min(first, num, num_text) >= 0 and first + length + _TRAILER.size == size
        body = os.pread(self._fd, length, first) if whole else b""
        if not whole or zlib.crc32(tail[:-_CRC_BYTES], zlib.crc32(body)) != crc:
            raise DamagedShardError(f"the index at byte {first} is damaged")
        entries = np.frombuffer(body, ENTRY, num)
        self.names: tuple[str, ...] | None = (
            tuple(json.loads(body[-num_text:])) if num_text else None
        )
        self.lowest_label = int(entries["label"].min(initial=0))
        self.highest_label = int(entries["label"].max(initial=-1))
        if data is not None:
            self._data_fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        for fd in (self._fd, self._data_fd):
            if fd >= 0:
                os.close(fd)

    def __len__(self) -> int:
        return self._num

    @property
    def is_evicted(self) -> bool:
        """Whether the cache has removed the file; it uses disk space as long as it is open here."""
        return os.fstat(self._fd).st_nlink == 0

    @property
    def status(self) -> os.stat_result:
        """The status of the file that holds the index."""
        return os.fstat(self._fd)

    def _entry(self, row: int) -> tuple[int, int, int, int]:
        assert 0 <= row < self._num, row
        content = os.pread(self._fd, ENTRY.itemsize, self._first + row * ENTRY.itemsize)
        if len(content) < ENTRY.itemsize:
            raise DamagedShardError(f"the index has no entry {row} any more")
        offset, size, check, label = _ENTRY.unpack(content)
        return offset, size, check, label

    def read(self, row: int) -> bytes:
        """The bytes of a record.

        Raises:
            DamagedShardError: they are cut short, or do not match the checksum.
            NoImageError: there are none.
        """
        offset, size, check, _ = self._entry(row)
        if size == 0:
            raise NoImageError("the record holds no image")
        content = os.pread(self._fd if self._data_fd < 0 else self._data_fd, size, offset)
        if len(content) != size:
            raise DamagedShardError(
                f"cut at byte {offset + len(content)}: record {row} ends at {offset + size}"
            )
        if self._has_checksums and checksum(content) != check:
            raise DamagedShardError(f"record {row} at byte {offset} is not what its checksum says")
        return content

    def offset(self, row: int) -> int:
        """The position of a record in the file of the records."""
        return self._entry(row)[0]

    def before(self, row: int, num_bytes: int) -> bytes:
        """The bytes before a record: in a tar, its header."""
        return os.pread(
            self._fd if self._data_fd < 0 else self._data_fd,
            num_bytes,
            self.offset(row) - num_bytes,
        )

    def label(self, row: int) -> int:
        """The label as stored: a number, or an index into `names`."""
        return self._entry(row)[3]

    def first_row_with(self, below: int, from_: int) -> tuple[int, int]:
        """The first row whose label is less than `below` or at least `from_`, and the label."""
        return next(
            (row, label)
            for row in range(self._num)
            if not below <= (label := self.label(row)) < from_
        )
