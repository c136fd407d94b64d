"""Parquet shards: footers, columns, labels, and records as a local file."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_files import open_local

from distill.data.stream.local import (
    DamagedShardError,
    LocalShard,
    NoImageError,
)
from distill.data.stream.parquet import read_footer, tail_size, unpack_parquet
from distill.errors import InputError

IMAGES = [os.urandom(50 + i) for i in range(150)]


def write_table(
    path: Path, images: pa.Array, labels: pa.Array | list[int | None], **options: str
) -> Path:
    pq.write_table(pa.table({"image": images, "label": labels}), path, row_group_size=40, **options)
    return path


def unpack(path: Path, **fields: Any) -> LocalShard:
    with pa.OSFile(str(path)) as source:
        count = unpack_parquet(source, path.with_suffix(".local"), **fields)
    shard = open_local(path.with_suffix(".local"))
    assert len(shard) == count
    return shard


STORED = {
    "struct": pa.array([{"bytes": image, "path": f"{i}.jpg"} for i, image in enumerate(IMAGES)]),
    "bytes alone": pa.array([{"bytes": image} for image in IMAGES]),
    "binary": pa.array(IMAGES, pa.binary()),
    "large binary": pa.array(IMAGES, pa.large_binary()),
}


@pytest.mark.parametrize("stored", STORED)
def test_records_of_parquet(tmp_path: Path, stored: str) -> None:
    shard = unpack(
        write_table(
            tmp_path / "t.parquet",
            STORED[stored],
            pa.array([i % 7 for i in range(150)], pa.int32()),
        )
    )
    assert [shard.read(i) for i in range(150)] == IMAGES
    assert [shard.label(i) for i in range(150)] == [i % 7 for i in range(150)]
    assert shard.names is None


def test_names_in_parquet_and_columns_of_other_names(tmp_path: Path) -> None:
    names = [("yak", "ox", "emu")[i % 3] for i in range(150)]
    table = pa.table({"jpg": STORED["binary"], "animal": names, "more": names})
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())):
        cast = table.set_column(1, "animal", table["animal"].cast(kind))
        pq.write_table(cast, tmp_path / "t.parquet")
        shard = unpack(tmp_path / "t.parquet", image="jpg", label="animal")
        assert [shard.names[shard.label(i)] for i in range(150)] == names
    unlabelled = unpack(tmp_path / "t.parquet", image="jpg", labelled=False)
    assert unlabelled.read(149) == IMAGES[149]
    assert unlabelled.label(149) == -1


def test_empty_cells_hold_no_image(tmp_path: Path) -> None:
    images = pa.array(
        [
            {"bytes": b"x", "path": None},
            None,
            {"bytes": None, "path": "a.jpg"},
            {"bytes": b"y", "path": None},
        ]
    )
    shard = unpack(write_table(tmp_path / "t.parquet", images, [0, 1, 2, 3]))
    assert (shard.read(0), shard.read(3)) == (b"x", b"y")
    for row in (1, 2):
        with pytest.raises(NoImageError):
            shard.read(row)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"image": "imag"},
            r"no column 'imag' \(did you mean 'image'\?\): set `image` to one of 'image', 'label'",
        ),
        ({"label": "cls"}, "no column 'cls': set `label` to one of .*labelled: false"),
        ({"image": "label"}, "column 'label' holds int64, not image files"),
        ({"label": "image"}, "column 'image' holds binary: labels are integers"),
    ],
)
def test_columns_that_are_refused(tmp_path: Path, fields: dict[str, str], message: str) -> None:
    file = write_table(tmp_path / "t.parquet", STORED["binary"], list(range(150)))
    with pytest.raises(InputError, match=message):
        unpack(file, **fields)
    content = file.read_bytes()
    with pytest.raises(InputError, match=message):
        read_footer(
            content[-tail_size(content[-8:]) :],
            **{"image": None, "label": None, "labelled": True} | fields,
        )


def test_a_row_without_a_label(tmp_path: Path) -> None:
    file = write_table(tmp_path / "t.parquet", STORED["binary"], [*range(100), None, *range(49)])
    with pytest.raises(InputError, match="row 100 has no label in column 'label'"):
        unpack(file)
    assert unpack(file, labelled=False).read(100) == IMAGES[100]


def test_damaged_parquet(tmp_path: Path) -> None:
    file = write_table(
        tmp_path / "t.parquet", STORED["binary"], list(range(150)), compression="none"
    )
    content = file.read_bytes()
    for spoilt in (
        content[:2000],
        content[:-1],
        b"",
        b"PAR1",
        b"<html>" * 99,
        content[:-20] + b"x" * 12 + content[-8:],
    ):
        file.write_bytes(spoilt)
        with pytest.raises(DamagedShardError, match="cannot be read past row 0"):
            unpack(file)
    for tail in (b"", b"PAR1", content[-9:-1]):
        with pytest.raises(DamagedShardError, match="does not end as a Parquet file"):
            tail_size(tail)
    with pytest.raises(DamagedShardError, match="footer is damaged"):
        read_footer(b"x" * 100 + content[-8:], image=None, label=None, labelled=True)


def test_what_a_footer_says(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["ox", "yak"])}
    )
    rows = {"image": [{"bytes": image, "path": None} for image in IMAGES], "label": [0, 1] * 75}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "t.parquet")
    content = (tmp_path / "t.parquet").read_bytes()
    size = tail_size(content[-8:])
    assert size < len(content) / 2
    footer = read_footer(content[-size:], image=None, label=None, labelled=True)
    assert (footer.num_rows, footer.classes) == (150, ("ox", "yak"))
    plain = write_table(tmp_path / "p.parquet", STORED["binary"], [0] * 150).read_bytes()
    footer = read_footer(plain[-tail_size(plain[-8:]) :], image=None, label=None, labelled=True)
    assert (footer.num_rows, footer.classes) == (150, None)


def test_memory_does_not_grow_with_a_parquet_file(tmp_path: Path) -> None:
    """Arrow's own count of its bytes: eighteen row groups of 4 MB take what six take."""
    peaks = []
    for groups in (6, 18):
        file = tmp_path / f"{groups}.parquet"
        columns = pa.schema([("image", pa.binary()), ("label", pa.int64())])
        with pq.ParquetWriter(file, columns, use_dictionary=False) as writer:
            for _ in range(groups):
                writer.write(
                    pa.table([[os.urandom(100_000) for _ in range(40)], [0] * 40], schema=columns)
                )
        peaks.append(_peak_of(file))
    assert 4e6 < peaks[0] < 20e6
    assert peaks[1] < 1.1 * peaks[0]


def _peak_of(file: Path) -> int:
    usual = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(counting)
    try:
        unpack(file)
    finally:
        pa.set_memory_pool(usual)
    return counting.max_memory()
