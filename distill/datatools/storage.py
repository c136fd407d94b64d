"""The files of a folder of shards: records of finished shards, leftovers of killed writers, and
errors of the disk.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from distill.datatools.named import command_words
from distill.datatools.processes import runs
from distill.errors import InputError
from distill.files import atomic_write

STATE_FOLDER = ".distill-shard"
# After this long without a write, a file of another machine's process counts as a leftover.
_GRACE_S = 3600


@dataclass(frozen=True)
class FinishedShard:
    """A finished shard. With `num_samples` 0 none of its images could be read, and there is no
    file. `skipped`: indices into the source.
    """

    num_samples: int
    size: int
    sha256: str
    skipped: tuple[int, ...]
    labels: tuple[int, ...] | None
    was_there: bool = False


def record_file(out: Path, name: str) -> Path:
    """The file that records that the shard `name` is finished."""
    return out / STATE_FOLDER / f"{name}.json"


def write_record(out: Path, name: str, done: FinishedShard) -> None:
    """Record that a shard is finished."""
    text = json.dumps(asdict(done))
    record_file(out, name).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(record_file(out, name), lambda file: file.write(text.encode()))


def read_record(out: Path, name: str) -> FinishedShard | None:
    """The record of a shard; None if there is none that can be read, so that the shard is made
    again.
    """
    try:
        record = json.loads(record_file(out, name).read_text(encoding="utf-8"))
        labels = record["labels"]
        return FinishedShard(
            **(
                record
                | {
                    "skipped": tuple(record["skipped"]),
                    "labels": None if labels is None else tuple(labels),
                }
            )
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_leftovers(out: Path, names: AbstractSet[str]) -> None:
    """Remove what killed writers of the files `names` left; files of running writers stay."""
    for path in (*out.glob(".tmp-*"), *(out / STATE_FOLDER).glob(".tmp-*")):
        name, _, writer = path.name.removeprefix(".tmp-").partition("--")
        host, _, pid = writer.rpartition("-")
        if names.isdisjoint((name, name.removesuffix(".json"))) or not pid.isdigit():
            continue
        with suppress(OSError):
            here = host == os.uname().nodename
            if not runs(int(pid)) if here else time.time() - path.stat().st_mtime > _GRACE_S:
                path.unlink()


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turn errors of the disk into an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(command_words(str(error))) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            where = next(parent for parent in (out, *out.resolve().parents) if parent.is_dir())
            free = shutil.disk_usage(where).free / 1e6
            raise InputError(
                f"{out}: no space left to write there ({free:,.0f} MB free). What is finished"
                " stays: free some space, and the same command continues"
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise InputError(
                f"{out}: cannot be written: {error.strerror}; give a folder that can"
            ) from error
        raise
