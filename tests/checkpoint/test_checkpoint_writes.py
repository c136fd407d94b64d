"""Writes of checkpoints and directories: kill -9, full and read-only disks, power loss."""

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Never

import pytest
import torch
from forks import Say, fork, kill_at_every_event
from stored import names, newest, write

from distill.checkpoint.store import load, prune
from distill.files import WriteError, atomic_directory, clean, current_directory


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process leaves the kernel's cache alone, so only time is lost here; a power cut is
    another test's.
    """
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def test_files_are_on_disk_before_their_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1]
    )
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("rename"), rename(a, b))[1])
    path = write(tmp_path, 1)
    renamed = events.index("rename")
    tmp = str(tmp_path / f".tmp-{path.name}-{os.getpid()}")
    assert {f"{tmp}/{file.name}" for file in path.iterdir()} | {tmp} <= set(events[:renamed])
    assert str(tmp_path) in events[renamed:]


# ---- kill -9 -------------------------------------------------------------------------------------


def test_a_save_killed_before_any_file_operation_leaves_a_whole_checkpoint(
    tmp_path: Path, no_fsync: None
) -> None:
    root = tmp_path / "checkpoints"

    def prepare() -> None:
        shutil.rmtree(root, ignore_errors=True)
        write(root, 1)

    def work(say: Say) -> None:
        path = write(root, 2)
        say(2)
        prune(root, 1, newest=path)
        write(root, 2, value=3)  # replaces it
        say(3)

    seen = set()

    def check(lines: list[str]) -> None:
        for path in root.glob("step-*"):
            load(path)  # none is ever half written or half deleted under its name
        value = newest(root)
        assert value >= max([1, *map(int, lines)])
        assert not [p for p in root.iterdir() if not p.name.startswith("step-")]
        seen.add(value)

    assert kill_at_every_event(prepare, work, check) > 40
    assert seen == {1, 2, 3}


def test_a_replacement_killed_before_any_file_operation_leaves_one_whole_directory(
    tmp_path: Path, no_fsync: None
) -> None:
    path = tmp_path / "best"

    def put(version: str) -> None:
        with atomic_directory(path) as folder:
            (folder / "a").write_text(version)
            (folder / "sub").mkdir()
            (folder / "sub" / "b").write_text(version)

    def prepare() -> None:
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        put("old")

    def work(say: Say) -> None:
        put("new")
        say("new")

    moved = 0

    def check(lines: list[str]) -> None:
        nonlocal moved
        found = current_directory(path)
        content = {(found / "a").read_text(), (found / "sub" / "b").read_text()}
        assert content in ({"old"}, {"new"})
        assert not lines or content == {"new"}
        moved += found != path
        clean(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["best"]
        assert (path / "a").read_text() in content

    kill_at_every_event(prepare, work, check)
    assert moved  # the moment between the two renames was among them


@pytest.mark.parametrize("seed", range(6))
def test_saves_killed_at_any_time_leave_a_whole_checkpoint(tmp_path: Path, seed: int) -> None:
    """Kills land inside safetensors' writes too, which announce no events."""
    write(tmp_path, 1)
    large = {"ballast": {"x": torch.zeros(300_000)}}

    def work(say: Say) -> None:
        for step in range(2, 10_000):
            parts = {
                "model": {"w": torch.full((50,), float(step))},
                "optimizer": {"m": torch.tensor(step)},
                **large,
            }
            path = write(tmp_path, step, tensors=parts)
            say(step)
            prune(tmp_path, 1, newest=path)

    status, lines = fork(work, limit_s=random.Random(seed).uniform(0.05, 0.5))
    assert status == signal.SIGKILL
    assert newest(tmp_path) >= max([1, *map(int, lines)])


def test_an_error_inside_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "best"
    with atomic_directory(path) as folder:
        (folder / "a").write_text("old")

    def failing() -> Never:
        with atomic_directory(path) as folder:
            (folder / "a").write_text("new")
            raise KeyError("mistake")

    with pytest.raises(KeyError, match="mistake"):
        failing()
    assert (path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_leftovers_of_one_name_are_cleaned_and_nothing_of_another(tmp_path: Path) -> None:
    for name in (".tmp-kd-2-77", ".tmp-mine", ".tmp-", ".tmp-kd-77", ".tmp-kd-77.123"):
        (tmp_path / name).mkdir()
    clean(tmp_path, "kd")
    assert names(tmp_path) == [
        ".tmp-",
        ".tmp-kd-2-77",
        ".tmp-mine",
    ]  # another writer's, and no writer's
    clean(tmp_path)
    assert names(tmp_path) == [".tmp-", ".tmp-mine"]


# ---- disks that refuse ---------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True
    )
    if made.returncode:
        pytest.skip("a small disk wants the right to mount one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


BALLAST = {"model": {"w": torch.zeros(1_000_000)}}


def assert_refused(root: Path, match: str, **keys: Any) -> None:
    with pytest.raises(WriteError, match=match):
        write(root, 2, **keys)
    assert [p.name for p in root.iterdir()] == ["step-00000001"]
    assert newest(root) == 1


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        root = disk / "checkpoints"
        write(root, 1)
        assert_refused(
            root,
            r"no space left to write it \(0|1 MiB free there\).*Free some space.*output=",
            tensors=BALLAST,
        )
        (disk / "filler").write_bytes(b"0" * (shutil.disk_usage(disk).free - 8192))
        assert_refused(root, "no space left", tensors={}, recipe_text="x" * 50_000)


def test_a_read_only_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        write(disk, 1)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert_refused(disk, r"cannot be written: Read-only file system.*output=")


def test_a_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    write(tmp_path, 1)

    def work(say: Say) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            write(tmp_path, 2, tensors=BALLAST)
        except WriteError as error:
            say(error)

    status, lines = fork(work)
    assert status == 0
    assert "no space left to write it" in lines[0]
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO])
def test_an_error_that_comes_late_from_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Network file systems report a full disk only when the data is flushed."""
    write(tmp_path, 1)

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    is_full = number in (errno.ENOSPC, errno.EDQUOT)
    assert_refused(
        tmp_path, "no space left" if is_full else f"cannot be written: {os.strerror(number)}"
    )


def test_a_path_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"Not a directory|File exists"):
        write(tmp_path / "file" / "checkpoints", 1)


def test_a_link_to_a_folder_is_replaced_and_its_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far/mine").touch()
    (tmp_path / "out").symlink_to("far")
    with atomic_directory(tmp_path / "out") as folder:
        (folder / "new").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["mine"]
