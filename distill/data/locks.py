"""File locks between processes (flock); a lock file exists only while its lock is held."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# The locks of this process. A forked child inherits them with the descriptor, and would hold them
# beyond a parent that is killed.
_held: set[int] = set()


def _close_inherited() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_inherited)


def try_lock(descriptor: int) -> None:
    """Raise OSError where the file system does not support flock."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextmanager
def locked(
    lock: Path, wait: bool, explained: Callable[[OSError], Exception] = lambda error: error
) -> Iterator[bool]:
    """Lock a file for the duration of the block. Yields True if the lock was acquired.

    The holder deletes the file on release, so after flock() we check that the path still names the
    file that we locked.

    Args:
        lock: the lock file, created if it does not exist.
        wait: wait for the lock; otherwise the block runs with False while another process holds it.
        explained: makes the error to raise when the lock file cannot be created or locked.
    """
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise explained(error) from error
        _held.add(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            is_mine = _is_at(descriptor, lock)
        except BlockingIOError:
            _unlock(descriptor)
            yield False
            return
        except BaseException as error:
            _unlock(descriptor)
            if isinstance(error, OSError):
                raise explained(error) from error
            raise
        if is_mine:
            break
        _unlock(descriptor)
    try:
        yield True
    finally:
        lock.unlink(missing_ok=True)
        _unlock(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _unlock(descriptor: int) -> None:
    """Unlock before closing: a child that was just forked may still have the descriptor."""
    _held.discard(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)
