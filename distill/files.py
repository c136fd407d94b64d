"""Atomic writes: a file or directory is complete or absent, also after kill -9 and power loss.

A directory is written as `.tmp-<name>-<pid>` in the same folder, synced, and renamed. If it
replaces another, the old one is renamed to `.old-<name>` until the new one has its name: after a
kill between the two renames `current_directory` finds the old one and `clean` restores it. One
process writes into a folder at a time.
"""

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from distill.errors import InputError

_TMP, _OLD = ".tmp-", ".old-"
# .tmp-NAME-PID, or .tmp-NAME-PID.NUMBER of a directory that is being deleted. Other names are not
# ours.
_WORKING = re.compile(re.escape(_TMP) + r"(.+)-\d+(?:\.\d+)?")


class WriteError(InputError):
    """A file or folder cannot be written. The message names it, the reason and the fix."""


# ---- directories ---------------------------------------------------------------------------------


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory. When the block ends, it replaces `path` in one step; if the block
    raises, it is removed and `path` is as before.

    Raises:
        WriteError: the disk is full, read-only, or the write fails in another way.
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
        if os_errno(error) is not None:
            raise write_error(path, error) from error
        raise
    # Only now: until the parent is synced, a power loss may bring the old name back.
    if old.exists():
        with suppress(OSError):
            _discard(old)


def current_directory(path: Path) -> Path | None:
    """Return where the content of `path` is: at `path`, at the old directory if a writer was killed
    while it replaced it, or None.
    """
    old = path.parent / f"{_OLD}{path.name}"
    # `path` twice: a writer may finish between the first two checks.
    for candidate in (path, old, path):
        if candidate.is_dir():
            return candidate
    return None


def clean(parent: Path, name: str | None = None) -> None:
    """Undo what killed writers left in `parent`: delete incomplete directories, restore an old one
    that was not replaced.

    Only the process that writes into a folder may call this. `name` limits it to one directory. A
    folder that cannot be written stays as it is.
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
    """Delete a directory, so that a kill leaves no part of it under its name.

    Raises:
        WriteError: its parent cannot be written.
    """
    try:
        _discard(path)
    except OSError as error:
        raise write_error(path, error) from error


def _discard(path: Path) -> None:
    # Renamed first: this frees the name at once, also on NFS, where files that are open elsewhere
    # cannot be deleted yet.
    name = path.name.removeprefix(_OLD)
    removed = path.with_name(f"{_TMP}{name}-{os.getpid()}.{time.monotonic_ns()}")
    path.rename(removed)
    if removed.is_symlink():
        removed.unlink()  # rmtree leaves a link as it is
    else:
        shutil.rmtree(removed, ignore_errors=True)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Does nothing on file systems that cannot (some network
    mounts).
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
    """Make a file's content durable.

    Raises:
        OSError: also for a delayed write that fails now.
    """
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_tree(root: Path) -> None:
    mode = root.stat().st_mode & 0o666  # what the umask permits; safetensors writes 0600
    for folder, _, files in os.walk(root, topdown=False):
        for file in files:
            Path(folder, file).chmod(mode)
            sync_file(Path(folder, file))
        sync_directory(Path(folder))


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
        OSError: as any write; `path` is then as before, or the new file if only the sync of its
            folder failed.
    """
    tmp = path.with_name(tmp_name(path.name))
    try:
        with tmp.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if accept(tmp):
            tmp.replace(path)
            # Another process may have used the file and deleted its folder already.
            with suppress(FileNotFoundError):
                sync_directory(path.parent)
    finally:
        tmp.unlink(missing_ok=True)


def clean_files(folder: Path, names: Iterable[str]) -> None:
    """Delete what killed writers left of these files. Only the process that writes them calls
    it.
    """
    for name in names:
        for entry in folder.glob(f"{_TMP}{name}--*"):
            with suppress(OSError):
                entry.unlink()


def replace_text(path: Path, text: str) -> None:
    """Replace the content of a file in one step, durably. A file that holds the text already is
    left alone.

    Raises:
        OSError: the disk is full, read-only, or the write fails in another way.
    """
    if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text:
        return
    content = text.encode()
    atomic_write(path, lambda file: file.write(content))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- errors --------------------------------------------------------------------------------------


def os_errno(error: BaseException) -> int | None:
    """The errno of an error, or None. safetensors (Rust) gives it only in its message."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    if type(error).__name__ == "SafetensorError":
        _, found, rest = str(error).partition("(os error ")
        return int(rest.partition(")")[0]) if found else None
    return None


def write_error(
    path: Path, error: BaseException, *, earlier: str = "checkpoints", key: str = "output"
) -> WriteError:
    """The error that says why a path cannot be written, and what to do.

    Args:
        earlier: what has been written before, and is complete.
        key: of the recipe that names the folder.
    """
    number = os_errno(error) or errno.EIO
    where = next((parent for parent in path.parents if parent.is_dir()), path.parent)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = ""
        with suppress(OSError):
            free = f" ({shutil.disk_usage(where).free / 2**20:.0f} MiB free there)"
        return WriteError(
            f"{path}: no space left to write it{free}; earlier {earlier} are complete. "
            f"Free some space and run again, or set {key}= to a folder on another disk"
        )
    reason = os.strerror(number)
    return WriteError(
        f"{path}: cannot be written: {reason} ({error}). Make {where} writable, or set {key}= to a"
        " folder that is"
    )
