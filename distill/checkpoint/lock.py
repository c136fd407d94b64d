"""The lock on a folder in which one process works. This module imports no torch."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from distill.checkpoint.layout import LOCK_FILE
from distill.errors import InputError
from distill.files import write_error


class FolderLock:
    """The lock on the folder of a run or a study: two processes there would delete each other's
    files.

    A POSIX record lock: it ends with the process, however that ends, and forked loader workers do
    not inherit it.
    """

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    def acquire(self, folder: Path, key: str = "output") -> None:
        """Lock the folder, and release the one locked before.

        Args:
            key: of the recipe that names the folder.

        Raises:
            InputError: another process works here.
        """
        self.release()
        file = (folder / LOCK_FILE).open("a+")
        _lock(file, folder, key)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Unlock the folder."""
        if self._file is not None:
            self._file.close()
            self._file = None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for the duration of the block, and make it if it does not exist.

    Raises:
        InputError: another process works here.
        WriteError: it cannot be written.
    """
    lock = FolderLock()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(folder)
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def refuse_locked(folder: Path) -> None:
    """Raises InputError if another process works in a folder. Changes nothing there."""
    try:
        file = (folder / LOCK_FILE).open("r+")
    except OSError:  # not locked, or not ours to lock
        return
    with file:
        _lock(file, folder)


def _lock(file: IO[str], folder: Path, key: str = "output") -> None:
    """Lock an open file. Where the file system has no locks it stays unlocked.

    Raises:
        InputError: another process holds the lock; the file is closed.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise InputError(
                f"{folder}: {holder} is writing here: wait for it to end, or choose another folder"
                f" with {key}="
            ) from error
