"""The local shard cache: files that the processes of a machine make once and share, the least recently used given up first.

A folder holds, of each key, NAME (the file), NAME.size (its bytes as it was made), NAME.part (being written), NAME.failed (why the last
try to make it failed) and NAME.lock. Whoever makes
a file holds an flock on NAME.lock, which the kernel lets go when its process dies, however it dies. So a lock file that nobody holds means nothing, and
a part whose lock is free is rubbish. A file appears by rename, after its size: what is there is whole, or shows that it is not.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distill.errors import InputError

Make = Callable[[Path], None]

# Background makers of a machine at a time: many more connections gain nothing, and servers take them for an attack.
_SLOTS = 16
_SLOT_POLL_S = 0.2
# After which nobody waits any more who might want to know why a maker failed.
_FAILURE_S = 3600.0

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NAME = re.compile(r"[0-9a-f]{24}-[\w-]*")
_UNLOCKABLE = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}

# Locks that this process holds. A child inherits them with the descriptor, and would keep them beyond a parent that is killed.
_held: set[int] = set()


def _forget_held() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_held)


class FailedElsewhere(OSError):  # noqa: N818 - named for where it happened
    """Another process tried to make the file while this one waited for it, and failed. The message is what it said."""


class ShardCache:
    """Files by key. Plain values, so it may be pickled and forked; safe between processes and threads.

    It may exceed its limit by what is being written (one file a process and thread at work), by one file that is larger than it, and by
    files given up while somebody has them open: those stay readable, and take their space, until they are closed.

    Args:
        folder: made where it is missing, for one user; on a local disk, since it is read at random and wants flock.
        size_bytes: the limit.

    Raises:
        InputError: the folder cannot be made, written or locked.
    """

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.folder, self.size_bytes = folder, size_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as probe:
                fcntl.flock(probe, fcntl.LOCK_EX)
        except OSError as error:
            raise self._unusable(error) from error

    def file(self, key: str, make: Make) -> Path:
        """The file of a key. Where it is missing or damaged, `make` writes it, in one process at a time: the others wait for it.

        Where the limit is smaller than what is in use, it may be given up again before the caller opens it: ask once more then.

        Args:
            key: any text that changes with the content.
            make: writes a whole file at the path it is given. What it raises is passed on, and leaves nothing but its message.

        Raises:
            InputError: the disk is full, or what `make` raised in the process that was waited for.
            FailedElsewhere: the same for other errors. Of many who wait for one file each would else try for itself, one after the other.
        """
        path = self._path(key)
        if not _whole(path):
            asked = time.time()
            with self._locked(path, wait=True):
                if not _whole(path):
                    _raise_failure_since(path, asked)
                    self._make(path, make)
        with suppress(OSError):  # given up meanwhile, or another user's
            os.utime(path)
        return path

    def has(self, key: str) -> bool:
        """Whether the file is there, and as long as it was made."""
        return _whole(self._path(key))

    def begin(self, key: str, make: Make) -> bool:
        """Makes the file, unless it is there or being made by somebody. Returns whether it was made. Raises as `file`.

        Waits until fewer than 16 of the machine make files in this way.
        """
        path = self._path(key)
        if _whole(path):
            return False
        with self._slot(path) as had, self._locked(path, wait=False) as mine:
            if not had or not mine or _whole(path):
                return False
            self._make(path, make)
            return True

    @contextmanager
    def _slot(self, path: Path) -> Iterator[bool]:
        """One of the machine's slots for background makers; False when the file came meanwhile."""
        while not _whole(path):
            for number in range(_SLOTS):
                with self._locked(self.folder / f"slot-{number}", wait=False) as mine:
                    if mine:
                        yield True
                        return
            time.sleep(_SLOT_POLL_S)
        yield False

    def drop(self, key: str) -> None:
        """Gives up a file that was found damaged."""
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        readable = re.sub(r"[^\w-]+", "_", key.rstrip("/").rpartition("/")[2])[-60:]
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}-{readable}"

    def _make(self, path: Path, make: Make) -> None:
        """Under the lock of this file."""
        part = _beside(path, "part")
        try:
            path.unlink(missing_ok=True)
            _remove_parts(path)
            try:
                try:
                    make(part)
                except (OSError, InputError) as error:
                    if not isinstance(error, OSError) or self._full(error) is None:
                        _write_failure(path, error)
                    raise
                # First the size, then the file: a size without its file is nothing, a file with another's size is damaged.
                size = _beside(path, "part-size")
                size.write_text(f"{part.stat().st_size}\n")
                size.replace(_beside(path, "size"))
                part.replace(path)
                _beside(path, "failed").unlink(missing_ok=True)
            finally:
                _remove_parts(path)
            self._give_up()
        except OSError as error:
            full = self._full(error)
            if full is None:
                raise
            raise full from error

    def _give_up(self) -> None:
        """Removes the least recently used files until the rest keeps to the limit, and what dead writers left behind.

        Nothing whose lock is held is touched: neither what is being written, nor what the caller has just made.
        """
        with self._locked(self.folder / "evict", wait=True):
            used: list[tuple[int, int, Path]] = []
            total_bytes = 0
            sizes: set[Path] = set()
            left: set[Path] = set()  # what has a lock, a part, or a size without its file
            for entry in os.scandir(self.folder):
                name, dot, suffix = entry.name.partition(".")
                if not _NAME.fullmatch(name):  # not ours
                    continue
                try:
                    stat = entry.stat()
                except FileNotFoundError:
                    continue
                path = self.folder / name
                if suffix == "size":
                    sizes.add(path)
                    continue
                total_bytes += stat.st_size
                if dot:
                    left.add(path)
                else:
                    used.append((stat.st_mtime_ns, stat.st_size, path))
            left |= sizes - {path for _, _, path in used}
            for path in left:
                total_bytes -= self._clean(path)
            for _, size_bytes, path in sorted(used):
                if total_bytes <= self.size_bytes:
                    break
                if self._remove(path):
                    total_bytes -= size_bytes

    def _clean(self, path: Path) -> int:
        """Removes the rubbish beside a file, unless somebody is making the file. Returns the bytes of its parts."""
        with self._locked(path, wait=False) as mine:
            if not mine:
                return 0
            if not path.exists():
                _beside(path, "size").unlink(missing_ok=True)
            _forget_old_failure(path)
            return _remove_parts(path)

    def _remove(self, path: Path) -> bool:
        """Removes a file, unless somebody is making it anew."""
        with self._locked(path, wait=False) as mine:
            if mine:
                path.unlink(missing_ok=True)
                _beside(path, "size").unlink(missing_ok=True)
            return mine

    @contextmanager
    def _locked(self, path: Path, wait: bool) -> Iterator[bool]:
        """The lock of a file; gives whether it was had. Its holder removes the lock file, so a lock counts only while its file is that of its name."""
        lock = _beside(path, "lock")
        while True:
            try:
                descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise self._unusable(error) from error
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
                    raise self._unusable(error) from error
                raise
            if mine:
                break
            _let_go(descriptor)
        try:
            yield True
        finally:
            lock.unlink(missing_ok=True)
            _let_go(descriptor)

    def _full(self, error: OSError) -> InputError | None:
        if error.errno not in _FULL:
            return None
        free_gb = shutil.disk_usage(self.folder).free / 1e9
        return InputError(
            f"data.shards.cache: {self.folder} is full ({error.strerror}; {free_gb:.1f} GB are free): set data.shards.cache_gb, now "
            f"{self.size_bytes / 1e9:g}, to what it can hold, or give a folder with more room"
        )

    def _unusable(self, error: OSError) -> InputError:
        if error.errno in _UNLOCKABLE:
            return InputError(
                f"data.shards.cache: {self.folder} does not know file locks ({error.strerror}): give a folder on a local disk"
            )
        return self._full(error) or InputError(
            f"data.shards.cache: {self.folder} cannot be written ({error.strerror}): give a folder that can"
        )


def _beside(path: Path, suffix: str) -> Path:
    return path.parent / f"{path.name}.{suffix}"


def _write_failure(path: Path, error: Exception) -> None:
    said = {"time": time.time(), "input": isinstance(error, InputError), "message": str(error)}
    with suppress(OSError):
        _beside(path, "failed").write_text(json.dumps(said))


def _forget_old_failure(path: Path) -> None:
    failed = _beside(path, "failed")
    with suppress(FileNotFoundError):
        if path.exists() or failed.stat().st_mtime < time.time() - _FAILURE_S:
            failed.unlink()


def _raise_failure_since(path: Path, asked: float) -> None:
    """Raises what a maker said that failed after `asked`, in seconds of this machine's clock."""
    try:
        said = json.loads(_beside(path, "failed").read_text())
        when, of_input, message = float(said["time"]), bool(said["input"]), str(said["message"])
    except (OSError, ValueError, LookupError, TypeError):
        return
    if when >= asked:
        raise InputError(message) if of_input else FailedElsewhere(message)


def _whole(path: Path) -> bool:
    try:
        return path.stat().st_size == int(_beside(path, "size").read_bytes())
    except (OSError, ValueError):
        return False


def _remove_parts(path: Path) -> int:
    """Removes what a writer left, its own files beside its part too. Returns their bytes."""
    removed_bytes = 0
    for part in path.parent.glob(f"{path.name}.part*"):
        with suppress(FileNotFoundError):
            removed_bytes += part.stat().st_size
            part.unlink()
    return removed_bytes


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
