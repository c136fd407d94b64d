"""Small tar and Parquet shards, and their listings, for tests."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distill.data.stream.cache import ShardCache
from distill.data.stream.listing import list_shards
from distill.data.stream.opening import open_stream
from distill.data.stream.transport import Transport
from distill.recipe.schema import ShardsSpec, StreamSpec

TRANSPORT = Transport(retries=0, timeout_s=5)


def tar_of(indices: range) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for i in indices:
            for name, content in (
                (f"{i:04d}.jpg", b"image %d" % i),
                (f"{i:04d}.cls", b"%d" % (i % 2)),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def parquet_of(indices: range, names: list[str] | None = None, padding: int = 0) -> bytes:
    table = pa.table(
        {
            "image": [{"bytes": b"image %d" % i, "path": None} for i in indices],
            "label": [i % 2 for i in indices],
        }
    )
    said: dict[str, Any] = {"padding": "x" * padding}
    if names:
        label = {"names": names, "_type": "ClassLabel"}
        said["huggingface"] = json.dumps(
            {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
        )
    buffer = io.BytesIO()
    if not indices:
        table = table.cast(parquet_schema())
    pq.write_table(table.replace_schema_metadata(said), buffer)
    return buffer.getvalue()


def parquet_schema() -> pa.Schema:
    return pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
        ]
    )


def fill(folder: Path, names: str, content: Callable[[range], bytes] = tar_of) -> list[Path]:
    """Files of 1, 2, 3, ... samples."""
    files = [folder / name for name in names.split()]
    for count, file in enumerate(files, 1):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content(range(count)))
    return files


def cache_in(folder: Path) -> ShardCache:
    return ShardCache(folder / "cache", 10**9)


def listed(root: Path, path: object, **fields: Any) -> list[str]:
    """The names of the shards."""
    spec = StreamSpec(kind="stream", path=str(path), **fields)
    return [
        shard.name
        for shard in list_shards(spec, root, "data.train", TRANSPORT, cache_in(root)).shards
    ]


def sizes(root: Path, path: object, cache: str = "cache", **fields: Any) -> list[int]:
    spec = StreamSpec(kind="stream", path=str(path), **{"labelled": False} | fields)
    return open_stream(
        spec, root, "data.train", ShardsSpec(cache=cache, retries=0)
    ).shard_sizes.tolist()
