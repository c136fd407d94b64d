"""What a source of records is, and the error for a path that is not there."""

import os
from pathlib import Path
from typing import Protocol

import numpy as np

from distill.errors import InputError, nearest


class UnreadableShard(OSError):  # noqa: N818 - named for what it says of the shard
    """A whole shard of records cannot be had. The message names it, and where in it the reading ended."""


class LabelsOnRead(Protocol):
    """Labels that come with the records: indexed like an array, they are read as they are asked for."""

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """[b] indices -> [b] int64. Raises UnreadableImage's reasons (OSError) as `Source.read` does."""
        ...


class Source(Protocol):
    """N records. `labels`: [N] int64 in 0..K-1, or what reads them; -1 throughout without labels. `classes`: K names, none without labels."""

    @property
    def labels(self) -> np.ndarray | LabelsOnRead: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes | np.ndarray:
        """The undecoded file, or pixels as uint8 [H, W] or [H, W, 3]. Raises OSError when it cannot be read."""
        ...

    def describe(self, index: int) -> str:
        """Where the record lies: a path, or a file and a row. For messages."""
        ...


def missing(path: Path, key: str) -> InputError:
    """An error for a path that does not exist, with the nearest name beside it."""
    parent = path.parent
    near = nearest(path.name, os.listdir(parent)) if parent.is_dir() else f" (nor does {parent})"
    return InputError(
        f"{key}.path: {path} does not exist{near}: give a path that does, absolute or relative to data.root"
    )


def first_line(error: BaseException) -> str:
    """What an error of another library says, short enough for one of ours."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
