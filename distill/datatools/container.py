"""Writes and reads a shard's file, tar or Parquet; the same samples make the same bytes."""

import io
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

Container = Literal["tar", "parquet"]

# Rows of Parquet that are written and read at once: about 10 MB of photographs, as `datasets` does
# for images.
_ROWS = 100


class Sample(NamedTuple):
    """`key`: unique over all shards, without dots. `label`: None if there is none."""

    key: str
    extension: str
    content: bytes
    label: int | None


class Summary(NamedTuple):
    """What is compared after writing a sample: its file name, a CRC-32 of its bytes, and its
    label.
    """

    name: str
    crc: int
    label: int | None


Writer = Callable[[BinaryIO, Iterable[Sample]], None]


def summary_of(sample: Sample) -> Summary:
    return Summary(f"{sample.key}.{sample.extension}", zlib.crc32(sample.content), sample.label)


def write_tar(file: BinaryIO, samples: Iterable[Sample]) -> None:
    """Write KEY.jpg and, with labels, KEY.cls after it: webdataset's form. Owner, time and mode are
    the same for all.
    """
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for sample in samples:
            _add(archive, f"{sample.key}.{sample.extension}", sample.content)
            if sample.label is not None:
                _add(archive, f"{sample.key}.cls", str(sample.label).encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # mtime 0, uid and gid 0, mode 644
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def read_tar(path: Path) -> Iterator[Summary]:
    """Raises tarfile.TarError or OSError if the tar is not complete."""
    waiting: Summary | None = None
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            content = archive.extractfile(member).read()  # type: ignore[union-attr]
            if waiting is not None and member.name == waiting.name.rpartition(".")[0] + ".cls":
                yield waiting._replace(label=int(content))
                waiting = None
                continue
            if waiting is not None:
                yield waiting
            waiting = Summary(member.name, zlib.crc32(content), None)
    if waiting is not None:
        yield waiting


def parquet_schema(classes: tuple[str, ...] | None) -> Any:
    """Columns image and, with labels, label, with what `datasets` needs to know them as Image and
    ClassLabel.
    """
    import datasets

    features = {"image": datasets.Image()}
    if classes is not None:
        features["label"] = datasets.ClassLabel(names=list(classes))
    return datasets.Features(features).arrow_schema


def parquet_writer(schema: Any) -> Writer:
    """A writer of tables of `schema`."""

    def write(file: BinaryIO, samples: Iterable[Sample]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        def flush(rows: list[Sample]) -> None:
            images = [{"bytes": row.content, "path": f"{row.key}.{row.extension}"} for row in rows]
            columns = {"image": images, "label": [row.label for row in rows]}
            writer.write_table(
                pa.table({name: columns[name] for name in schema.names}, schema=schema)
            )

        # Images do not compress, and dictionaries of them would be held in memory.
        with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
            rows: list[Sample] = []
            for sample in samples:
                rows.append(sample)
                if len(rows) == _ROWS:
                    flush(rows)
                    rows = []
            if rows:
                flush(rows)

    return write


def read_parquet(path: Path) -> Iterator[Summary]:
    """Raises pyarrow.ArrowException or OSError if the Parquet file is not complete."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS):
            for row in batch.to_pylist():
                image = row["image"]
                yield Summary(image["path"], zlib.crc32(image["bytes"]), row.get("label"))


READERS: dict[Container, Callable[[Path], Iterator[Summary]]] = {
    "tar": read_tar,
    "parquet": read_parquet,
}
