"""A file of rows: tensors in the safetensors format, with their checksum and what they are.

A shard is complete or absent, also after kill -9. Its bytes follow from its rows alone: the
metadata is one entry, since safetensors writes several in no fixed order.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from distill.errors import InputError
from distill.files import atomic_write, write_error

_ENTRY = "shard"
_MOST_HEADER = 1 << 20


class DamagedShardError(InputError):
    """A shard that is not what was written. The message names it."""


def write_shard(path: Path, rows: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a shard in one step.

    Args:
        about: what the rows are, as JSON takes it.

    Raises:
        WriteError: the disk is full or cannot be written.
    """
    record = json.dumps({**about, "sha256": _checksum(rows)}, sort_keys=True)
    content = save(dict(rows), metadata={_ENTRY: record})
    try:
        atomic_write(path, lambda file: file.write(content))
    except OSError as error:
        raise write_error(path, error, earlier="shards", key="targets") from error


def read_shard(path: Path, about: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read a shard and verify it.

    Args:
        about: as it was written.

    Raises:
        DamagedShardError: it is absent, damaged, or of other rows.
    """
    try:
        content = path.read_bytes()
        record = json.loads(_header(content)["__metadata__"][_ENTRY])
        rows = load(content)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
        raise DamagedShardError(f"{path}: {reason}") from error
    if record != {**about, "sha256": _checksum(rows)}:
        same = isinstance(record, dict) and {**record, **about} == record
        what = "its checksum differs" if same else "it holds other rows"
        raise DamagedShardError(f"{path}: is damaged: {what}")
    return rows


def is_complete(path: Path) -> bool:
    """Return whether a shard is there in its full length. Reads its header alone."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
            start += file.read(min(int.from_bytes(start, "little"), _MOST_HEADER))
            ends = [
                each["data_offsets"][1] for name, each in _header(start).items() if name[0] != "_"
            ]
            size = file.seek(0, os.SEEK_END)
        return size == len(start) + int(max(ends))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return False


def _header(content: bytes) -> dict[str, Any]:
    """The header of safetensors: its length in 8 bytes, then JSON."""
    found = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    if not isinstance(found, dict):
        raise ValueError("its header is no mapping")
    return found


def _checksum(rows: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(rows):
        tensor = rows[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
