"""The shard cache: made once among many, whole or absent after any kill, within its limit, and
plain about a folder it cannot use.
"""

import fcntl
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from distill.data.stream.cache import Make, ShardCache
from distill.data.stream.failures import FailedElsewhereError
from distill.errors import InputError

# Forked: the children share nothing with the test but the folder, and start in milliseconds.
FORK = multiprocessing.get_context("fork")
LARGE = 1 << 40


def writing(content: bytes, log: Path | None = None) -> Make:
    """Writes the content in two halves; a line into the log for each time it is called."""

    def make(path: Path) -> None:
        if log is not None:
            with log.open("ab", buffering=0) as file:
                file.write(b"made\n")
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            file.write(content[len(content) // 2 :])

    return make


def never(path: Path) -> None:
    raise AssertionError(f"made again: {path}")


@pytest.fixture
def started() -> Iterator[Callable[..., BaseProcess]]:
    """started(function, *arguments): a process that does not outlive the test."""
    processes: list[BaseProcess] = []

    def start(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
        process = FORK.Process(target=function, args=arguments)
        process.start()
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def stuck(cache: ShardCache, key: str, ready: Path) -> None:
    """Begins to write, and never ends."""

    def make(path: Path) -> None:
        path.write_bytes(b"half")
        path.with_name(f"{path.name}.index").write_bytes(b"a file of its own beside")
        ready.touch()
        time.sleep(3600)

    cache.file(key, make)


def names(cache: ShardCache) -> list[str]:
    return sorted(path.name.partition(".")[2] for path in cache.folder.iterdir())


def test_a_file_is_made_once_and_kept(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "deep" / "cache", LARGE)
    key = "http://host/ü folder/a shard.tar?x=1"
    assert not cache.has(key)
    path = cache.file(key, writing(b"content"))
    assert path.read_bytes() == b"content"
    assert cache.has(key)
    again: ShardCache = pickle.loads(pickle.dumps(cache))
    assert again.file(key, never) == path
    assert not again.begin(key, never)
    assert cache.file("http://other/a shard.tar?x=1", writing(b"other")).read_bytes() == b"other"
    assert path.read_bytes() == b"content"
    assert names(cache) == ["", "", "size", "size"]
    cache.drop(key)
    assert not cache.has(key)
    cache.drop(key)
    assert cache.begin(key, writing(b"anew"))
    assert cache.file(key, never).read_bytes() == b"anew"


@pytest.mark.parametrize("how", ["processes", "threads"])
def test_of_eight_that_ask_one_makes(tmp_path: Path, how: str) -> None:
    cache, log, go = ShardCache(tmp_path / "cache", LARGE), tmp_path / "log", tmp_path / "go"
    content = os.urandom(1_000_000)

    def ask(number: int) -> None:
        until(go.exists)
        for key in ("a", "b"):
            seen = cache.file(key, writing(content, log)).read_bytes()
            (tmp_path / f"{key}{number}").write_bytes(b"right" if seen == content else b"wrong")

    kind: Any = FORK.Process if how == "processes" else threading.Thread
    askers = [kind(target=ask, args=(number,)) for number in range(8)]
    for asker in askers:
        asker.start()
    go.touch()
    for asker in askers:
        asker.join()
    assert log.read_text() == "made\n" * 2
    assert [(tmp_path / f"{key}{number}").read_bytes() for key in "ab" for number in range(8)] == [
        b"right"
    ] * 16


def test_after_kill_nine_a_waiter_makes_it(
    tmp_path: Path, started: Callable[..., BaseProcess]
) -> None:
    cache, ready, log = ShardCache(tmp_path / "cache", LARGE), tmp_path / "ready", tmp_path / "log"
    writer = started(stuck, cache, "a", ready)
    until(ready.exists)
    assert names(cache) == ["lock", "part", "part.index"]
    assert not cache.has("a")
    assert not cache.begin("a", never)
    waiter = started(cache.file, "a", writing(b"whole", log))
    until(lambda: " -> FLOCK" in Path("/proc/locks").read_text())  # it waits
    assert not log.exists()
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    waiter.join()
    assert waiter.exitcode == 0
    assert cache.file("a", never).read_bytes() == b"whole"
    assert names(cache) == ["", "size"]


def test_a_child_that_was_forked_meanwhile_does_not_keep_the_lock(
    tmp_path: Path, started: Callable[..., BaseProcess]
) -> None:
    cache, ready, child_is = (
        ShardCache(tmp_path / "cache", LARGE),
        tmp_path / "ready",
        tmp_path / "child",
    )

    def fork_and_stick() -> None:
        def make(path: Path) -> None:
            child = os.fork()
            if child == 0:
                signal.pause()
            child_is.write_text(str(child))
            ready.touch()
            signal.pause()

        cache.file("a", make)

    writer = started(fork_and_stick)
    until(ready.exists)
    child = int(child_is.read_text())
    try:
        writer.kill()
        writer.join()
        assert cache.begin("a", writing(b"whole"))
    finally:
        os.kill(child, signal.SIGKILL)


def test_what_the_dead_left_goes_at_the_next_file(
    tmp_path: Path, started: Callable[..., BaseProcess]
) -> None:
    cache = ShardCache(tmp_path / "cache", 50)
    whole = cache.file("whole", writing(b"whole"))
    whole.with_name(f"{whole.name}.lock").touch()  # killed just before it let go
    cache.file("dropped", writing(b"dropped"))
    cache.drop("dropped")
    for key in ("a", "b"):
        writer = started(stuck, cache, key, tmp_path / key)
        until((tmp_path / key).exists)
        if key == "a":
            writer.kill()
            writer.join()
    (cache.folder / "notes.part").write_text("somebody else's")
    (cache.folder / "README").write_text("somebody else's, and larger than the limit")
    cache.file("c", writing(b"c"))
    # What is left belongs to the whole, to b, which is still being written, to c, and to somebody
    # else.
    assert names(cache) == ["", "", "", "lock", "part", "part", "part.index", "size", "size"]
    assert cache.has("whole")
    assert cache.has("c")
    assert not cache.begin("b", never)


def test_a_stale_lock_stops_nobody(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", LARGE)
    path = cache.file("a", writing(b"a"))
    cache.drop("a")
    lock = path.with_name(f"{path.name}.lock")
    lock.touch()
    assert cache.begin("a", writing(b"a"))
    assert not lock.exists()

    # A lock on a lock file that has lost its name counts for nothing.
    cache.drop("a")
    with lock.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not cache.begin("a", never)
        lock.unlink()
        assert cache.begin("a", writing(b"a"))


def test_who_waited_for_a_lock_that_lost_its_name_asks_again(tmp_path: Path) -> None:
    """Else two would write: one with the old lock file, one with the new."""
    cache, log = ShardCache(tmp_path / "cache", LARGE), tmp_path / "log"
    path = cache.file("a", writing(b"a"))
    cache.drop("a")
    lock = path.with_name(f"{path.name}.lock")
    with lock.open("wb") as old:
        fcntl.flock(old, fcntl.LOCK_EX)
        waiter = threading.Thread(target=cache.file, args=("a", writing(b"a", log)))
        waiter.start()
        until(lambda: " -> FLOCK" in Path("/proc/locks").read_text())
        lock.unlink()
        with lock.open("wb") as new:
            fcntl.flock(new, fcntl.LOCK_EX)
            fcntl.flock(old, fcntl.LOCK_UN)
            waiter.join(0.3)
            assert not log.exists()
            lock.unlink()
    waiter.join()
    assert log.read_text() == "made\n"


def test_an_exception_of_make_leaves_nothing(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", LARGE)

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise ConnectionError("as it was raised")

    for ask in (cache.file, ShardCache(cache.folder, LARGE).begin):
        with pytest.raises(ConnectionError, match="as it was raised"):
            ask("a", fail)
        assert [path.suffix for path in cache.folder.iterdir()] == [".failed"]
    assert ShardCache(cache.folder, LARGE).file("a", writing(b"a")).read_bytes() == b"a"


@pytest.mark.parametrize(
    "error", [ConnectionError("the server is gone"), InputError("no access")], ids=["os", "input"]
)
def test_who_waited_for_a_maker_that_failed_fails_with_it(tmp_path: Path, error: Exception) -> None:
    """Each with its own retries, one after the other, would wait for minutes, whatever run it is
    of.
    """
    cache, tries, answers = ShardCache(tmp_path / "cache", LARGE), [], []
    begun = threading.Event()

    def fail(path: Path) -> None:
        tries.append(path)
        begun.set()
        deadline = time.monotonic() + 20
        while len(waiting) < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)  # until all of them wait for the lock
        raise error

    waiting: list[int] = []

    def ask(number: int) -> None:
        if number:
            begun.wait()
            waiting.append(number)
        try:
            ShardCache(cache.folder, LARGE).file("a", fail)
        except (OSError, InputError) as raised:
            answers.append(raised)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tries) == 1
    assert [str(answer) for answer in answers] == [str(error)] * 7
    elsewhere = InputError if isinstance(error, InputError) else FailedElsewhereError
    assert sum(type(answer) is elsewhere for answer in answers) >= 6
    assert cache.file("a", writing(b"a")).read_bytes() == b"a", "a new question is a new try"
    assert not list(cache.folder.glob("*.failed"))


def test_a_run_leaves_alone_what_failed_and_for_longer_each_time(tmp_path: Path) -> None:
    """A dead shard costs a run its retries once, and not once for each of its processes."""
    cache, tries = ShardCache(tmp_path / "cache", LARGE), []

    def fail(path: Path) -> None:
        tries.append(path)
        raise ConnectionError("the server is gone")

    def tried(of: ShardCache, ask: str = "file") -> bool:
        before = len(tries)
        with pytest.raises(OSError, match="the server is gone"):
            getattr(of, ask)("a", fail)
        return len(tries) > before

    def age(seconds: float) -> None:
        (failed,) = cache.folder.glob("*.failed")
        said = json.loads(failed.read_text())
        failed.write_text(json.dumps(said | {"time": time.time() - seconds}))

    worker: ShardCache = pickle.loads(pickle.dumps(cache))
    assert tried(worker)
    assert not tried(cache)
    assert not tried(worker, "begin")
    for rest_s in (60, 120, 240, 480, 600, 600):
        age(rest_s - 20)
        assert not tried(cache)
        age(rest_s + 1)
        assert tried(cache)
    assert tried(ShardCache(cache.folder, LARGE)), "another command tries anew"
    assert tried(cache), "and says nothing of this run"
    age(61)
    assert tried(cache), "nor of how often this one failed"
    (failed,) = cache.folder.glob("*.failed")
    failed.write_text("{}")  # not ours
    assert cache.file("a", writing(b"a")).read_bytes() == b"a"
    assert not list(cache.folder.glob("*.failed"))


def test_which_processes_are_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def same(folder: Path = tmp_path / "cache") -> bool:
        tries = []

        def fail(path: Path) -> None:
            tries.append(path)
            raise ConnectionError("the server is gone")

        for _ in range(2):
            with pytest.raises(OSError, match="gone"):
                ShardCache(folder, LARGE).file("a", fail)
        return len(tries) == 1

    for name in ("TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert not same()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert not same()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.setenv("SLURM_STEP_ID", "3")
    assert same(tmp_path / "slurm")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert same(tmp_path / "torchrun")
    monkeypatch.setattr(os, "getppid", lambda: 1)  # of another torchrun
    tries: list[Path] = []
    ShardCache(tmp_path / "torchrun", LARGE).file(
        "a", lambda path: (tries.append(path), path.touch())[1]
    )
    assert len(tries) == 1


def test_few_make_files_in_the_background_at_a_time(tmp_path: Path) -> None:
    cache, lock, now, most = ShardCache(tmp_path / "cache", LARGE), threading.Lock(), 0, 0

    def make(path: Path) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        path.write_bytes(b"content")
        with lock:
            now -= 1

    threads = [threading.Thread(target=cache.begin, args=(f"key {n}", make)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 2 <= most <= 16
    assert all(cache.has(f"key {n}") for n in range(40))


@pytest.mark.parametrize("damage", ["cut", "empty", "longer", "no size", "odd size"])
def test_damaged_files_are_made_anew(tmp_path: Path, damage: str) -> None:
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

    # Whoever writes alone keeps to the limit after each file, and each other process to a
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
                InputError, match=r"data\.shards\.cache: .* is full .* have open keep .*cache_gb"
            ):
                cache.file("b", writing(b"b" * 600_000))
            assert held.read() == b"a" * 600_000
        assert names(cache) == []
        # Others have filled it, and nobody has the files of the cache open: they make room, the
        # oldest first and no more of them than need be.
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


def test_kills_amid_a_crowd_with_a_small_limit(
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
