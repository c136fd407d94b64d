"""Parquet files as Arrow files that can be mapped, each kept under a checksum of its contents.

A row of a Parquet file can only be had by decoding its row group, some hundred images, so a file is
converted once. The cache of `datasets` keys a conversion by path and time stamp, and serves the old
images when a file is replaced under both; here a file with other bytes is another file, wherever it
lies. Measured on 5,000 images: see docs/log.md.
"""

import fcntl
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from distill.errors import InputError

# Rows of an Arrow batch: what `datasets` writes of images.
_BATCH_ROWS = 100
_BLOCK_BYTES = 1 << 22
# A file that changed so shortly ago may change again under the same times, whose grain is some
# milliseconds.
_SETTLED_S = 2.0


def arrow_file(path: Path) -> Path:
    """The Arrow file with the rows of a Parquet file, or of an Arrow file of the format that cannot
    be mapped as it is.

    It takes about the space of the file again, in `distill` below the cache folder of `datasets`
    (HF_DATASETS_CACHE), or in the temporary folder where that cannot be written.

    Raises:
        OSError, pyarrow.ArrowException: the file cannot be read, or is another format.
        InputError: there is no place for it, or the file changes while it is read.
    """
    folder = _folder()
    state = _state(path)
    target = folder / f"{_checksum(path, state, folder)}.arrow"
    if not target.is_file():
        with _locked(target.with_suffix(".lock")):
            if not target.is_file():  # another process of this machine has made it
                _convert(path, state, target)
    return target


def _folder() -> Path:
    import datasets

    wanted = Path(datasets.config.HF_DATASETS_CACHE) / "distill"
    spare = Path(tempfile.gettempdir()) / f"distill-tables-{os.getuid()}"
    for folder in (wanted, spare):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if os.access(folder, os.W_OK) and (
            folder == wanted or folder.lstat().st_uid == os.getuid()
        ):
            return folder
    raise InputError(
        f"HF_DATASETS_CACHE: neither {wanted} nor {spare} can be written, and Parquet files are"
        " converted there: set it to a folder of yours"
    )


def _state(path: Path) -> list[int]:
    """What a write to a file, or another file in its place, must change: a ctime cannot be set."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino]


def _checksum(path: Path, state: list[int], folder: Path) -> str:
    """The checksum of all bytes of a file; remembered as long as its state is the same."""
    known = folder / f"{xxhash.xxh3_128_hexdigest(os.fsencode(path.absolute()))}.json"
    try:
        said = json.loads(known.read_text())
        if said["state"] == state:
            return str(said["checksum"])
    except (OSError, ValueError, LookupError, TypeError):
        pass
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    if time.time() - state[2] / 1e9 > _SETTLED_S:
        _write(known, json.dumps({"state": state, "checksum": digest.hexdigest()}).encode())
    return str(digest.hexdigest())


def _convert(path: Path, state: list[int], target: Path) -> None:
    """Write the Arrow file `target` of a file whose checksum was taken in `state`."""
    import pyarrow as pa

    part = _part_of(target)
    try:
        with part.open("wb") as file:
            writer = None
            for batch in _batches(path):
                writer = writer or pa.ipc.new_stream(file, batch.schema)
                writer.write_batch(batch)
            assert writer is not None
            writer.close()
        if _state(path) != state:  # else other rows would be kept under this checksum
            raise InputError(
                f"{path} changes while it is read: wait until it is written, then start again"
            )
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _batches(path: Path) -> Iterator[Any]:
    """Record batches, an empty one first for the schema; words that a writer has numbered (pandas'
    categories) become words again.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        if file.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(file)
            schema = reader.schema
            batches: Iterator[Any] = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            table = pq.ParquetFile(file)
            schema = table.schema_arrow
            batches = table.iter_batches(batch_size=_BATCH_ROWS)
        numbered = [i for i, field in enumerate(schema) if pa.types.is_dictionary(field.type)]
        for i in numbered:
            schema = schema.set(i, schema.field(i).with_type(schema.field(i).type.value_type))
        yield pa.RecordBatch.from_pylist([], schema=schema)
        for batch in batches:
            columns = [
                c.dictionary_decode() if i in numbered else c for i, c in enumerate(batch.columns)
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _part_of(path: Path) -> Path:
    """Return where a file is written before it has its name; machines that share the folder have
    processes of one number.
    """
    return path.with_suffix(f".part-{socket.gethostname()}-{os.getpid()}")


def _write(path: Path, content: bytes) -> None:
    part = _part_of(path)
    part.write_bytes(content)
    part.replace(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process of the machine at a time; where the file system knows no locks, each makes its
    own and the last is kept.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield
            return
        yield
    path.unlink(missing_ok=True)
