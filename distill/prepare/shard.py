"""A source into shards: any number of processes take shards by number, and whichever finds the last one written closes the set.

A shard is written beside its place, synced, read back and renamed; then a file of its own says that it is there, with size and
SHA-256. So a kill at any moment costs the shards in flight, and no process waits for another.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from distill.data.guess import in_options
from distill.data.records import Source, UnreadableShard, first_line
from distill.data.stream.manifest import MANIFEST_FILE, Manifest, ShardEntry, read_manifest, write_manifest
from distill.errors import InputError
from distill.prepare.container import (
    READERS,
    Check,
    Sample,
    Writer,
    check_of,
    parquet_schema,
    parquet_writer,
    write_tar,
)
from distill.prepare.named import OPTION, Named, Sharded
from distill.prepare.plan import (
    STATE_FOLDER,
    Asked,
    Plan,
    fingerprint,
    keep_plan,
    order,
    read_plan,
    refuse_another,
    shards_of,
)
from distill.prepare.processes import Rank, in_processes
from distill.prepare.progress import Progress
from distill.prepare.records import Conversion, Stored

LABELS_FILE = "labels.npy"
DEFAULT_SHARD_MB = 64.0
# Images that are looked at for the size of a shard and the names in it.
_LOOKED_AT = 256
# Bytes of a tar beside an image's own: its header and half a block of padding, and the same for a label of a few digits.
_TAR_OVERHEAD = 512 + 256 + 1024
# So many unreadable images in a row are a lost disk rather than bad luck.
_MAX_UNREADABLE = 100


@dataclass(frozen=True)
class Done:
    """A shard that is there. `num_samples` 0: nothing of it could be read, and it has no file. `skipped`: indices into the source."""

    num_samples: int
    size: int
    sha256: str
    skipped: tuple[int, ...]
    labels: tuple[int, ...] | None
    was_there: bool = False


@dataclass(frozen=True)
class Job:
    """All that a process needs to make any of the shards."""

    source: Source
    plan: Plan
    out: Path
    convert: Conversion
    write: Writer
    skip: bool
    known: dict[int, Done]  # what the manifest of a finished set says

    @property
    def state(self) -> Path:
        return self.out / STATE_FOLDER


def shard(named: Named, out: Path, asked: Asked, *, skip: bool, num_workers: int, rank: Rank) -> Manifest | None:
    """Write this process's part of the shards, and the manifest if it is the one that finds them whole.

    Returns:
        The manifest; None when other processes have shards to write yet.

    Raises:
        InputError: the folder is not ours or was begun otherwise, an unreadable image without `skip`, no room on the disk.
    """
    source = named.source
    with _explained(out):
        _refuse_folder(named, out)
        convert = Conversion(asked.resize, asked.quality or 95)
        plan = _agreed_plan(source, out, asked, convert, skip)
        classes = tuple(source.classes) if asked.labelled else None
        write = write_tar if asked.container == "tar" else parquet_writer(parquet_schema(classes))
        known = _known(out, plan)
        job = Job(source, plan, out, convert, write, skip, known)
        mine = rank.share(plan.num_shards)
        _remove_leftovers(job, mine)
        began = time.monotonic()
        num_new = 0
        with Progress(out.name, sum(len(plan.positions(i)) for i in mine), len(mine), show=rank.rank == 0) as progress:
            for done in in_processes(_make, job, mine, num_workers):
                num_new += 0 if done.was_there else done.num_samples
                progress.advance(done.num_samples + len(done.skipped), was_there=done.was_there)
        manifest = _close(job, named.text, classes)
    rate = num_new / (time.monotonic() - began)
    progress.finish(_closing_line(job, rank, len(mine), manifest, num_new, rate), manifest is not None)
    return manifest


def _closing_line(
    job: Job, rank: Rank, num_mine: int, manifest: Manifest | None, num_new: int, images_per_s: float
) -> str:
    speed = f"; {images_per_s:,.0f} images/s" if num_new else "; all of them were there and are whole"
    if manifest is None:
        missing = sum(not _state_file(job, i).is_file() for i in range(job.plan.num_shards))
        return (
            f"{job.out}: process {rank.rank} of {rank.world_size} has its {num_mine} shards{speed}. {missing} of {job.plan.num_shards} are "
            f"not there yet: the process that writes the last one writes {MANIFEST_FILE}; if one has died, start the same command again"
        )
    size = sum(each.size for each in manifest.shards)
    skipped = f", {manifest.num_skipped:,} unreadable left out" if manifest.num_skipped else ""
    return (
        f"{job.out}: {manifest.num_samples:,} images in {len(manifest.shards):,} {manifest.container} shards, "
        f"{size / 1e6:,.1f} MB{skipped}{speed}"
    )


# ---- before the first shard ------------------------------------------------------------------------------------------


def _refuse_folder(named: Named, out: Path) -> None:
    """Raises InputError for a folder that is not ours to write into."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder, which is made if it is not there")
    path = named.spec.path
    if path is not None and "://" not in path and (named.root / path).is_dir():
        inside = (named.root / path).resolve()
        if out.resolve() == inside or inside in out.resolve().parents:
            raise InputError(f"{out}: lies in {named.root / path}, which is read: give a folder outside of it")
    if out.is_dir() and {each.name for each in out.iterdir()} - {STATE_FOLDER} and read_plan(out) is None:
        raise InputError(
            f"{out}: holds files that distill data shard did not write: give a folder that is empty, or not there yet"
        )


def _agreed_plan(source: Source, out: Path, asked: Asked, convert: Conversion, skip: bool) -> Plan:
    """The folder's plan, made now or before by this command or another of its processes."""
    identity = fingerprint(source)
    plan = read_plan(out)
    if plan is None:
        plan = keep_plan(out, _planned(source, identity, asked, convert, skip))
    refuse_another(out, plan, asked, identity)
    return plan


def _planned(source: Source, identity: str, asked: Asked, convert: Conversion, skip: bool) -> Plan:
    """How many shards, and by which name their images go, from a look at some of them."""
    num = min(len(source), _LOOKED_AT)
    spread = np.linspace(0, len(source) - 1, num).astype(np.int64)
    # Of a source over shards the first ones only: each image elsewhere would bring a shard of its own.
    positions = np.arange(num) if isinstance(source, Sharded) else spread
    looked_at = (_converted(source, int(i), convert, skip) for i in order(source, positions, asked.seed))
    stored = [each for each in looked_at if each is not None]
    if not stored:
        raise InputError(f"{OPTION}: none of {num} images could be read: see that they are images, and whole")
    if asked.samples_per_shard is not None:
        num_shards = math.ceil(len(source) / asked.samples_per_shard)
    else:
        overhead = _TAR_OVERHEAD if asked.container == "tar" else 0
        per_sample = sum(len(each.content) for each in stored) / len(stored) + overhead
        num_shards = math.ceil(len(source) * per_sample / ((asked.shard_mb or DEFAULT_SHARD_MB) * 1e6))
    ((extension, _),) = Counter(each.extension for each in stored).most_common(1)
    return Plan(asked, identity, len(source), min(num_shards, len(source)), extension)


def _known(out: Path, plan: Plan) -> dict[int, Done]:
    """What the manifest of a set that was finished says of its shards; nothing where there is none."""
    try:
        content = (out / MANIFEST_FILE).read_bytes()
        manifest = read_manifest(content, str(out / MANIFEST_FILE))
        labels = None if manifest.labels_file is None else np.load(out / manifest.labels_file)
    except (OSError, ValueError):  # not there, or damaged: made again from what is in the state folder, or from nothing
        return {}
    numbers = {plan.file(i): i for i in range(plan.num_shards)}
    if not {entry.file for entry in manifest.shards} <= numbers.keys():
        return {}
    known, start = {}, 0
    for entry in manifest.shards:
        part = None if labels is None else tuple(labels[start : start + entry.num_samples].tolist())
        start += entry.num_samples
        known[numbers[entry.file]] = Done(entry.num_samples, entry.size, entry.sha256, (), part)
    return known


def _remove_leftovers(job: Job, mine: Sequence[int]) -> None:
    """Files of writers that were killed, for this process's shards. One of another machine may still be written: an hour's grace."""
    names = {job.plan.file(i) for i in mine}
    for path in (*job.out.glob(".tmp-*"), *job.state.glob(".tmp-*")):
        name, _, writer = path.name.removeprefix(".tmp-").partition("--")
        host, _, pid = writer.rpartition("-")
        if name.removesuffix(".json") not in names or (host == os.uname().nodename and Path(f"/proc/{pid}").exists()):
            continue
        with suppress(OSError):
            if host == os.uname().nodename or time.time() - path.stat().st_mtime > 3600:
                path.unlink()


# ---- one shard -------------------------------------------------------------------------------------------------------


def _make(job: Job, number: int) -> Done:
    """The shard as it is to be: found whole, or written."""
    with _explained(job.out):
        there = _found(job, number)
        if there is not None:
            return there
        done = _written(job, number)
        before = job.known.get(number)
        if before is not None and before.sha256 != done.sha256:
            raise InputError(
                f"{job.out / job.plan.file(number)}: was damaged, and written again it differs from what {MANIFEST_FILE} says (another version "
                f"of Pillow or pyarrow, or SOURCE has changed): remove the folder {job.out}, and write it again"
            )
        path = _state_file(job, number)
        tmp = path.with_name(_tmp_name(path.name))
        with tmp.open("w", encoding="utf-8") as file:
            json.dump(asdict(done), file)
            file.flush()
            os.fsync(file.fileno())
        tmp.replace(path)
        return done


def _found(job: Job, number: int) -> Done | None:
    """A shard that was finished before and is whole, or None."""
    done = job.known.get(number) or _said(job, number)
    if done is None:
        return None
    if done.num_samples:
        path = job.out / job.plan.file(number)
        if not path.is_file() or path.stat().st_size != done.size or _sha256(path) != done.sha256:
            return None
    return Done(**(asdict(done) | {"was_there": True}))


def _said(job: Job, number: int) -> Done | None:
    try:
        record = json.loads(_state_file(job, number).read_text(encoding="utf-8"))
        labels = record["labels"]
        return Done(
            **(record | {"skipped": tuple(record["skipped"]), "labels": None if labels is None else tuple(labels)})
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # not there; or no file of ours, and then the shard is made again
        return None


def _written(job: Job, number: int) -> Done:
    name = job.plan.file(number)
    tmp, path = job.out / _tmp_name(name), job.out / name
    skipped: list[int] = []
    checks: list[Check] = []
    try:
        with tmp.open("wb") as file:
            job.write(file, _kept(_samples(job, number, skipped), checks))
            file.flush()
            os.fsync(file.fileno())
        size, sha256 = tmp.stat().st_size, _sha256(tmp)
        if not checks:
            return Done(0, 0, "", tuple(skipped), () if job.plan.asked.labelled else None)
        if list(READERS[job.plan.asked.container](tmp)) != checks:
            raise InputError(
                f"{path}: what was written is not what is read back: the disk or its file system loses data"
            )
        tmp.replace(path)
    finally:
        tmp.unlink(missing_ok=True)
    labels = tuple(int(check.label) for check in checks if check.label is not None)
    return Done(len(checks), size, sha256, tuple(skipped), labels if job.plan.asked.labelled else None)


def _kept(samples: Iterator[Sample], checks: list[Check]) -> Iterator[Sample]:
    for sample in samples:
        checks.append(check_of(sample))
        yield sample


def _samples(job: Job, number: int, skipped: list[int]) -> Iterator[Sample]:
    """The samples of a shard; those that cannot be read go into `skipped`."""
    source, plan = job.source, job.plan
    indices = order(source, plan.positions(number), plan.asked.seed)
    if isinstance(source, Sharded):
        source.prepare(shards_of(source, indices))
    width = max(8, len(str(plan.num_samples - 1)))
    in_a_row = 0
    for index in indices.tolist():
        stored = _converted(source, index, job.convert, job.skip)
        if stored is None:
            skipped.append(index)
            in_a_row += 1
            if in_a_row == _MAX_UNREADABLE:
                raise InputError(
                    f"{OPTION}: {in_a_row} images in a row cannot be read, the last of them {source.describe(index)}: is the disk there? "
                    "The same command goes on when it is"
                )
            continue
        in_a_row = 0
        label = int(source.labels[np.array([index])][0]) if plan.asked.labelled else None
        yield Sample(f"{index:0{width}d}", plan.extension, stored.content, label)


def _converted(source: Source, index: int, convert: Conversion, skip: bool) -> Stored | None:
    """A record as it is to be stored; None for an unreadable one, where these are left out.

    Raises:
        InputError: it is unreadable, or a whole shard of the source cannot be had, which is no image's fault.
    """
    try:
        return convert(source.read(index))
    except InputError:
        raise
    except UnreadableShard as error:
        raise InputError(f"{error}: the same command goes on when it can be read") from error
    except Exception as error:  # decoders raise whatever a broken file drives them into
        if skip:
            return None
        raise InputError(
            f"{source.describe(index)}: unreadable image ({first_line(error)}): mend or remove it, or give --unreadable skip"
        ) from error


# ---- after the last shard --------------------------------------------------------------------------------------------


def _close(job: Job, made_from: str, classes: tuple[str, ...] | None) -> Manifest | None:
    """Write labels and manifest if every shard is there. Two processes that both find it so write the same."""
    # On NFS a folder's listing may be old; a change that this process makes there brings a new one.
    marker = job.state / _tmp_name("close")
    marker.touch()
    marker.unlink()
    os.listdir(job.state)
    done = []
    for number in range(job.plan.num_shards):
        each = _said(job, number) or job.known.get(number)
        if each is None:
            return _closed_by_another(job)
        done.append((number, each))
    shards = tuple(
        ShardEntry(job.plan.file(i), each.num_samples, each.size, each.sha256) for i, each in done if each.num_samples
    )
    if not shards:
        raise InputError(
            f"{OPTION}: none of its {job.plan.num_samples} images could be read: see that they are images, and whole"
        )
    num_skipped = job.plan.num_samples - sum(each.num_samples for each in shards)
    labels_sha256 = None
    if classes is not None:
        labels = np.array([label for _, each in done for label in each.labels or ()], dtype=np.int32)
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
    )
    write_manifest(job.out, manifest)
    for number in range(job.plan.num_shards):
        _state_file(job, number).unlink(missing_ok=True)
    return manifest


def _closed_by_another(job: Job) -> Manifest | None:
    """The manifest of a process that found the set whole a moment before this one did."""
    path = job.out / MANIFEST_FILE
    return read_manifest(path.read_bytes(), str(path)) if path.is_file() else None


def _write_labels(out: Path, labels: np.ndarray) -> str:
    tmp = out / _tmp_name(LABELS_FILE)
    try:
        with tmp.open("wb") as file:
            np.save(file, labels)
            file.flush()
            os.fsync(file.fileno())
        sha256 = _sha256(tmp)
        tmp.replace(out / LABELS_FILE)
    finally:
        tmp.unlink(missing_ok=True)
    return sha256


# ---- files -----------------------------------------------------------------------------------------------------------


def _state_file(job: Job, number: int) -> Path:
    return job.state / f"{job.plan.file(number)}.json"


def _tmp_name(name: str) -> str:
    return f".tmp-{name}--{os.uname().nodename}-{os.getpid()}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    """What a disk can do to a write, as an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(in_options(str(error), OPTION)) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            where = next(parent for parent in (out, *out.resolve().parents) if parent.is_dir())
            free = shutil.disk_usage(where).free / 1e6
            raise InputError(
                f"{out}: no room left to write there ({free:,.0f} MB free). What is finished stays: free some room, and the same command goes on"
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise InputError(f"{out}: cannot be written: {error.strerror}; give a folder that can") from error
        raise
