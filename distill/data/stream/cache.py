"""The local shard cache: the processes of a machine make each file once and share it; the least
recently used files are removed first.

For each key a folder holds NAME (the file), NAME.size (its size in bytes), NAME.part (while it is
written), NAME.failed (why the last try failed) and NAME.lock. The process that makes a file holds
an flock on NAME.lock, which the kernel releases when the process dies, however it dies. So a lock
file without a lock means nothing, and a part without a lock can be removed. A file is renamed into
place after its size is written: what is there is either complete or can be seen not to be.
"""

import errno
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from distill.data.locks import locked, try_lock
from distill.data.stream.failures import raise_failure, remove_old_failure, run_token, write_failure
from distill.errors import InputError

Make = Callable[[Path], None]

# Processes and threads of a machine that make files in the background at the same time: many more
# connections gain nothing, and servers take them for an attack.
_SLOTS = 16
_SLOT_POLL_S = 0.2
# Listing the folder takes longer the more files are in it, so a process lists it only after it has
# written this many files, or this share of the limit.
_UNSEEN_FILES = 64
_UNSEEN_SHARE = 0.001

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_FULL = {*_NO_SPACE, errno.EFBIG}
_NAME = re.compile(r"[0-9a-f]{24}-[\w-]*")
_UNLOCKABLE = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


class ShardCache:
    """Files by key. Holds plain values, so it may be pickled and forked; safe between processes and
    threads.

    It may exceed its limit by the files being written (one for each process and thread), by one
    file larger than the limit, by removed files that a process still has open (they stay readable
    and use disk space until closed), and by what other processes have written since they last
    listed the folder: for each process at most 64 files and a thousandth of the limit.

    After a failure the same run does not try to make that file for a minute, and for longer after
    each further failure, up to ten minutes.

    Args:
        folder: created if missing, for one user; on a local disk, since it is read at random and
            needs flock.
        size_bytes: the limit.
        run: a token that the processes of a run share; from the launcher if None.

    Raises:
        InputError: the folder cannot be created, written or locked.
    """

    def __init__(self, folder: Path, size_bytes: int, run: str | None = None) -> None:
        self.folder, self.size_bytes = folder, size_bytes
        self._run = run_token() if run is None else run
        # What may still be written before the folder is listed again.
        self._unseen_files, self._unseen_bytes = 0, 0.0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as probe:
                try_lock(probe.fileno())
        except OSError as error:
            raise self._unusable(error) from error

    def file(self, key: str, make: Make) -> Path:
        """The file of a key. If it is missing or damaged, one process calls `make` to write it, and
        the others wait.

        If the limit is smaller than what is in use, the file may be removed again before the caller
        opens it; call again in that case.

        Args:
            key: any text that changes with the content.
            make: writes a complete file at the path it is given. What it raises is passed on; only
                its message is kept.

        Raises:
            InputError: the disk is full, or another process waited for raised it in `make`.
            FailedElsewhereError: the same for other errors, or this run failed to make the file a
                short while ago. Without it each of its processes would try, one after the other.
        """
        path = self._path(key)
        if not _is_complete(path):
            since = time.time()
            with self._locked(path, wait=True):
                if not _is_complete(path):
                    raise_failure(_sibling(path, "failed"), since, self._run)
                    self._make(path, make)
        _touch(path)
        return path

    def has(self, key: str) -> bool:
        """Whether the file is there and has the size it was made with."""
        return _is_complete(self._path(key))

    def begin(self, key: str, make: Make) -> bool:
        """Make the file unless it is there or another process is making it. Returns whether this
        call made it. Raises as `file`.

        Waits while 16 processes and threads of the machine make files in this way.
        """
        path = self._path(key)
        if _is_complete(path):
            _touch(path)  # it is needed soon, so it is not the next to be removed
            return False
        since = time.time()
        raise_failure(_sibling(path, "failed"), since, self._run)
        with self._slot(path) as has_slot, self._locked(path, wait=False) as is_mine:
            if not has_slot or not is_mine or _is_complete(path):
                return False
            raise_failure(_sibling(path, "failed"), since, self._run)
            self._make(path, make)
            return True

    @contextmanager
    def _slot(self, path: Path) -> Iterator[bool]:
        """One of the machine's slots for making files in the background; False when the file has
        been made meanwhile.
        """
        while not _is_complete(path):
            for number in range(_SLOTS):
                with self._locked(self.folder / f"slot-{number}", wait=False) as is_mine:
                    if is_mine:
                        yield True
                        return
            time.sleep(_SLOT_POLL_S)
        yield False

    def drop(self, key: str) -> None:
        """Removes a file that was found damaged."""
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        readable = re.sub(r"[^\w-]+", "_", key.rstrip("/").rpartition("/")[2])[-60:]
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}-{readable}"

    def _make(self, path: Path, make: Make) -> None:
        """Make the file; its lock is held."""
        path.unlink(missing_ok=True)
        if _sibling(path, "part").exists():  # of a dead writer
            _remove_parts(path)
        try:
            try:
                made_bytes = self._write(path, make)
            except OSError as error:
                if error.errno not in _NO_SPACE:
                    raise
                # Other programs may have filled the disk before the limit was reached.
                self._evict(full=True)
                made_bytes = self._write(path, make)
            self._unseen_files -= 1
            self._unseen_bytes -= made_bytes
            if self._unseen_files < 0 or self._unseen_bytes < 0:
                self._evict()
        except OSError as error:
            full = self._full(error)
            if full is None:
                raise
            raise full from error

    def _write(self, path: Path, make: Make) -> int:
        """Make a file and rename it into place. Returns its size in bytes."""
        part, part_size = _sibling(path, "part"), _sibling(path, "part-size")
        try:
            make(part)
            made_bytes = part.stat().st_size
            # First the size, then the file: a size without its file means nothing, a file of
            # another size is damaged.
            part_size.write_text(f"{made_bytes}\n")
            part_size.replace(_sibling(path, "size"))
            part.replace(path)
            _sibling(path, "failed").unlink(missing_ok=True)
            return made_bytes
        except (OSError, InputError) as error:
            if not isinstance(error, OSError) or error.errno not in _FULL:
                write_failure(_sibling(path, "failed"), error, self._run)
            raise
        finally:
            for left in (part, part_size):
                left.unlink(missing_ok=True)

    def _evict(self, full: bool = False) -> None:
        """Remove the least recently used files until the rest is within the limit, and leftovers of
        dead processes.

        Does not touch files whose lock is held: those being written and the one the caller has just
        made.

        Args:
            full: the disk is full: remove files also until two files as large as the largest fit.
        """
        with self._locked(self.folder / "evict", wait=True):
            used: list[tuple[int, int, Path]] = []
            total_bytes = 0
            sizes: set[Path] = set()
            left: set[Path] = set()  # files with a lock, a part, or a size without a file
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
            wanted_bytes = (
                2 * max((size_bytes for _, size_bytes, _ in used), default=0) if full else 0
            )
            removed_bytes = 0
            for _, size_bytes, path in sorted(used):
                if total_bytes <= self.size_bytes and (
                    # A quota does not show in the free space; and a file that is still open takes
                    # space until it is closed.
                    not full
                    or min(removed_bytes, shutil.disk_usage(self.folder).free) >= wanted_bytes
                ):
                    break
                if self._remove(path):
                    total_bytes -= size_bytes
                    removed_bytes += size_bytes
            self._unseen_files = _UNSEEN_FILES
            self._unseen_bytes = min(_UNSEEN_SHARE * self.size_bytes, self.size_bytes - total_bytes)

    def _clean(self, path: Path) -> int:
        """Remove the leftovers of a file unless a process is making it. Returns the bytes of its
        parts.
        """
        with self._locked(path, wait=False) as is_mine:
            if not is_mine:
                return 0
            if path.exists():
                _sibling(path, "failed").unlink(missing_ok=True)
            else:
                _sibling(path, "size").unlink(missing_ok=True)
                remove_old_failure(_sibling(path, "failed"))
            return _remove_parts(path)

    def _remove(self, path: Path) -> bool:
        """Remove a file unless a process is making it again."""
        with self._locked(path, wait=False) as is_mine:
            if is_mine:
                path.unlink(missing_ok=True)
                _sibling(path, "size").unlink(missing_ok=True)
            return is_mine

    def _locked(self, path: Path, wait: bool) -> AbstractContextManager[bool]:
        """Lock a file; yields True if the lock was acquired."""
        return locked(_sibling(path, "lock"), wait, self._unusable)

    def _full(self, error: OSError) -> InputError | None:
        if error.errno not in _FULL:
            return None
        free_gb = shutil.disk_usage(self.folder).free / 1e9
        return InputError(
            f"data.shards.cache: {self.folder} is full ({error.strerror}; {free_gb:.1f} GB are"
            " free after removing all that could be removed): give a folder with more space, or"
            " remove other files from its disk. Shards that processes have open use disk space"
            f" until they end, beyond data.shards.cache_gb, now {self.size_bytes / 1e9:g}: set that"
            " to less than the disk holds"
        )

    def _unusable(self, error: OSError) -> InputError:
        if error.errno in _UNLOCKABLE:
            return InputError(
                f"data.shards.cache: {self.folder} does not support file locks ({error.strerror}):"
                " give a folder on a local disk"
            )
        return self._full(error) or InputError(
            f"data.shards.cache: {self.folder} cannot be written ({error.strerror}): give a folder"
            " that can"
        )


def _sibling(path: Path, suffix: str) -> Path:
    return path.parent / f"{path.name}.{suffix}"


def _touch(path: Path) -> None:
    """Mark a file as used now."""
    with suppress(OSError):  # removed meanwhile, or another user's
        os.utime(path)


def _is_complete(path: Path) -> bool:
    try:
        return path.stat().st_size == int(_sibling(path, "size").read_bytes())
    except (OSError, ValueError):
        return False


def _remove_parts(path: Path) -> int:
    """Remove what a writer left, including its own files next to its part. Returns their bytes."""
    removed_bytes = 0
    for part in path.parent.glob(f"{path.name}.part*"):
        with suppress(FileNotFoundError):
            removed_bytes += part.stat().st_size
            part.unlink()
    return removed_bytes
