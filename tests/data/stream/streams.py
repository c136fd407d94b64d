"""Small streams of 0 to 20 samples a shard, for tests."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.data.stream.manifest import Manifest, ShardEntry, write_manifest
from distill.data.stream.source import StreamSource

SIZES = (5, 1, 7, 4)
TOTAL = sum(SIZES)
CLASSES = ("ox", "yak", "emu")
# The fixture `opened`: a path and fields of the recipe -> the source.
OpenStream = Callable[..., StreamSource]

IMAGES = [b"image %d " % i + os.urandom(400 + 90 * i) for i in range(TOTAL)]
LABELS = [i * 5 % 3 for i in range(TOTAL)]


def write_tar(
    file: Path, indices: range, label: Callable[[int], bytes] = lambda i: b"%d" % LABELS[i]
) -> None:
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as archive:
        for i in indices:
            for name, content in ((f"{i:04d}.jpg", IMAGES[i]), (f"{i:04d}.cls", label(i))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def write_parquet(file: Path, indices: range) -> None:
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(CLASSES), "_type": "ClassLabel"},
    }
    table = pa.table(
        {
            "image": [{"bytes": IMAGES[i], "path": None} for i in indices],
            "label": [LABELS[i] for i in indices],
        }
    )
    said = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(said), file, row_group_size=3)


def write_shards(
    folder: Path, kind: str, sizes: tuple[int, ...] = SIZES, manifest: str = ""
) -> None:
    """`manifest`: "" writes none, "labels" one with labels.npy, "plain" one whose labels are in the
    shards.
    """
    folder.mkdir(exist_ok=True)
    start, entries = 0, []
    for number, size in enumerate(sizes):
        file = folder / f"train-{number:04d}.{kind}"
        (write_tar if kind == "tar" else write_parquet)(file, range(start, start + size))
        start += size
        content = file.read_bytes()
        entries.append(
            ShardEntry(file.name, size, len(content), hashlib.sha256(content).hexdigest())
        )
    if manifest:
        np.save(folder / "labels.npy", np.array(LABELS, np.int32))
        said = hashlib.sha256((folder / "labels.npy").read_bytes()).hexdigest()
        labels = ("labels.npy", said) if manifest == "labels" else (None, None)
        write_manifest(folder, Manifest(kind, CLASSES, tuple(entries), *labels, None, "a test"))


def assert_all_there(source: StreamSource, labelled: bool = True) -> None:
    assert source.shard_sizes.tolist() == list(SIZES)
    assert len(source) == TOTAL
    order = np.random.default_rng(0).permutation(TOTAL)
    assert [source.read(int(i)) for i in order] == [IMAGES[i] for i in order]
    labels = source.labels[order]
    assert labels.dtype == np.int64
    assert labels.tolist() == ([LABELS[i] for i in order] if labelled else [-1] * TOTAL)
    assert source.classes == (CLASSES if labelled else ())
    for index in (-1, TOTAL):
        with pytest.raises(IndexError):
            source.read(index)
