"""Parquet, Arrow and saved data sets through Hugging Face `datasets`: memory-mapped, images left
undecoded.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.class_names import check_names, listed_order, order_classes
from distill.data.converted import arrow_file
from distill.data.fingerprint import fingerprint
from distill.data.label_sets import class_list, same_space
from distill.data.labels import check_labels, index_names
from distill.data.records import NO_SIZES, Source, at, first_line, missing
from distill.data.splits import choose_split
from distill.data.table_files import table_files
from distill.errors import InputError, did_you_mean
from distill.recipe import schema

# Larger labels than this and than the number of rows are identifiers: a class list up to them could
# fill the memory.
_MOST_CLASSES = 100_000


def open_table(
    spec: schema.TableSpec | schema.SavedDatasetSpec, root: Path, key: str = "data.train"
) -> Source:
    """A source over Parquet or Arrow files, or over what `save_to_disk` wrote.

    Parquet is converted once (`converted`); Arrow files are mapped where they lie.

    Raises:
        InputError: no such files, split or column, or a column that holds something else.
    """
    path = at(root, spec.path, f"{key}.path")
    if isinstance(spec, schema.SavedDatasetSpec):
        data, files = _open_saved(path, spec.split, key), []
    else:
        files = table_files(path, spec.kind, spec.split, key)
        data = _open_files(files, spec.kind, key)
    classes = None if spec.classes is None else class_list(spec.classes, root, key)
    return TableSource(data, files, str(path), spec.image_column, spec.label_column, classes, key)


def _open_files(files: list[str], kind: str, key: str) -> Any:
    import datasets
    import pyarrow as pa

    def mapped(file: str) -> Any:
        if kind == "arrow":
            try:
                return datasets.Dataset.from_file(file)
            except pa.ArrowInvalid:
                pass  # Arrow's file format rather than its stream format, which alone is mapped
        return datasets.Dataset.from_file(str(arrow_file(Path(file))))

    file = files[0]
    try:
        parts = []
        for file in files:
            parts.append(mapped(file))
        return datasets.concatenate_datasets(parts)
    except (OSError, ValueError, NotImplementedError, pa.ArrowException) as error:
        if isinstance(error, InputError):
            raise
        reason = first_line(error)
        raise InputError(
            f"{key}.path: cannot open {file} as {kind}: {reason}: repair or remove the file"
        ) from error


def _open_saved(path: Path, split: str | None, key: str) -> Any:
    import datasets

    if not path.exists():
        raise missing(path, key)
    try:
        data = datasets.load_from_disk(str(path))
    # IndexError: an empty data set, which `datasets` saves but does not load.
    except (OSError, ValueError, IndexError) as error:
        raise InputError(
            f"{key}.path: {path} cannot be loaded as what save_to_disk writes ({first_line(error)})"
        ) from error
    if isinstance(data, datasets.DatasetDict):
        return data[choose_split(split, list(data), str(path), key)]
    if split is not None:
        raise InputError(f"{key}.split: {path} is one data set without splits: set split to null")
    return data


class TableSource:
    """An image column and a label column of a `datasets.Dataset`.

    Labels may be a ClassLabel, strings (in the order of `order_classes`) or integers (classes are
    named "0", "1", ...). Given `classes`, names are looked up in it, and integers index it.
    """

    shards = ()
    shard_sizes = NO_SIZES

    def __init__(
        self,
        data: Any,
        files: list[str],
        name: str,
        image_column: str,
        label_column: str,
        classes: tuple[str, ...] | None,
        key: str,
    ) -> None:
        import datasets

        for setting, column in (("image_column", image_column), ("label_column", label_column)):
            if column not in data.column_names:
                have = ", ".join(map(repr, data.column_names))
                raise InputError(
                    f"{key}.{setting}: {name} has no column"
                    f" {column!r}{did_you_mean(column, data.column_names)}: choose one of {have}"
                )
        data = data.with_format(None)
        feature = data.features[image_column]
        if isinstance(feature, datasets.Image):
            data = data.cast_column(image_column, datasets.Image(decode=False))
        elif not _holds_bytes(feature):
            raise InputError(
                f"{key}.image_column: column {image_column!r} of {name} holds {feature}, not image"
                " files: choose the column that does"
            )
        self.labels, self.classes = _labels(
            data, label_column, classes, f"{key}.label_column: column {label_column!r} of {name}"
        )
        self._images = data.select_columns([image_column])
        self._column = image_column
        self._name = name
        self._files = files

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        record = self._images[index][self._column]
        if isinstance(record, bytes):
            return record
        if record is None or (record["bytes"] is None and not record["path"]):
            raise OSError("the row holds no image")
        if record["bytes"] is None:
            return Path(record["path"]).read_bytes()
        content: bytes = record["bytes"]
        return content

    def fingerprint(self) -> str:
        """Of sizes, labels, and contents as far as it is cheap; files may be renamed and rows
        spread over them otherwise.
        """
        return fingerprint(self.labels, b"", self._sizes, self.read)

    def prefetch(self, shards: Sequence[int]) -> None:
        pass

    def _sizes(self, indices: np.ndarray) -> np.ndarray:
        """By the offsets of the Arrow column, which lie apart from the images."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column = self._images.data.column(self._column)
        if pa.types.is_struct(column.type):
            column = pc.struct_field(column, "bytes")
        if len(column) != len(self):  # rows that a saved data set picks by a list of its own
            return np.zeros(len(indices), dtype=np.int64)
        lengths = np.asarray(pc.fill_null(pc.binary_length(column), -1).to_numpy(), dtype=np.int64)
        return np.asarray(lengths[indices])

    def describe(self, index: int) -> str:
        record = self._images[index][self._column]
        inner = f" ({record['path']})" if isinstance(record, dict) and record["path"] else ""
        file, row = self._file_and_row(index)
        return f"{file}, row {row}{inner}"

    def name(self, index: int) -> str:
        record = self._images[index][self._column]
        return os.path.basename(record["path"] or "") if isinstance(record, dict) else ""

    def _file_and_row(self, index: int) -> tuple[str, int]:
        """Which of several Parquet files a row came from, by the row counts in their footers."""
        import pyarrow.parquet as pq

        if len(self._files) == 1:
            return self._files[0], index
        row = index
        for file in self._files:
            if not file.lower().endswith(".parquet"):
                break
            rows = pq.read_metadata(file).num_rows
            if row < rows:
                return file, row
            row -= rows
        return self._name, index


def _holds_bytes(feature: Any) -> bool:
    import datasets

    if isinstance(feature, datasets.Value):
        return feature.dtype in ("binary", "large_binary")
    return isinstance(feature, dict) and {"bytes", "path"} <= set(feature)


def _labels(
    data: Any, column: str, classes: tuple[str, ...] | None, where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """([N] int64 labels, class names) of a column."""
    import datasets
    import pyarrow as pa

    feature = data.features[column]
    values = data.select_columns([column]).with_format("arrow")[:].column(column)
    if values.null_count:
        raise InputError(
            f"{where} has {values.null_count} rows without a label: drop them or choose another"
            " column"
        )
    if pa.types.is_integer(values.type):
        labels = values.to_numpy().astype(np.int64)
        if isinstance(feature, datasets.ClassLabel) and feature.names:
            return _renumbered(labels, tuple(feature.names), classes, where)
        if classes is None:
            if (most := int(labels.max(initial=-1))) >= max(_MOST_CLASSES, len(labels)):
                raise InputError(
                    f"{where} has numbers up to {most:,} in {len(labels):,} rows, which are no"
                    " class numbers: choose the column that has them, or number the classes from"
                    " 0 on"
                )
            classes = tuple(str(i) for i in range(most + 1))
        return labels, classes
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        encoded = values.combine_chunks().dictionary_encode()
        names = tuple(encoded.dictionary.to_pylist())
        check_names(names, where)
        classes = order_classes(names, where) if classes is None else classes
        return index_names(names, classes, where)[encoded.indices.to_numpy()], classes
    raise InputError(f"{where} holds {feature}: labels are integers, names or a ClassLabel")


def _renumbered(
    labels: np.ndarray, names: tuple[str, ...], classes: tuple[str, ...] | None, where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels that count a ClassLabel's names, counted in the class list; without one, in the names'
    own order, numbers by value.
    """
    in_order = listed_order(names, where)
    classes = in_order if classes is None else classes
    if same_space(names, classes):
        return labels, classes
    check_labels(labels, len(names), where)  # in a longer list a wrong label might be another class
    return index_names(names, classes, where)[labels], classes
