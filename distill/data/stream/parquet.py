"""Parquet shards: what their footers say, and their records taken out into a file that is read in
any order.

Reading one row of Parquet takes a whole row group, tens of megabytes; so a shard is read once, from
front to back.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.records import first_line
from distill.data.stream.exiting import stop_at_exit
from distill.data.stream.local import ENTRY, DamagedShardError, append_index, checksum
from distill.errors import InputError, did_you_mean

# Rows of one read: 64 images of 110 KB are 7 MB, whatever the size of the row group.
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Footer:
    """`classes`: the names that Hugging Face's metadata give to the labels; None without. `sha256`:
    of the footer's bytes.
    """

    num_rows: int
    classes: tuple[str, ...] | None
    sha256: str


def tail_size(last_bytes: bytes) -> int:
    """The size of a Parquet file's footer in bytes, from the last 8 bytes of the file.

    Raises:
        DamagedShardError: they are not the end of a Parquet file.
    """
    if len(last_bytes) != 8 or last_bytes[4:] != b"PAR1":
        raise DamagedShardError("it does not end as a Parquet file does: cut short, or not Parquet")
    return int.from_bytes(last_bytes[:4], "little") + 8


def read_footer(tail: bytes, *, image: str | None, label: str | None, labelled: bool) -> Footer:
    """Read the footer of a Parquet file.

    Args:
        tail: its last bytes, `tail_size` of them.

    Raises:
        DamagedShardError: the footer cannot be read.
        InputError: no such column, or one that holds something else. Names the setting, and not the
            shard.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # The footer alone parses as a file; the positions of the columns are not checked.
        metadata = pq.read_metadata(io.BytesIO(b"PAR1" + tail))
        columns = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as error:
        raise DamagedShardError(f"the Parquet footer is damaged ({first_line(error)})") from error
    check_columns(columns, image, label, labelled)
    return Footer(
        metadata.num_rows,
        class_names(columns, label) if labelled else None,
        hashlib.sha256(tail).hexdigest(),
    )


def check_columns(columns: Any, image: str | None, label: str | None, labelled: bool) -> None:
    """Refuse a pyarrow schema without image files or labels.

    Raises:
        InputError: names the setting and the column.
    """
    import pyarrow as pa

    wanted = [("image", image or "image")] + ([("label", label or "label")] if labelled else [])
    for setting, column in wanted:
        if column not in columns.names:
            have = ", ".join(map(repr, columns.names))
            alone = ", or set labelled: false" if setting == "label" else ""
            raise InputError(
                f"no column {column!r}{did_you_mean(column, columns.names)}: set `{setting}` to one"
                f" of {have}{alone}"
            )
    kind = columns.field(image or "image").type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise InputError(
            f"column {image or 'image'!r} holds {kind}, not image files: set `image` to the column"
            " that does"
        )
    if labelled:
        kind = columns.field(label or "label").type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (
            pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
        ):
            raise InputError(
                f"column {label or 'label'!r} holds {kind}: labels are integers, names or a"
                " ClassLabel"
            )


def class_names(columns: Any, label: str | None) -> tuple[str, ...] | None:
    """The names of a ClassLabel column, from the metadata that `datasets` writes into a file's
    schema.
    """
    try:
        features = json.loads((columns.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label or "label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, names)) or None


def footer_sha256(path: Path) -> str:
    """SHA-256 of the footer of a file, as in `Footer.sha256`.

    Raises:
        DamagedShardError: it is not the end of a Parquet file.
    """
    with path.open("rb") as file:
        end = file.seek(0, io.SEEK_END)
        file.seek(max(0, end - 8))
        file.seek(max(0, end - tail_size(file.read())))
        return hashlib.sha256(file.read()).hexdigest()


def unpack_parquet(
    source: Any,
    path: Path,
    *,
    image: str | None = None,
    label: str | None = None,
    labelled: bool = True,
) -> int:
    """Take the records of a Parquet file out into `path`, in memory that does not grow with the
    file.

    Args:
        source: the file, opened with pyarrow.OSFile: Arrow would call a Python file back from C++,
            even when the interpreter goes.

    Returns:
        How many records there are.

    Raises:
        DamagedShardError: names the row at which reading ends.
        InputError: no such columns; a row without a label.
        SystemExit: the process ends.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    image, label = image or "image", label or "label"
    columns = [image, label] if labelled else [image]
    parts: list[np.ndarray] = []
    positions: dict[str, int] = {}  # of label names, in the order they come
    row = offset = 0
    try:
        # pre_buffer would hold a row group's bytes; without it a column is read through a buffer of
        # this size.
        with (
            pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20) as file,
            path.open("wb") as out,
        ):
            check_columns(file.schema_arrow, image, label, labelled)
            num_rows = file.metadata.num_rows
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns, use_threads=False):
                entries = np.zeros(len(batch), ENTRY)
                for i, content in enumerate(_contents(batch.column(image))):
                    if content:
                        out.write(content)
                        entries[i] = (offset, len(content), checksum(content), -1)
                        offset += len(content)
                entries["label"] = (
                    _labels(batch.column(label), row, label, positions) if labelled else -1
                )
                parts.append(entries)
                row += len(batch)
                stop_at_exit()
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the machine: a full disk, a read error
        raise DamagedShardError(
            f"the Parquet file cannot be read past row {row} ({first_line(error)})"
        ) from error
    if row != num_rows:
        raise DamagedShardError(f"the Parquet file has {row} rows, and its footer says {num_rows}")
    entries = np.concatenate(parts) if parts else np.zeros(0, ENTRY)
    append_index(path, entries, tuple(positions) or None, has_checksums=True)
    return row


def _contents(column: Any) -> list[memoryview | None]:
    """The bytes of each cell; None for an empty one and for one that holds only a path."""
    import pyarrow as pa

    if pa.types.is_struct(column.type):
        present = column.is_valid().to_pylist()
        column = column.field("bytes")
    else:
        present = [True] * len(column)
    return [
        memoryview(cell.as_buffer()) if there and cell.is_valid else None
        for there, cell in zip(present, column, strict=True)
    ]


def _labels(column: Any, row: int, name: str, positions: dict[str, int]) -> list[int]:
    values = column.to_pylist()
    if None in values:
        raise InputError(
            f"row {row + values.index(None)} has no label in column {name!r}: drop such rows, or"
            " set labelled: false"
        )
    if values and isinstance(values[0], str):
        return [positions.setdefault(value, len(positions)) for value in values]
    labels = [int(value) for value in values]
    huge = next((i for i, label in enumerate(labels) if not -(1 << 63) <= label < 1 << 63), None)
    if huge is not None:
        raise InputError(
            f"row {row + huge} has label {labels[huge]} in column {name!r}, which is no class"
            " number: set `label` to the column that holds the classes, or set labelled: false"
        )
    return labels
