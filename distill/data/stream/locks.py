"""Locks between processes: an flock on a file that is there only while somebody holds it."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Locks that this process holds. A child inherits them with the descriptor, and would keep them
# beyond a parent that is killed.
_held: set[int] = set()


def _forget_held() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_held)


def try_lock(descriptor: int) -> None:
    """Raises OSError where the file system knows no such locks."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextmanager
def locked(lock: Path, wait: bool, explained: Callable[[OSError], Exception]) -> Iterator[bool]:
    """The lock at a path; gives whether it was had. Its holder removes the lock file, so a lock
    counts only while its file is that of its name.

    Args:
        explained: turns what the disk says against a lock file into what is raised.
    """
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise explained(error) from error
        _held.add(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            mine = _is_at(descriptor, lock)
        except BlockingIOError:
            _let_go(descriptor)
            yield False
            return
        except BaseException as error:
            _let_go(descriptor)
            if isinstance(error, OSError):
                raise explained(error) from error
            raise
        if mine:
            break
        _let_go(descriptor)
    try:
        yield True
    finally:
        lock.unlink(missing_ok=True)
        _let_go(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _let_go(descriptor: int) -> None:
    """Unlocks, then closes: a child that was just forked may still have the descriptor."""
    _held.discard(descriptor)
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
