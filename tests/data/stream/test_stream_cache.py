"""The shard cache: one of many processes makes a file, complete or absent after any kill."""

import fcntl
import json
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from cache_makers import FORK, LARGE, names, never, stuck, until, writing

from distill.data.stream.cache import ShardCache
from distill.data.stream.failures import FailedElsewhereError
from distill.errors import InputError


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
    assert cache.begin(key, writing(b"again"))
    assert cache.file(key, never).read_bytes() == b"again"


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
    (cache.folder / "notes.part").write_text("another program's")
    (cache.folder / "README").write_text("another program's, and larger than the limit")
    cache.file("c", writing(b"c"))
    # What is left belongs to the whole, to b, which is still being written, to c, and to another
    # program.
    assert names(cache) == ["", "", "", "lock", "part", "part", "part.index", "size", "size"]
    assert cache.has("whole")
    assert cache.has("c")
    assert not cache.begin("b", never)


def test_a_stale_lock_stops_no_process(tmp_path: Path) -> None:
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
    assert tried(ShardCache(cache.folder, LARGE)), "another command tries again"
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
