"""Writes a source as shards: each process makes the shards of its numbers, and the one that finds
all of them finished writes the manifest.

A shard is written under another name, synced, read back and renamed; then a record of its own
states its size and SHA-256. So a kill at any moment costs only the shards being written, and no
process waits for another.
"""

import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from distill.data.records import Source
from distill.data.stream.manifest import (
    MANIFEST_FILE,
    Manifest,
    ShardEntry,
    read_manifest,
    write_manifest,
)
from distill.datatools.container import parquet_schema, parquet_writer, write_tar
from distill.datatools.making import Job, converted, known_shards, make
from distill.datatools.named import OPTION, Named
from distill.datatools.plan import (
    PLAN_FILE,
    Plan,
    ShardOptions,
    agree_on_plan,
    check_same_plan,
    order,
    read_plan,
    shards_of,
    source_fingerprint,
)
from distill.datatools.processes import Rank, in_processes
from distill.datatools.progress import Progress
from distill.datatools.records import Conversion, Stored
from distill.datatools.storage import (
    STATE_FOLDER,
    disk_errors,
    read_record,
    record_file,
    remove_leftovers,
)
from distill.errors import InputError
from distill.files import atomic_write, sha256_of, tmp_name

LABELS_FILE = "labels.npy"
DEFAULT_SHARD_MB = 64.0
_MARKER = "close"
# Images that are read to estimate the size of a shard and to choose the extension.
_LOOKED_AT = 256
# Bytes of a tar besides an image's own: its header and half a block of padding, and the same for a
# label of a few digits.
_TAR_OVERHEAD = 512 + 256 + 1024


def shard(
    named: Named, out: Path, asked: ShardOptions, *, skip: bool, num_workers: int, rank: Rank
) -> Manifest | None:
    """Write this process's part of the shards, and the manifest if it finds all shards finished.

    Returns:
        The manifest; None when other processes have shards to write yet.

    Raises:
        InputError: the folder is not ours or was begun otherwise, an unreadable image without
            `skip`, a full disk.
    """
    source = named.source
    with disk_errors(out):
        _refuse_folder(named, out)
        convert = Conversion(asked.resize, asked.quality or 95)
        plan = _agreed_plan(named, out, asked, convert, skip)
        classes = tuple(source.classes) if asked.labelled else None
        write = write_tar if asked.container == "tar" else parquet_writer(parquet_schema(classes))
        known = known_shards(out, plan)
        job = Job(source, plan, out, convert, write, skip, known)
        mine = rank.share(plan.num_shards)
        remove_leftovers(
            out, {LABELS_FILE, MANIFEST_FILE, PLAN_FILE, _MARKER, *(plan.file(i) for i in mine)}
        )
        began = time.monotonic()
        num_new = 0
        with Progress(
            out.name, sum(len(plan.positions(i)) for i in mine), len(mine), show=rank.rank == 0
        ) as progress:
            for done in in_processes(make, job, mine, num_workers):
                num_new += 0 if done.was_there else done.num_samples
                progress.advance(done.num_samples + len(done.skipped), was_there=done.was_there)
        manifest = _close(job, named.text, classes)
    rate = num_new / (time.monotonic() - began)
    progress.finish(
        _closing_line(job, rank, len(mine), manifest, num_new, rate), manifest is not None
    )
    return manifest


def _closing_line(
    job: Job,
    rank: Rank,
    num_mine: int,
    manifest: Manifest | None,
    num_new: int,
    images_per_s: float,
) -> str:
    speed = (
        f"; {images_per_s:,.0f} images/s" if num_new else "; all of them were there and are whole"
    )
    if manifest is None:
        missing = sum(
            not record_file(job.out, job.plan.file(i)).is_file() for i in range(job.plan.num_shards)
        )
        return (
            f"{job.out}: process {rank.rank} of {rank.world_size} has its {num_mine} shards{speed}."
            f" {missing} of {job.plan.num_shards} are not there yet: the process that writes the"
            f" last one writes {MANIFEST_FILE}; if one has died, start the same command again"
        )
    size = sum(each.size for each in manifest.shards)
    shards = "shard" if len(manifest.shards) == 1 else "shards"
    skipped = f", {manifest.num_skipped:,} unreadable left out" if manifest.num_skipped else ""
    return (
        f"{job.out}: {manifest.num_samples:,} images in {len(manifest.shards):,}"
        f" {manifest.container} {shards}, {size / 1e6:,.1f} MB{skipped}{speed}"
    )


# ---- before the first shard ----------------------------------------------------------------------


def _refuse_folder(named: Named, out: Path) -> None:
    """Raise InputError for a folder that we must not write into."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder, which is made if it is not there")
    path = named.spec.path
    if path is not None and "://" not in path and (named.root / path).is_dir():
        inside = (named.root / path).resolve()
        if out.resolve() == inside or inside in out.resolve().parents:
            raise InputError(
                f"{out}: lies in {named.root / path}, which is read: give a folder outside of it"
            )
    if (
        out.is_dir()
        and {each.name for each in out.iterdir()} - {STATE_FOLDER}
        and read_plan(out) is None
    ):
        raise InputError(
            f"{out}: holds files that distill data shard did not write: give a folder that is"
            " empty, or not there yet"
        )


def _agreed_plan(
    named: Named, out: Path, asked: ShardOptions, convert: Conversion, skip: bool
) -> Plan:
    """The plan of the folder, made by this process or before."""
    fingerprint = source_fingerprint(named.source, named.spec)
    plan = read_plan(out)
    if plan is None:
        plan = agree_on_plan(out, _planned(named.source, fingerprint, asked, convert, skip))
    check_same_plan(out, plan, asked, fingerprint)
    return plan


def _planned(
    source: Source, fingerprint: str, asked: ShardOptions, convert: Conversion, skip: bool
) -> Plan:
    """Choose the number of shards and the extension of all images by reading some images."""
    stored: list[Stored] = []
    num = 0
    for indices in _looks(source, asked.seed):
        looked_at = [converted(source, index, convert, skip) for index in indices]
        stored += [each for each in looked_at if each is not None]
        num += len(indices)
        if stored or num >= _LOOKED_AT:
            break
    if not stored:
        raise InputError(
            f"{OPTION}: none of {num} images could be read: see that they are images, and whole"
        )
    if asked.samples_per_shard is not None:
        num_shards = math.ceil(len(source) / asked.samples_per_shard)
    else:
        overhead = _TAR_OVERHEAD if asked.container == "tar" else 0
        per_sample = sum(len(each.content) for each in stored) / len(stored) + overhead
        num_shards = math.ceil(
            len(source) * per_sample / ((asked.shard_mb or DEFAULT_SHARD_MB) * 1e6)
        )
    ((extension, _),) = Counter(each.extension for each in stored).most_common(1)
    return Plan(asked, fingerprint, len(source), min(num_shards, len(source)), extension)


def _looks(source: Source, seed: int | None) -> Iterator[list[int]]:
    """Which images are read to estimate sizes, and which next if none of those can be read. Of a
    source with shards those of one shard at a time, since each image elsewhere would fetch another
    shard.
    """
    if not source.shards:
        yield order(source, _spread(0, len(source)), seed).tolist()
        return
    ends = np.cumsum(source.shard_sizes)
    for shard in shards_of(source, order(source, np.arange(min(len(source), _LOOKED_AT)), seed)):
        yield _spread(
            int(ends[shard] - source.shard_sizes[shard]), int(source.shard_sizes[shard])
        ).tolist()


def _spread(start: int, size: int) -> np.ndarray:
    """[n] int64: at most 256 numbers of start ... start + size - 1, evenly spread."""
    return start + np.linspace(0, size - 1, min(size, _LOOKED_AT)).astype(np.int64)


# ---- after the last shard ------------------------------------------------------------------------


def _close(job: Job, made_from: str, classes: tuple[str, ...] | None) -> Manifest | None:
    """Write labels and manifest if every shard is finished. Two processes that both find it so
    write the same.
    """
    # On NFS a folder's listing may be stale; a change by this process refreshes it.
    marker = job.out / STATE_FOLDER / tmp_name(_MARKER)
    try:
        marker.touch()
        marker.unlink()
        os.listdir(marker.parent)
    except FileNotFoundError:  # nothing was left to do, or another process has just closed
        return _closed_by_another(job)
    done = []
    for number in range(job.plan.num_shards):
        each = read_record(job.out, job.plan.file(number)) or job.known.get(number)
        if each is None:
            return _closed_by_another(job)
        done.append((number, each))
    shards = tuple(
        ShardEntry(job.plan.file(i), each.num_samples, each.size, each.sha256)
        for i, each in done
        if each.num_samples
    )
    if not shards:
        raise InputError(
            f"{OPTION}: none of its {job.plan.num_samples} images could be read: see that they are"
            " images, and whole"
        )
    num_skipped = job.plan.num_samples - sum(each.num_samples for each in shards)
    labels_sha256 = None
    if classes is not None:
        labels = np.array(
            [label for _, each in done for label in each.labels or ()], dtype=np.int32
        )
        labels_sha256 = _write_labels(job.out, labels)
    manifest = Manifest(
        container=job.plan.asked.container,
        classes=classes,
        shards=shards,
        labels_file=None if classes is None else LABELS_FILE,
        labels_sha256=labels_sha256,
        resize=job.plan.asked.resize,
        made_from=made_from,
        num_skipped=num_skipped,
        plan=asdict(job.plan),
    )
    write_manifest(job.out, manifest)
    _remove_state(job)
    return manifest


def _remove_state(job: Job) -> None:
    """Remove the records that the manifest replaces; the folder stays while another process writes
    into it.
    """
    for number in range(job.plan.num_shards):
        record_file(job.out, job.plan.file(number)).unlink(missing_ok=True)
    (job.out / STATE_FOLDER / PLAN_FILE).unlink(missing_ok=True)
    with suppress(OSError):
        (job.out / STATE_FOLDER).rmdir()


def _closed_by_another(job: Job) -> Manifest | None:
    """The manifest of a process that found all shards finished just before this one did."""
    path = job.out / MANIFEST_FILE
    return read_manifest(path.read_bytes(), str(path)) if path.is_file() else None


def _write_labels(out: Path, labels: np.ndarray) -> str:
    path = out / LABELS_FILE
    atomic_write(path, lambda file: np.save(file, labels))
    return sha256_of(path)
