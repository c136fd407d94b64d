"""Parquet files as Arrow files that can be mapped, each cached under a checksum of its bytes.

A single row of a Parquet file cannot be read without decoding its row group, some hundred images,
so a file is converted once. The cache of `datasets` keys a conversion by path and time stamp, and
returns the old images when a file is replaced under both; here a file with other bytes is another
file, wherever it lies. Measured on 5,000 images: see docs/log.md.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from distill.data.locks import locked
from distill.errors import InputError
from distill.files import atomic_write

# Rows of an Arrow batch: what `datasets` writes for images.
_BATCH_ROWS = 100
_BLOCK_BYTES = 1 << 22
# File times have a resolution of some milliseconds, so a file that changed this recently may change
# again under the same times.
_SETTLED_S = 2.0


def arrow_file(path: Path) -> Path:
    """The Arrow file with the rows of a Parquet file, or of an Arrow file in the format that cannot
    be mapped.

    It takes about as much space as the file itself, in `distill` below the cache folder of
    `datasets` (HF_DATASETS_CACHE), or in the temporary folder where that cannot be written.

    Raises:
        OSError, pyarrow.ArrowException: the file cannot be read, or has another format.
        InputError: no cache folder can be written, or the file changes while it is read.
    """
    folder = _cache_folder()
    stamp = _stamp(path)
    target = folder / f"{_checksum(path, stamp, folder)}.arrow"
    if not target.is_file():
        with ExitStack() as stack:
            # Without locks in the file system each process converts, and the last one's file stays.
            with suppress(OSError):
                stack.enter_context(locked(target.with_suffix(".lock"), wait=True))
            if not target.is_file():  # not converted by another process meanwhile
                _convert(path, stamp, target)
    return target


def _cache_folder() -> Path:
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


def _stamp(path: Path) -> list[int]:
    """Numbers that change when a file is written or replaced: a ctime cannot be set."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino]


def _checksum(path: Path, stamp: list[int], folder: Path) -> str:
    """The checksum of all bytes of a file; it is remembered until the file's stamp changes."""
    record_file = folder / f"{xxhash.xxh3_128_hexdigest(os.fsencode(path.absolute()))}.json"
    try:
        record = json.loads(record_file.read_text())
        if record["state"] == stamp:
            return str(record["checksum"])
    except (OSError, ValueError, LookupError, TypeError):
        pass
    checksum = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            checksum.update(block)
    if time.time() - stamp[2] / 1e9 > _SETTLED_S:
        content = json.dumps({"state": stamp, "checksum": checksum.hexdigest()}).encode()
        atomic_write(record_file, lambda file: file.write(content))
    return str(checksum.hexdigest())


def _convert(path: Path, stamp: list[int], target: Path) -> None:
    """Write the Arrow file `target` of a file whose checksum was taken at `stamp`."""
    import pyarrow as pa

    def write(file: BinaryIO) -> None:
        writer = None
        for batch in _batches(path):
            writer = writer or pa.ipc.new_stream(file, batch.schema)
            writer.write_batch(batch)
        assert writer is not None
        writer.close()
        if _stamp(path) != stamp:  # other rows would be cached under this checksum
            raise InputError(
                f"{path} changes while it is read: wait until it is written, then start again"
            )

    atomic_write(target, write)


def _batches(path: Path) -> Iterator[Any]:
    """Record batches, an empty one first for the schema. Dictionary columns (pandas' categories)
    are decoded to plain values.
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
        encoded = [i for i, field in enumerate(schema) if pa.types.is_dictionary(field.type)]
        for i in encoded:
            schema = schema.set(i, schema.field(i).with_type(schema.field(i).type.value_type))
        yield pa.RecordBatch.from_pylist([], schema=schema)
        for batch in batches:
            columns = [
                c.dictionary_decode() if i in encoded else c for i, c in enumerate(batch.columns)
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)
