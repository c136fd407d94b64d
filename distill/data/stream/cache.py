"""The local shard cache: files that the processes of a machine make once and share, the least
recently used given up first.

A folder holds, of each key, NAME (the file), NAME.size (its bytes as it was made), NAME.part (being
written), NAME.failed (why the last try to make it failed) and NAME.lock. Whoever makes a file holds
an flock on NAME.lock, which the kernel lets go when its process dies, however it dies. So a lock
file that nobody holds means nothing, and a part whose lock is free is rubbish. A file appears by
rename, after its size: what is there is whole, or shows that it is not.
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

# Background makers of a machine at a time: many more connections gain nothing, and servers take
# them for an attack.
_SLOTS = 16
_SLOT_POLL_S = 0.2
# To look through the folder takes longer the more files are in it, so a process does it after so
# many, or so much.
_UNSEEN_FILES = 64
_UNSEEN_SHARE = 0.001

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_FULL = {*_NO_ROOM, errno.EFBIG}
_NAME = re.compile(r"[0-9a-f]{24}-[\w-]*")
_UNLOCKABLE = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


class ShardCache:
    """Files by key. Plain values, so it may be pickled and forked; safe between processes and
    threads.

    It may exceed its limit by what is being written (one file a process and thread at work), by one
    file that is larger than it, by files given up while somebody has them open (those stay
    readable, and take their space, until they are closed), and by what other processes have written
    since they last looked through the folder: each at most 64 files and a thousandth of the limit.

    What could not be made is not tried again by the same run for a minute, and for longer after
    each further failure, up to ten.

    Args:
        folder: made where it is missing, for one user; on a local disk, since it is read at random
            and wants flock.
        size_bytes: the limit.
        run: what the processes of a run have in common; of the launcher if left out.

    Raises:
        InputError: the folder cannot be made, written or locked.
    """

    def __init__(self, folder: Path, size_bytes: int, run: str | None = None) -> None:
        self.folder, self.size_bytes = folder, size_bytes
        self._run = run_token() if run is None else run
        # What may still be written before the folder is looked through again.
        self._unseen_files, self._unseen_bytes = 0, 0.0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as probe:
                try_lock(probe.fileno())
        except OSError as error:
            raise self._unusable(error) from error

    def file(self, key: str, make: Make) -> Path:
        """The file of a key. Where it is missing or damaged, `make` writes it, in one process at a
        time: the others wait for it.

        Where the limit is smaller than what is in use, it may be given up again before the caller
        opens it: ask once more then.

        Args:
            key: any text that changes with the content.
            make: writes a whole file at the path it is given. What it raises is passed on, and
                leaves nothing but its message.

        Raises:
            InputError: the disk is full, or what `make` raised in the process that was waited for.
            FailedElsewhereError: the same for other errors, or the file was tried by this run a short
                while ago. Each of its processes would else try for itself, one after the other.
        """
        path = self._path(key)
        if not _whole(path):
            asked = time.time()
            with self._locked(path, wait=True):
                if not _whole(path):
                    raise_failure(_beside(path, "failed"), asked, self._run)
                    self._make(path, make)
        _touch(path)
        return path

    def has(self, key: str) -> bool:
        """Whether the file is there, and as long as it was made."""
        return _whole(self._path(key))

    def begin(self, key: str, make: Make) -> bool:
        """Makes the file, unless it is there or being made by somebody. Returns whether it was
        made. Raises as `file`.

        Waits until fewer than 16 of the machine make files in this way.
        """
        path = self._path(key)
        if _whole(path):
            _touch(path)  # it is wanted soon, so it is not the next to go
            return False
        asked = time.time()
        raise_failure(_beside(path, "failed"), asked, self._run)
        with self._slot(path) as had, self._locked(path, wait=False) as mine:
            if not had or not mine or _whole(path):
                return False
            raise_failure(_beside(path, "failed"), asked, self._run)
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
        path.unlink(missing_ok=True)
        if _beside(path, "part").exists():  # of a dead writer
            _remove_parts(path)
        try:
            try:
                made_bytes = self._written(path, make)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                self._give_up(
                    full=True
                )  # others may have filled the disk, and the limit was never reached
                made_bytes = self._written(path, make)
            self._unseen_files -= 1
            self._unseen_bytes -= made_bytes
            if self._unseen_files < 0 or self._unseen_bytes < 0:
                self._give_up()
        except OSError as error:
            full = self._full(error)
            if full is None:
                raise
            raise full from error

    def _written(self, path: Path, make: Make) -> int:
        """Makes a file and puts it into its place. Returns its bytes."""
        part, part_size = _beside(path, "part"), _beside(path, "part-size")
        try:
            make(part)
            made_bytes = part.stat().st_size
            # First the size, then the file: a size without its file is nothing, a file with
            # another's size is damaged.
            part_size.write_text(f"{made_bytes}\n")
            part_size.replace(_beside(path, "size"))
            part.replace(path)
            _beside(path, "failed").unlink(missing_ok=True)
            return made_bytes
        except (OSError, InputError) as error:
            if not isinstance(error, OSError) or error.errno not in _FULL:
                write_failure(_beside(path, "failed"), error, self._run)
            raise
        finally:
            for left in (part, part_size):
                left.unlink(missing_ok=True)

    def _give_up(self, full: bool = False) -> None:
        """Removes the least recently used files until the rest keeps to the limit, and what dead
        writers left behind.

        Nothing whose lock is held is touched: neither what is being written, nor what the caller
          has just made.

        Args:
            full: the disk is: until there is room on it for two files like the largest, too.
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
            wanted_bytes = (
                2 * max((size_bytes for _, size_bytes, _ in used), default=0) if full else 0
            )
            removed_bytes = 0
            for _, size_bytes, path in sorted(used):
                if total_bytes <= self.size_bytes and (
                    # Of a quota the disk says nothing; and what somebody has open leaves it only
                    # when it is closed.
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
        """Removes the rubbish beside a file, unless somebody is making the file. Returns the bytes
        of its parts.
        """
        with self._locked(path, wait=False) as mine:
            if not mine:
                return 0
            if path.exists():
                _beside(path, "failed").unlink(missing_ok=True)
            else:
                _beside(path, "size").unlink(missing_ok=True)
                remove_old_failure(_beside(path, "failed"))
            return _remove_parts(path)

    def _remove(self, path: Path) -> bool:
        """Removes a file, unless somebody is making it anew."""
        with self._locked(path, wait=False) as mine:
            if mine:
                path.unlink(missing_ok=True)
                _beside(path, "size").unlink(missing_ok=True)
            return mine

    def _locked(self, path: Path, wait: bool) -> AbstractContextManager[bool]:
        """The lock of a file; gives whether it was had."""
        return locked(_beside(path, "lock"), wait, self._unusable)

    def _full(self, error: OSError) -> InputError | None:
        if error.errno not in _FULL:
            return None
        free_gb = shutil.disk_usage(self.folder).free / 1e9
        return InputError(
            f"data.shards.cache: {self.folder} is full ({error.strerror}; {free_gb:.1f} GB are"
            " free, after all was given up that could be): give a folder with more room, or remove"
            " other files from its disk. Shards that processes have open keep their room until"
            f" those end, beyond data.shards.cache_gb, now {self.size_bytes / 1e9:g}: set that to"
            " less than the disk holds"
        )

    def _unusable(self, error: OSError) -> InputError:
        if error.errno in _UNLOCKABLE:
            return InputError(
                f"data.shards.cache: {self.folder} does not know file locks ({error.strerror}):"
                " give a folder on a local disk"
            )
        return self._full(error) or InputError(
            f"data.shards.cache: {self.folder} cannot be written ({error.strerror}): give a folder"
            " that can"
        )


def _beside(path: Path, suffix: str) -> Path:
    return path.parent / f"{path.name}.{suffix}"


def _touch(path: Path) -> None:
    """It was used now."""
    with suppress(OSError):  # given up meanwhile, or another user's
        os.utime(path)


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
