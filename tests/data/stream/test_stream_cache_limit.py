"""The limit of the shard cache, damaged files, and folders that cannot be used."""

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from cache_makers import LARGE, names, never, stuck, until, writing

from distill.data.stream.cache import ShardCache
from distill.errors import InputError


@pytest.mark.parametrize("damage", ["cut", "empty", "longer", "no size", "odd size"])
def test_damaged_files_are_made_again(tmp_path: Path, damage: str) -> None:
    cache = ShardCache(tmp_path / "cache", LARGE)
    path = cache.file("a", writing(b"content"))
    size = path.with_name(f"{path.name}.size")
    match damage:
        case "cut":
            os.truncate(path, 3)
        case "empty":
            os.truncate(path, 0)
        case "longer":
            path.write_bytes(b"content and more")
        case "no size":
            size.unlink()
        case _:
            size.write_bytes(b"")
    assert not cache.has("a")

    def make(path: Path) -> None:
        assert set(names(cache)) <= {"lock", "size"}  # nothing to stumble over
        path.write_bytes(b"content")

    for left in ("part", "part.index"):  # by a dead writer
        path.with_name(f"{path.name}.{left}").touch()
    assert cache.file("a", make).read_bytes() == b"content"
    assert cache.has("a")


def test_the_least_recently_used_go_first_and_readers_keep_them(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 3000)
    paths = {key: cache.file(key, writing(key.encode() * 1000)) for key in "abc"}
    for age, key in enumerate("bca"):  # a was used longest ago
        os.utime(paths[key], (1e9 - age, 1e9 - age))
    cache.file("a", never)  # and now b was
    cache.begin("c", never)
    with paths["b"].open("rb") as reader:
        cache.file("d", writing(b"d" * 1000))
        assert [key for key in "abcd" if cache.has(key)] == ["a", "c", "d"]
        assert reader.read() == b"b" * 1000
    cache.file("e", writing(b"e" * 2500))
    assert [key for key in "abcde" if cache.has(key)] == ["e"]
    cache.file("f", writing(b"f" * 9000))  # larger than all: what is asked for is there
    assert [key for key in "abcdef" if cache.has(key)] == ["f"]
    assert names(cache) == ["", "size"]


def test_what_is_being_written_counts_and_is_spared(
    tmp_path: Path, started: Callable[..., BaseProcess]
) -> None:
    cache = ShardCache(tmp_path / "cache", 40)
    cache.file("a", writing(b"a" * 10))
    started(stuck, cache, "b", tmp_path / "ready")  # 4 and 24 bytes
    until((tmp_path / "ready").exists)
    cache.file("c", writing(b"c" * 10))
    assert not cache.has("a")
    assert cache.has("c")
    assert {"part", "part.index"} <= set(names(cache))


def limited(cache: ShardCache) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        cache.file("a", writing(b"a" * 4000))
    except InputError as error:
        os._exit(0 if "data.shards.cache" in str(error) and "cache_gb" in str(error) else 2)
    os._exit(1)


def test_a_file_that_the_disk_does_not_take_is_explained(
    tmp_path: Path, started: Callable[..., BaseProcess]
) -> None:
    cache = ShardCache(tmp_path / "cache", LARGE)
    asker = started(limited, cache)
    asker.join()
    assert asker.exitcode == 0
    assert names(cache) == []


def test_many_small_files_do_not_cost_a_look_at_all_of_them_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, scandir = [], os.scandir

    def counted(*arguments: Any) -> Any:
        looks.append(arguments)
        return scandir(*arguments)

    cache = ShardCache(tmp_path / "cache", LARGE)
    monkeypatch.setattr(os, "scandir", counted)
    for number in range(200):
        cache.file(f"{number}", writing(b"x"))
    assert 3 <= len(looks) <= 5
    monkeypatch.undo()

    # A process that writes alone keeps to the limit after each file, and each other process to a
    # thousandth more.
    small = ShardCache(tmp_path / "small", 100_000)
    other = ShardCache(tmp_path / "small", 100_000)
    for number in range(600):
        by = other if number > 300 and number % 2 else small
        by.file(f"{number}", writing(b"x" * (80 if number % 7 else 9_000)))
        used_bytes = sum(path.stat().st_size for path in small.folder.iterdir() if not path.suffix)
        assert used_bytes <= 100_000 + (100 if number > 300 else 0)
    assert used_bytes > 80_000


def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk wants the right to mount one")
    try:
        cache = ShardCache(disk / "cache", LARGE)
        with cache.file("a", writing(b"a" * 600_000)).open("rb") as held:
            with pytest.raises(
                InputError, match=r"data\.shards\.cache: .* is full .* have open use .*cache_gb"
            ):
                cache.file("b", writing(b"b" * 600_000))
            assert held.read() == b"a" * 600_000
        assert names(cache) == []
        # Other programs have filled the disk, and no process has files of the cache open: the
        # oldest go, and no more than necessary.
        for number in range(9):
            cache.file(f"{number}", writing(b"x" * 100_000))
        paths = sorted(path for path in cache.folder.iterdir() if not path.suffix)
        assert len(paths) == 9
        assert cache.file("late", writing(b"x" * 200_000)).stat().st_size == 200_000
        assert not cache.has("0")
        assert cache.has("8")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/cache")):
        with pytest.raises(
            InputError, match=r"data\.shards\.cache: .* cannot be written .*: give a folder"
        ):
            ShardCache(folder, LARGE)


def churn(cache: ShardCache, seed: int) -> None:
    """Asks for files of a crowd for ever, and ends with code 1 at one that is not as it
    was made.
    """
    state = seed
    while True:
        state = (state * 1103515245 + 12345) % 2**31
        number = state // 65536 % 6
        content = bytes([number]) * (20_000 + number)
        path = cache.file(f"{number}", writing(content))
        try:
            seen = path.read_bytes()
        except FileNotFoundError:  # given up just now: the limit is smaller than what four use
            continue
        if seen != content:
            os._exit(1)


def test_kills_among_many_with_a_small_limit(
    tmp_path: Path, started: Callable[..., BaseProcess]
) -> None:
    cache = ShardCache(tmp_path / "cache", 60_000)
    crowd = [started(churn, cache, seed) for seed in range(4)]
    for turn in range(30):
        time.sleep(0.02)
        assert [process.exitcode for process in crowd] == [None] * 4
        crowd[turn % 4].kill()
        crowd[turn % 4].join()
        crowd[turn % 4] = started(churn, cache, 100 + turn)
    for process in crowd:
        process.kill()
        process.join()
    cache.file("last", writing(b"last"))
    files = [path for path in cache.folder.iterdir() if not path.suffix]
    assert set(names(cache)) == {"", "size"}
    assert sum(path.stat().st_size for path in files) <= 60_000
