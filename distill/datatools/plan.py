"""Which sample goes into which shard, as pure functions of the source and the options; and the plan
that a folder was begun with.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from distill.data.records import Source
from distill.data.stream.manifest import MANIFEST_FILE, read_manifest
from distill.data.stream.shard_fetcher import ListedShard
from distill.datatools.container import Container
from distill.datatools.storage import STATE_FOLDER
from distill.errors import InputError
from distill.files import atomic_write
from distill.recipe import schema
from distill.rng import hash64, permute

PLAN_FILE = "plan.json"
# The number of the source's shards whose samples are mixed: a new shard then needs these, not all.
_WINDOW_SHARDS = 16
_FINGERPRINT_RECORDS = 32


@dataclass(frozen=True)
class ShardOptions:
    """The options that shape the shards. `seed`: None keeps the source's order."""

    container: Container
    seed: int | None
    resize: int | None
    quality: int | None
    labelled: bool
    samples_per_shard: int | None
    shard_mb: float | None


@dataclass(frozen=True)
class Plan:
    """N samples in S shards, each of N // S or one more. `source`: its fingerprint.

    `extension`: of all image names, the one that most images have: `datasets` refuses tar files
      with several. Readers detect the format from the bytes.
    """

    asked: ShardOptions
    source: str
    num_samples: int
    num_shards: int
    extension: str

    def file(self, shard: int) -> str:
        return f"shard-{shard:05d}.{self.asked.container}"

    def positions(self, shard: int) -> np.ndarray:
        """[n] int64: positions in the order of the samples of a shard."""
        first, last = (
            shard * self.num_samples // self.num_shards,
            (shard + 1) * self.num_samples // self.num_shards,
        )
        return np.arange(first, last, dtype=np.int64)


def order(source: Source, positions: np.ndarray, seed: int | None) -> np.ndarray:
    """[n] int64 indices into the source of the samples at `positions`.

    A shuffled order is a permutation of all samples. Of a source with shards, the shards are
    permuted, then the samples within windows of 16 shards.
    """
    if seed is None or len(source) == 0:
        return positions
    if not source.shards:
        return permute(positions, len(source), hash64(seed, "shard"))
    sizes = source.shard_sizes
    shards = permute(np.arange(len(sizes)), len(sizes), hash64(seed, "shard order"))
    ends = np.cumsum(sizes[shards])  # where in the order each permuted shard ends
    window_ends = np.append(ends[_WINDOW_SHARDS - 1 :: _WINDOW_SHARDS], ends[-1])
    windows = np.searchsorted(window_ends, positions, side="right")
    mixed = np.empty_like(positions)
    for window in np.unique(windows):
        start = int(window_ends[window - 1]) if window else 0
        here = windows == window
        size = int(window_ends[window]) - start
        mixed[here] = start + permute(
            positions[here] - start, size, hash64(seed, "shard window", int(window))
        )
    slots = np.searchsorted(ends, mixed, side="right")
    starts = np.cumsum(sizes) - sizes
    return np.asarray(starts[shards[slots]] + mixed - (ends[slots] - sizes[shards[slots]]))


def shards_of(source: Source, indices: np.ndarray) -> list[int]:
    """The source's shards that hold `indices`, in order of first use."""
    ends = np.cumsum(source.shard_sizes)
    return list(dict.fromkeys(np.searchsorted(ends, indices, side="right").tolist()))


def source_fingerprint(source: Source, spec: schema.SourceSpec) -> str:
    """SHA-256 over what a source is, wherever it lies: its classes, its labels if known, and its
    shards or a few records.
    """
    digest = hashlib.sha256(json.dumps([len(source), list(source.classes)]).encode())
    if isinstance(source.labels, np.ndarray):
        digest.update(np.asarray(source.labels, dtype=np.int64).tobytes())
    if source.shards:
        fields = (
            (spec.image, spec.label, spec.labelled) if isinstance(spec, schema.StreamSpec) else ()
        )
        shards = [_shard_fingerprint(shard) for shard in source.shards]
        digest.update(json.dumps([source.fingerprint(), fields, shards]).encode())
        return digest.hexdigest()
    for index in (
        np.linspace(0, len(source) - 1, min(len(source), _FINGERPRINT_RECORDS)).astype(int).tolist()
    ):
        try:
            record = source.read(index)
        except OSError:
            record = b"unreadable"
        digest.update(
            hashlib.sha256(
                bytes(record) if isinstance(record, bytes) else record.tobytes()
            ).digest()
        )
    return digest.hexdigest()


def _shard_fingerprint(shard: ListedShard) -> list[object]:
    """Changes with the content of a shard, as far as it is known without reading it: its checksum,
    else its size, and the time of a local one.
    """
    described: list[object] = [shard.name, shard.num_samples, shard.sha256]
    if shard.sha256 is None and shard.is_local:
        status = os.stat(shard.url)
        return [*described, status.st_size, status.st_mtime_ns]
    return [*described, shard.size_bytes]


def read_plan(out: Path) -> Plan | None:
    """The plan that a folder was begun with, from its own file while shards are missing, then from
    the manifest.

    Raises:
        InputError: it is damaged.
    """
    path = out / STATE_FOLDER / PLAN_FILE
    try:
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
        else:
            path = out / MANIFEST_FILE
            content = path.read_bytes()
            if b'"shards"' not in content:  # another program's
                return None
            record = read_manifest(content, str(path)).plan
        return (
            None
            if record is None
            else Plan(**(record | {"asked": ShardOptions(**record["asked"])}))
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: damaged: write into another folder, or remove {out} and write it again"
        ) from error


def agree_on_plan(out: Path, plan: Plan) -> Plan:
    """Store a plan unless another process has stored one; returns the stored one."""
    folder = out / STATE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(asdict(plan)).encode()

    def is_to_be_renamed(tmp: Path) -> bool:
        try:
            os.link(tmp, folder / PLAN_FILE)  # unlike a rename it replaces nothing
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            return True
        return False

    atomic_write(folder / PLAN_FILE, lambda file: file.write(content), is_to_be_renamed)
    agreed = read_plan(out)
    assert agreed is not None
    return agreed


# The command-line option of each field that may differ.
_OPTIONS = {
    "container": "--container",
    "seed": "--seed",
    "resize": "--resize",
    "quality": "--quality",
    "labelled": "--unlabelled",
    "samples_per_shard": "--samples-per-shard",
    "shard_mb": "--shard-mb",
}


def check_same_plan(out: Path, plan: Plan, asked: ShardOptions, source: str) -> None:
    """Compare the options with those that a folder was begun with.

    Raises:
        InputError: other options, or another source.
    """
    differs = [
        f"{option} ({_shown(name, getattr(plan.asked, name))} then,"
        f" {_shown(name, getattr(asked, name))} now)"
        for name, option in _OPTIONS.items()
        if getattr(plan.asked, name) != getattr(asked, name)
    ]
    if plan.source != source:
        differs.append(
            "SOURCE or --classes (it holds other images, labels or classes, or new shards)"
        )
    if differs:
        raise InputError(
            f"{out} was begun with other input: {', '.join(differs)}. Give what it was begun with,"
            " or write into another folder"
        )


def _shown(name: str, value: object) -> str:
    if name == "seed":
        return "--no-shuffle" if value is None else f"seed {value}"
    if name == "labelled":
        return "with labels" if value else "without labels"
    return "not given" if value is None else str(value)
