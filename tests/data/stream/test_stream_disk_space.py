"""The limits of the shard cache: which files go when the disk is full, when they are in use, and
when the limit is near.
"""

import multiprocessing
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from distill.data.stream.cache import ShardCache
from distill.data.stream.opening import cache_folder
from distill.errors import InputError
from distill.recipe.schema import ShardsSpec

LARGE = 1 << 40


def filled(cache: ShardCache, key: str, size: int) -> Path:
    return cache.file(key, lambda path: path.write_bytes(bytes(size)) and None)


def there(cache: ShardCache, count: int) -> list[int]:
    return [number for number in range(count) if cache.has(f"{number}")]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk wants the right to mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_on_a_full_disk_files_in_use_free_no_space_and_others_go(disk: Path) -> None:
    cache = ShardCache(disk / "cache", LARGE)
    with ExitStack() as held:
        for number in range(9):
            file = held.enter_context(filled(cache, f"{number}", 100_000).open("rb"))
            if number >= 4:  # a process has the oldest open
                file.close()
        assert filled(cache, "late", 200_000).stat().st_size == 200_000
    assert there(cache, 9) != []
    assert not set(there(cache, 9)) & {0, 1, 2, 3, 4}


def test_a_full_quota_is_met_though_the_disk_has_space(tmp_path: Path) -> None:
    """Two files of the largest size, which is all that can be known."""
    cache = ShardCache(tmp_path / "cache", LARGE)
    for number in range(9):
        filled(cache, f"{number}", 1000 if number else 3000)
    assert shutil.disk_usage(tmp_path).free > 6000
    cache._evict(full=True)
    assert there(cache, 9) == [4, 5, 6, 7, 8]


def _too_large(cache: ShardCache) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        filled(cache, "large", 4000)
    except InputError:
        os._exit(0)
    os._exit(1)


def test_a_file_too_large_for_its_owner_costs_no_other(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", LARGE)
    for number in range(3):
        filled(cache, f"{number}", 500)
    asker = multiprocessing.get_context("fork").Process(target=_too_large, args=(cache,))
    asker.start()
    asker.join(60)
    assert asker.exitcode == 0
    assert there(cache, 3) == [0, 1, 2]


def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who makes the folder of the default name first could put shards of his own into it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = cache_folder(ShardsSpec(), Path())
    assert folder.stat().st_mode & 0o777 == 0o700
    try:
        os.chown(folder, os.getuid() + 1, -1)
    except PermissionError:
        pytest.skip("to give a folder away wants the right to")
    with pytest.raises(InputError, match="belongs to another user: give a folder of your own"):
        cache_folder(ShardsSpec(), Path())


def test_near_its_limit_a_cache_looks_after_each_file(tmp_path: Path) -> None:
    """Though a file be smaller than what may else be written unseen."""
    cache = ShardCache(tmp_path / "cache", 100_000)
    filled(cache, "0", 60_000)
    filled(cache, "1", 39_950)
    filled(cache, "2", 90)
    assert there(cache, 3) == [1, 2]
