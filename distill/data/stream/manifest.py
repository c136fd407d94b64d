"""The manifest that `distill data shard` writes: counts, classes and checksums of the shards, and
its own checksum. A stream checks its shards against it.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distill.data.records import first_line
from distill.errors import InputError
from distill.files import atomic_write

MANIFEST_FILE = "manifest.json"
_FORMAT = 1
_FIX = "fetch or copy it again, or write the shards again with distill data shard"


@dataclass(frozen=True)
class ShardEntry:
    """One shard. `file`: its name in the manifest's folder; `size`: bytes; `sha256`: of the file,
    in hexadecimal.
    """

    file: str
    num_samples: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A set of shards. Samples are numbered through all of them, in the order of `shards`.

    `classes`: None if samples have no labels. `labels_file`: int32 [N] in NumPy's format, or None.
    `resize`: pixels of the shorter side after shrinking. `made_from`: the source, for people.
    `num_skipped`: unreadable images that were left out. `plan`: the options that the same command
    compares with; None in a manifest without them.
    """

    container: Literal["tar", "parquet"]
    classes: tuple[str, ...] | None
    shards: tuple[ShardEntry, ...]
    labels_file: str | None
    labels_sha256: str | None
    resize: int | None
    made_from: str
    num_skipped: int = 0
    plan: dict[str, Any] | None = None

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write folder/manifest.json in one step.

    Raises:
        OSError: as any write.
    """
    content = manifest_text(manifest).encode()
    atomic_write(folder / MANIFEST_FILE, lambda file: file.write(content))


def manifest_text(manifest: Manifest) -> str:
    """The manifest as JSON, one line a shard, with its checksum."""
    labels = None
    if manifest.labels_file is not None:
        labels = {"file": manifest.labels_file, "sha256": manifest.labels_sha256}
    record: dict[str, Any] = {
        "format": _FORMAT,
        "container": manifest.container,
        "num_samples": manifest.num_samples,
        "num_skipped": manifest.num_skipped,
        "resize": manifest.resize,
        "made_from": manifest.made_from,
        **({} if manifest.plan is None else {"plan": manifest.plan}),
        "classes": None if manifest.classes is None else list(manifest.classes),
        "labels": labels,
        "shards": [
            {
                "file": each.file,
                "num_samples": each.num_samples,
                "size": each.size,
                "sha256": each.sha256,
            }
            for each in manifest.shards
        ],
    }
    record["sha256"] = _checksum(record)
    lines = [
        f"  {json.dumps(key)}: {json.dumps(value)}"
        for key, value in record.items()
        if key != "shards"
    ]
    shards = ",\n".join(f"    {json.dumps(shard)}" for shard in record["shards"])
    lines.insert(-1, f'  "shards": [\n{shards}\n  ]')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_manifest(content: bytes, where: str) -> Manifest:
    """Parse a manifest.

    Args:
        where: its path or URL, for messages.

    Raises:
        InputError: it is cut short, changed, or of another format.
    """
    try:
        record: Any = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: damaged, no JSON ({first_line(error)}): {_FIX}") from error
    if not isinstance(record, dict) or "format" not in record:
        raise InputError(
            f"{where}: no manifest of distill data shard: give the folder that it wrote, or a"
            " pattern of shard files"
        )
    if record["format"] != _FORMAT:
        raise InputError(
            f"{where}: format {record['format']!r}, and this version reads {_FORMAT}: use the"
            " version of distill that wrote it, or write the shards again with distill data shard"
        )
    if record.pop("sha256", None) != _checksum(record):
        raise InputError(f"{where}: damaged, its content is not what its sha256 says: {_FIX}")
    try:
        return _unpacked(record)
    except (KeyError, TypeError, ValueError, OverflowError) as error:  # sealed, and yet not ours
        raise InputError(
            f"{where}: damaged ({type(error).__name__}: {first_line(error)}): {_FIX}"
        ) from error


def _unpacked(record: dict[str, Any]) -> Manifest:
    labels, classes = record["labels"], record["classes"]
    manifest = Manifest(
        container=record["container"],
        classes=None if classes is None else tuple(map(str, classes)),
        shards=tuple(
            ShardEntry(
                _plain(each["file"]),
                int(each["num_samples"]),
                int(each["size"]),
                str(each["sha256"]),
            )
            for each in record["shards"]
        ),
        labels_file=None if labels is None else _plain(labels["file"]),
        labels_sha256=None if labels is None else str(labels["sha256"]),
        resize=None if record["resize"] is None else int(record["resize"]),
        made_from=str(record["made_from"]),
        num_skipped=int(record["num_skipped"]),
        plan=record.get("plan"),
    )
    if manifest.container not in ("tar", "parquet"):
        raise ValueError(f"container {manifest.container!r}")
    if any(shard.num_samples >= 1 << 40 for shard in manifest.shards):
        raise ValueError("more samples than a shard can have")
    if manifest.num_samples != record["num_samples"] or not all(
        shard.num_samples > 0 for shard in manifest.shards
    ):
        raise ValueError("counts do not add up")
    if (
        len({shard.file for shard in manifest.shards}) != len(manifest.shards)
        or not manifest.shards
    ):
        raise ValueError("no shards, or one named twice")
    return manifest


def _plain(name: str) -> str:
    """Check that a name is not a path: a manifest must not name files outside its folder."""
    name.encode()  # raises ValueError for half a surrogate pair
    if not name or name != Path(name).name or "\\" in name or name in (".", ".."):
        raise ValueError(f"file {name!r} is no plain name")
    return name


def _checksum(record: dict[str, Any]) -> str:
    """SHA-256 over the values, whatever the layout of the file."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
