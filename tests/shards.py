"""Tar shards in webdataset's form, made of images at hand."""

import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from distill.data.decode import read_image
from distill.data.records import Source
from distill.data.stream.manifest import Manifest, ShardEntry, write_manifest


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_tars(
    folder: Path,
    records: Sequence[bytes],
    samples_per_shard: int,
    labels: Sequence[int] | None = None,
) -> list[Path]:
    """`folder/shard-00000.tar` ...: members 00000000.png and, with labels, 00000000.cls."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, first in enumerate(range(0, len(records), samples_per_shard)):
        paths.append(folder / f"shard-{number:05d}.tar")
        with tarfile.open(paths[-1], "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in range(first, min(first + samples_per_shard, len(records))):
                add(tar, f"{index:08d}.png", records[index])
                if labels is not None:
                    add(tar, f"{index:08d}.cls", str(labels[index]).encode())
    return paths


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """One member, with nothing of the clock in it."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def images_of(source: Source, indices: Sequence[int]) -> list[bytes]:
    """PNG files of some records."""
    return [png(read_image(source, index).convert("L")) for index in indices]


def describe(folder: Path, classes: Sequence[str] | None = None) -> None:
    """`folder/manifest.json` over the tar shards that `write_tars` left in a folder."""
    entries = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            num_samples = sum(name.endswith(".png") for name in tar.getnames())
        content = path.read_bytes()
        entries.append(
            ShardEntry(path.name, num_samples, len(content), hashlib.sha256(content).hexdigest())
        )
    names = None if classes is None else tuple(classes)
    write_manifest(
        folder, Manifest("tar", names, tuple(entries), None, None, None, "images at hand")
    )
