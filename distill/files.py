"""Directories and files that are either wholly there or not at all, under kill -9 and power loss.

A directory is written as `.tmp-<name>-<pid>` beside its place, synced, and renamed. Where it
replaces another, that one waits as `.old-<name>` until the new one stands: a kill between the two
renames leaves the old one under that name, `current_directory` finds it, and `clean` puts it back.
One process writes into a folder at a time.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from distill.errors import InputError

_TMP, _OLD = ".tmp-", ".old-"
# .tmp-NAME-PID, or .tmp-NAME-PID.NUMBER of a directory on its way out: no other name is one of
# ours.
_WORKING = re.compile(re.escape(_TMP) + r"(.+)-\d+(?:\.\d+)?")


class CheckpointError(InputError):
    """A checkpoint cannot be written, read or continued. The message names the file and
    the mend.
    """


# ---- directories ---------------------------------------------------------------------------------


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory; when the block ends well it becomes `path` in one step, replacing
    what stood there.

    If the block raises, the directory is removed and `path` is as before.

    Raises:
        CheckpointError: the disk is full, read-only, or refuses the write in another way.
    """
    tmp = path.parent / f"{_TMP}{path.name}-{os.getpid()}"
    old = path.parent / f"{_OLD}{path.name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clean(path.parent, path.name)
        tmp.mkdir()
        yield tmp
        _sync_tree(tmp)
        if path.exists():
            path.rename(old)
        tmp.rename(path)
        sync_directory(path.parent)
    except BaseException as error:
        shutil.rmtree(tmp, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        if (number := os_errno(error)) is not None:
            raise CheckpointError(_explain(path, number, error)) from error
        raise
    # Only now: until the parent is synced, a power loss may bring the old name back.
    if old.exists():
        with suppress(OSError):
            _discard(old)


def current_directory(path: Path) -> Path | None:
    """Where the content of `path` is to be read: `path`, or the predecessor that a kill left
    mid-replacement, or None.
    """
    old = path.parent / f"{_OLD}{path.name}"
    # Twice: a writer may finish replacing between the two looks.
    for candidate in (path, old, path):
        if candidate.is_dir():
            return candidate
    return None


def clean(parent: Path, name: str | None = None) -> None:
    """Undo what killed writers left in `parent`: half-written directories go, a predecessor without
    successor returns.

    Only the writing process of a folder may call this. `name` limits it to one directory. A folder
    that cannot be written is left as it is.
    """
    if not parent.is_dir():
        return
    with suppress(OSError):
        for entry in sorted(parent.iterdir()):
            if (found := _WORKING.fullmatch(entry.name)) and name in (None, found[1]):
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name.startswith(_OLD) and (name is None or entry.name == f"{_OLD}{name}"):
                place = parent / entry.name.removeprefix(_OLD)
                if place.exists():
                    _discard(entry)
                else:
                    entry.rename(place)


def remove_directory(path: Path) -> None:
    """Delete a directory so that no kill leaves half of it under its name.

    Raises:
        CheckpointError: the folder it is in cannot be written.
    """
    try:
        _discard(path)
    except OSError as error:
        raise CheckpointError(_explain(path, os_errno(error) or errno.EIO, error)) from error


def _discard(path: Path) -> None:
    # Renamed first: its name is free at once and for certain, also on NFS, where files that someone
    # reads cannot go yet.
    name = path.name.removeprefix(_OLD)
    doomed = path.with_name(f"{_TMP}{name}-{os.getpid()}.{time.monotonic_ns()}")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable; a file system that cannot (some network mounts) is let
    off.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's content durable; raises where a delayed write fails only now."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_tree(root: Path) -> None:
    mode = root.stat().st_mode & 0o666  # what the umask leaves; safetensors writes 0600
    for folder, _, files in os.walk(root, topdown=False):
        for file in files:
            Path(folder, file).chmod(mode)
            sync_file(Path(folder, file))
        sync_directory(Path(folder))


# ---- errors --------------------------------------------------------------------------------------


def os_errno(error: BaseException) -> int | None:
    """The errno behind an error, also where safetensors (Rust) gives it only in its message; None
    if there is none.
    """
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    if type(error).__name__ == "SafetensorError":
        _, found, rest = str(error).partition("(os error ")
        return int(rest.partition(")")[0]) if found else None
    return None


def _explain(path: Path, number: int, error: BaseException) -> str:
    where = next((parent for parent in path.parents if parent.is_dir()), path.parent)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = ""
        with suppress(OSError):
            free = f" ({shutil.disk_usage(where).free / 2**20:.0f} MiB free there)"
        return (
            f"{path}: no room left to write it{free}; earlier checkpoints are whole. "
            "Free some room and start again, or set output= to a folder on another disk"
        )
    reason = os.strerror(number)
    return (
        f"{path}: cannot be written: {reason} ({error}). Make {where} writable, or set output= to a"
        " folder that is"
    )


# ---- files ---------------------------------------------------------------------------------------


def tmp_name(name: str) -> str:
    """The name of a file while this process writes it: with the machine and the process id."""
    return f"{_TMP}{name}--{os.uname().nodename}-{os.getpid()}"


def atomic_write(
    path: Path,
    write: Callable[[BinaryIO], object],
    accept: Callable[[Path], bool] = lambda tmp: True,
) -> None:
    """Replace a file in one step: it is written under another name, synced, and renamed.

    Args:
        write: writes the content.
        accept: called with the path of the synced file; if it returns False, nothing is replaced.

    Raises:
        OSError: as any write; `path` is then as before.
    """
    tmp = path.with_name(tmp_name(path.name))
    try:
        with tmp.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if accept(tmp):
            tmp.replace(path)
            sync_directory(path.parent)
    finally:
        tmp.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Put a text in place of a file's, in one step; a file that holds it already is left alone.

    Raises:
        OSError: as any write.
    """
    if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text:
        return
    content = text.encode()
    atomic_write(path, lambda file: file.write(content))


def truncate_jsonl(path: Path, step: int) -> int:
    """Drop from a file of JSON lines the records whose "step" is greater than `step`, and torn
    lines. Atomic.

    Called on resume, so that what is computed again is not there twice. Records without a "step"
    stay. A missing file is an empty one.

    Returns:
        The number of lines dropped.

    Raises:
        CheckpointError: the file cannot be rewritten.
    """
    if not path.exists():
        return 0
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        lines = text.splitlines()
        kept = [line for line in lines if _belongs(line, step)]
        content = "".join(f"{line}\n" for line in kept)
        if content == text:
            return 0
        atomic_write(path, lambda file: file.write(content.encode()))
    except OSError as error:
        raise CheckpointError(_explain(path, os_errno(error) or errno.EIO, error)) from error
    return len(lines) - len(kept)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _belongs(line: str, step: int) -> bool:
    try:
        record: Any = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and ("step" not in record or record["step"] <= step)
