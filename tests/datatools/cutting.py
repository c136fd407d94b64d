"""`distill data shard` without its command line, and what it leaves in a folder."""

import contextlib
import hashlib
import multiprocessing
import os
import tarfile
from pathlib import Path
from typing import Any

from distill.data.stream.manifest import Manifest
from distill.datatools.named import open_named
from distill.datatools.plan import ShardOptions
from distill.datatools.processes import Rank
from distill.datatools.shard import shard

ALONE = Rank(0, 1)
FORK = multiprocessing.get_context("fork")


def cut(
    source: Path | str,
    out: Path,
    *,
    rank: Rank = ALONE,
    workers: int = 0,
    skip: bool = False,
    **asked: Any,
) -> Manifest | None:
    """`distill data shard` without its command line; 7 samples a shard."""
    labelled = asked.pop("labelled", True)
    options = {
        "container": "tar",
        "seed": 0,
        "resize": None,
        "quality": None,
        "samples_per_shard": 7,
        "shard_mb": None,
    }
    named = open_named(str(source), labelled=labelled)
    return shard(
        named,
        out,
        ShardOptions(**(options | asked), labelled=labelled),
        skip=skip,
        num_workers=workers,
        rank=rank,
    )


def files(folder: Path) -> dict[str, str]:
    """SHA-256 by name, of all that is there."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def inodes(folder: Path) -> dict[str, int]:
    """Which file each shard is: another number is another file."""
    with contextlib.suppress(FileNotFoundError):
        return {
            entry.name: entry.inode()
            for entry in os.scandir(folder)
            if entry.name.startswith("shard-")
        }
    return {}


def tar_samples(folder: Path) -> list[tuple[str, str, bytes, int | None]]:
    """(key, extension, content, label) of every sample, by tarfile alone."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            parts: dict[str, dict[str, bytes]] = {}
            for member in archive:
                key, _, extension = member.name.partition(".")
                parts.setdefault(key, {})[extension] = archive.extractfile(member).read()
        for key, part in parts.items():
            label = part.pop("cls", None)
            ((extension, content),) = part.items()
            found.append((key, extension, content, None if label is None else int(label)))
    return found
