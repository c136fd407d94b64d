"""Makes one shard: written, read back, and renamed into place, unless it is complete already."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from distill.data.records import Source, UnreadableShardError, first_line
from distill.data.stream.manifest import MANIFEST_FILE, read_manifest
from distill.datatools.container import READERS, Sample, Summary, Writer, summary_of
from distill.datatools.named import OPTION
from distill.datatools.plan import Plan, order, shards_of
from distill.datatools.records import Conversion, Stored
from distill.datatools.storage import FinishedShard, disk_errors, read_record, write_record
from distill.errors import InputError
from distill.files import atomic_write, sha256_of

# So many unreadable images in a row mean a lost disk rather than bad luck.
_MAX_UNREADABLE = 100


@dataclass(frozen=True)
class Job:
    """All that a process needs to make any of the shards. `known`: what the manifest of a finished
    set records of them.
    """

    source: Source
    plan: Plan
    out: Path
    convert: Conversion
    write: Writer
    skip: bool
    known: dict[int, FinishedShard]


def make(job: Job, number: int) -> FinishedShard:
    """Make a shard, or find it complete.

    Raises:
        InputError: an unreadable image that is not to be left out, a full disk, a finished set that
            cannot be made again.
    """
    with disk_errors(job.out):
        there = _found(job, number)
        if there is not None:
            return there
        done = _written(job, number)
        before = job.known.get(number)
        if before is not None and before.sha256 != done.sha256:
            raise InputError(
                f"{job.out / job.plan.file(number)}: was damaged, and written again it differs from"
                f" what {MANIFEST_FILE} says (another version of Pillow or pyarrow, or SOURCE has"
                f" changed): remove the folder {job.out}, and write it again"
            )
        write_record(job.out, job.plan.file(number), done)
        return done


def _found(job: Job, number: int) -> FinishedShard | None:
    """The record of a shard that is finished and undamaged, or None."""
    name = job.plan.file(number)
    done = job.known.get(number) or read_record(job.out, name)
    if done is None:  # another process may have written the manifest meanwhile
        done = known_shards(job.out, job.plan).get(number)
    if done is None:
        return None
    if done.num_samples:
        path = job.out / name
        if not path.is_file() or path.stat().st_size != done.size or sha256_of(path) != done.sha256:
            return None
    return FinishedShard(**(asdict(done) | {"was_there": True}))


def known_shards(out: Path, plan: Plan) -> dict[int, FinishedShard]:
    """number -> shard, from the manifest of a finished set; empty without one."""
    try:
        content = (out / MANIFEST_FILE).read_bytes()
        manifest = read_manifest(content, str(out / MANIFEST_FILE))
        labels = None if manifest.labels_file is None else np.load(out / manifest.labels_file)
    # Not there, or damaged: made again, from the records of finished shards if there are any.
    except (OSError, ValueError):
        return {}
    numbers = {plan.file(i): i for i in range(plan.num_shards)}
    if not {entry.file for entry in manifest.shards} <= numbers.keys():
        return {}
    known, start = {}, 0
    for entry in manifest.shards:
        part = None if labels is None else tuple(labels[start : start + entry.num_samples].tolist())
        start += entry.num_samples
        known[numbers[entry.file]] = FinishedShard(
            entry.num_samples, entry.size, entry.sha256, (), part
        )
    return known


def _written(job: Job, number: int) -> FinishedShard:
    path = job.out / job.plan.file(number)
    skipped: list[int] = []
    summaries: list[Summary] = []
    sums: list[tuple[int, str]] = []

    def write(file: BinaryIO) -> None:
        job.write(file, _noted(_samples(job, number, skipped), summaries))

    def read_back(tmp: Path) -> bool:
        if summaries and list(READERS[job.plan.asked.container](tmp)) != summaries:
            raise InputError(
                f"{path}: what was written is not what is read back: the disk or its file system"
                " loses data"
            )
        sums.append((tmp.stat().st_size, sha256_of(tmp)) if summaries else (0, ""))
        return bool(summaries)

    atomic_write(path, write, read_back)
    ((size, sha256),) = sums
    labels = tuple(int(each.label) for each in summaries if each.label is not None)
    return FinishedShard(
        len(summaries), size, sha256, tuple(skipped), labels if job.plan.asked.labelled else None
    )


def _noted(samples: Iterator[Sample], summaries: list[Summary]) -> Iterator[Sample]:
    for sample in samples:
        summaries.append(summary_of(sample))
        yield sample


def _samples(job: Job, number: int, skipped: list[int]) -> Iterator[Sample]:
    """The samples of a shard; those that cannot be read go into `skipped`."""
    source, plan = job.source, job.plan
    indices = order(source, plan.positions(number), plan.asked.seed)
    if source.shards:
        source.prefetch(shards_of(source, indices))
    width = max(8, len(str(plan.num_samples - 1)))
    in_a_row = 0
    for index in indices.tolist():
        stored = converted(source, index, job.convert, job.skip)
        if stored is None:
            skipped.append(index)
            in_a_row += 1
            if in_a_row == _MAX_UNREADABLE:
                raise InputError(
                    f"{OPTION}: {in_a_row} images in a row cannot be read, the last of them"
                    f" {source.describe(index)}: is the disk there? The same command continues when"
                    " it is"
                )
            continue
        in_a_row = 0
        label = int(source.labels[np.array([index])][0]) if plan.asked.labelled else None
        yield Sample(f"{index:0{width}d}", plan.extension, stored.content, label)


def converted(source: Source, index: int, convert: Conversion, skip: bool) -> Stored | None:
    """A record as it is to be stored; None for an unreadable one, where these are left out.

    Raises:
        InputError: it is unreadable, or a whole shard of the source cannot be had, which is no
            image's fault.
    """
    try:
        return convert(source.read(index))
    except InputError:
        raise
    except UnreadableShardError as error:
        raise InputError(f"{error}: the same command continues when it can be read") from error
    except Exception as error:  # decoders raise whatever a broken file drives them into
        if skip:
            return None
        raise InputError(
            f"{source.describe(index)}: unreadable image ({first_line(error)}): fix or remove it,"
            " or give --unreadable skip"
        ) from error
