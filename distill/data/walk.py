"""Files in a folder and below, in an order of their own, found in bounded time whatever the links there."""

import os
from collections import Counter
from pathlib import Path

from distill.data.records import is_leftover
from distill.errors import InputError, printable

# Ways that may lead to one folder. Links that double at every level lead to its end by 2^levels of them.
_MOST_WAYS = 16


def files_below(folder: Path, endings: tuple[str, ...], key: str) -> list[bytes]:
    """The files whose names end so, in upper or lower case; links are followed, but not into a folder above.

    Hidden names and what file servers leave are passed over. What is no regular file (a pipe, a device, a link to nothing)
    is listed too, so that reading it says what it is.

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
    above: frozenset[tuple[int, int]] = frozenset()
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
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue
        ways[identity] += 1
        if ways[identity] > _MOST_WAYS:
            raise InputError(
                f"{key}.path: more than {_MOST_WAYS} paths in {printable(str(folder))} lead to one folder, among them {shown}: remove the "
                "symbolic links to folders that lead to it again and again"
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


def _is_folder(entry: "os.DirEntry[bytes]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
