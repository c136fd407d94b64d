"""Files in a folder and below, in sorted order, found in bounded time whatever links are there."""

import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from distill.data.records import is_leftover, literal_start
from distill.errors import InputError, printable

# Ways that may lead to one folder. Links that double at every level lead to its end by 2^levels of
# them.
_MOST_WAYS = 16


def files_below(folder: Path, endings: tuple[str, ...], key: str) -> list[bytes]:
    """The files whose names end so, in upper or lower case; links are followed, but not into a
    folder above.

    Hidden names and what file servers leave are passed over. What is no regular file (a pipe, a
    device, a link to nothing) is listed too, so that reading it says what it is.

    Args:
        endings: in lower case.
        key: the recipe key of the folder, for messages.

    Returns:
        Their paths relative to `folder`, sorted.

    Raises:
        InputError: a folder cannot be read; more than 16 ways lead to one folder.
    """
    found: list[bytes] = []
    ways: Counter[tuple[int, int]] = Counter()
    parents = set(folder.resolve().parents)
    if folder.is_symlink():  # those of its target are not all that lie above it
        parents |= {folder.parent.resolve(), *folder.parent.resolve().parents}
    above = frozenset(filter(None, map(_identity, parents)))
    waiting = [(b"", above)]
    while waiting:
        prefix, above = waiting.pop()
        directory = os.path.join(os.fsencode(folder), prefix)
        shown = printable(os.fsdecode(directory))
        try:
            status = os.stat(directory)
            entries = list(os.scandir(directory))
        except OSError as error:
            raise InputError(
                f"{key}.path: {shown} cannot be read ({error.strerror}): change its permissions"
            ) from error
        identity = status.st_dev, status.st_ino
        if identity in above:
            continue
        ways[identity] += 1
        if ways[identity] > _MOST_WAYS:
            raise InputError(
                f"{key}.path: more than {_MOST_WAYS} paths in {printable(str(folder))} lead to one"
                f" folder, among them {shown}: remove the symbolic links to folders that lead to it"
                " again and again"
            )
        for entry in entries:
            name = os.fsdecode(entry.name)
            if is_leftover(name):
                continue
            if _is_folder(entry):
                waiting.append((os.path.join(prefix, entry.name), above | {identity}))
            elif name.lower().endswith(endings):
                found.append(os.path.join(prefix, entry.name))
    return sorted(found)


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def matching_files(path: str, key: str) -> tuple[list[str], str]:
    """The files that a local pattern matches, without what is hidden or left by a file server.

    Below a folder that ** stands for, files are found as by `files_below`: Python's glob follows
    links in a ring forty levels deep, by every way.

    Returns:
        Their paths, sorted, and the folder that all of them lie below.

    Raises:
        InputError: as `files_below`, where the pattern has **.
    """
    start, rest = literal_start(path)
    parts = rest.split("/")
    fixed = parts.index("**") if "**" in parts else len(parts)
    found = glob.glob(os.path.join(glob.escape(start), *parts[:fixed]))
    if fixed < len(parts):
        found = [
            os.path.join(folder, os.fsdecode(name))
            for folder in found
            if os.path.isdir(folder)
            for name in files_below(Path(folder), ("",), key)
            if _match(os.fsdecode(name).split("/"), parts[fixed:])
        ]
    return (
        sorted(name for name in found if Path(name).is_file() and not _has_leftover(name, start)),
        start,
    )


def _match(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the names of a path match the parts of a pattern, in which ** stands for any number
    of folders.
    """
    if not parts:
        return not names
    if parts[0] == "**":
        return any(_match(names[i:], parts[1:]) for i in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], parts[0]) and _match(names[1:], parts[1:])


def _has_leftover(path: str, below: str) -> bool:
    """Whether a file, or a folder above it and below `below`, is no part of a data set."""
    return any(map(is_leftover, Path(os.path.relpath(path, below)).parts))


def _is_folder(entry: "os.DirEntry[bytes]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
