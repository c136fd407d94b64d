"""The protocol of a source of records, and helpers for its paths."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from distill.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from distill.data.stream.shard_fetcher import ListedShard

# The `shard_sizes` of a source without shards.
NO_SIZES = np.empty(0, dtype=np.int64)


class UnreadableShardError(OSError):
    """A whole shard cannot be read. The message names it and where reading ended."""


class LabelsOnRead(Protocol):
    """Labels that are stored with the records: indexing reads them."""

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """[b] indices -> [b] int64. Raises OSError as `Source.read` does."""
        ...


class Source(Protocol):
    """N records, as files and rows on this machine or in S shards that are fetched.

    `labels`: [N] int64 in 0..K-1, or an object that reads them; all -1 without labels. `classes`: K
    names, none without labels. `shards`, `shard_sizes`: the shards in order and the number of
    records in each, [S] int64; empty for records that do not come in shards.
    """

    @property
    def labels(self) -> np.ndarray | LabelsOnRead: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def shards(self) -> "Sequence[ListedShard]": ...

    @property
    def shard_sizes(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes | np.ndarray:
        """The undecoded file, or pixels as uint8 [H, W] or [H, W, 3]. Raises OSError if it cannot
        be read.
        """
        ...

    def describe(self, index: int) -> str:
        """Where the record lies: a path, or a file and a row. For messages."""
        ...

    def name(self, index: int) -> str:
        """The file name that the data set gives the record, without folders; "" if it has none.
        May read. Raises as `read`.
        """
        ...

    def fingerprint(self) -> str:
        """SHA-256 over what the records are, wherever they lie, as far as it is cheap to compute.
        May read files.
        """
        ...

    def prefetch(self, shards: Sequence[int]) -> None:
        """Fetch these shards in the background, the most urgent first. Neither waits nor raises.
        Does nothing where there are no shards.
        """
        ...


# What file servers, archives and notebooks leave next to images: thumbnails, metadata, trash.
# Hidden names are ignored as well.
_LEFTOVERS = frozenset(
    (
        "@eadir",
        "__macosx",
        "lost+found",
        "thumbs.db",
        "#recycle",
        "@recycle",
        "$recycle.bin",
        "system volume information",
    )
)


def is_leftover(name: str) -> bool:
    """Whether a file or folder is no part of a data set: hidden (.AppleDouble, ._x.jpg,
    .ipynb_checkpoints), or left by a file server.
    """
    return name.startswith(".") or name.lower() in _LEFTOVERS


def at(root: Path, path: str, key: str) -> Path:
    """Resolve a path of a recipe: relative to `root`, absolute, or from a home folder (~).

    Raises:
        InputError: there is no such home, or the path has a NUL.
    """
    if "\0" in path:
        raise InputError(f"{key}: {path!r} has a NUL, which no path has: give another path")
    try:
        return root / Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{key}: {path}: {first_line(error)}: give the path without ~") from error


def read_regular(path: bytes | str | Path) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: it cannot be read, or is a pipe, a socket, a device or a folder: opening a pipe
            waits for its writer, and reading a device may never end.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(f"it is a {kind_of(path)}, not a file")
    with open(path, "rb") as file:
        return file.read()


def kind_of(path: bytes | str | Path) -> str:
    """What is at a path, for messages."""
    kinds = {
        stat.S_IFIFO: "pipe",
        stat.S_IFSOCK: "socket",
        stat.S_IFDIR: "folder",
        stat.S_IFREG: "file",
    }
    return kinds.get(stat.S_IFMT(os.stat(path).st_mode), "device")


def literal_start(path: str) -> tuple[str, str]:
    """Split a local path: the folders that exist as written, and the rest, in which [ ] * {
    } may mean a pattern.
    """
    start, parts = Path(), Path(path).parts
    for i, part in enumerate(parts):
        if not (start / part).exists():
            return str(start), "/".join(parts[i:])
        start /= part
    return str(start), ""


def missing(path: Path, key: str) -> InputError:
    """The error for a path that does not exist, with the nearest existing name."""
    parent = path.parent
    near = (
        did_you_mean(path.name, os.listdir(parent)) if parent.is_dir() else f" (nor does {parent})"
    )
    return InputError(
        f"{key}.path: {path} does not exist{near}: give a path that does, absolute or relative to"
        " data.root"
    )


def first_line(error: BaseException) -> str:
    """The first line of another library's error, for use in our messages."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
