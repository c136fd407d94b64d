"""What the data of a run are: it resumes only with the same data, order and teacher."""

import hashlib
from pathlib import Path

import numpy as np

from distill.data.sources import Source
from distill.errors import InputError

# Checkpoints of earlier versions lack the keys that end in this; these are not compared then.
CONTENTS = "names, sizes and contents (SHA-256)"
_SAME_SHARDS = (
    "Shards are the same where their names, numbers of samples, checksums and order are the"
    " same; checksums are those of a manifest, of the Hub, or of Parquet footers"
)


def labels_of(source: Source) -> dict[str, str | int]:
    """The labels of a data set, or its shards: known before any record is read."""
    if shards := shards_of(source, "training"):
        return shards
    assert isinstance(source.labels, np.ndarray)
    return {"training labels (SHA-256)": hashlib.sha256(source.labels.tobytes()).hexdigest()}


def shards_of(source: Source | None, what: str) -> dict[str, str | int]:
    """The shards of a stream, without their paths; nothing for other sources."""
    if source is None or not source.shards:
        return {}
    return {f"{what} shards (SHA-256)": source.fingerprint()}


def contents_of(source: Source | None, what: str) -> dict[str, str | int]:
    """The images of a source without shards. It reads the files, so only the main process calls
    this, before it trains.
    """
    if source is None or source.shards:
        return {}
    return {f"{what} {CONTENTS}": source.fingerprint()}


def refuse_other_inputs(
    path: Path, before: dict[str, str | int], now: dict[str, str | int]
) -> None:
    """Raises InputError if data, their order or teacher are not those of the checkpoint."""
    absent = "(not recorded)"  # by a version that did not compare it, or of data of another kind
    changed = [
        f"  {key}: {before.get(key, absent)} -> {now.get(key, absent)}"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
        and not (key.endswith((CONTENTS, " sees")) and key not in before)
    ]
    if changed:
        raise InputError(
            f"{path}: was made with another data set, order of it or teacher and cannot be"
            " continued with these:\n"
            + "\n".join(changed)
            + (f"\n{_SAME_SHARDS}" if any(" shards (SHA-256)" in line for line in changed) else "")
            + "\nPut the earlier ones back, or set output= to another folder, or resume=never"
        )
