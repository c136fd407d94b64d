"""Checkpoints under kill -9, damaged bytes, full and read-only disks, other recipes; retention,
signals, metrics on resume.

Killed and limited writers are forks of the test process: a fresh interpreter would spend its
seconds importing torch.
"""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from distill.checkpoint import (
    CheckpointError,
    Signals,
    TrainState,
    atomic_directory,
    clean,
    current_directory,
    latest,
    load,
    prune,
    save,
    storable,
    truncate_jsonl,
)

RECIPE = "name: a\ntrain:\n  budget: 3 epochs\n  compile: false\n"
DIGEST = "d" * 64


def write(root, step, value=None, **keys):
    """A checkpoint whose every part says `value`."""
    value = step if value is None else value
    tensors = keys.pop(
        "tensors",
        {"model": {"w": torch.full((50,), float(value))}, "optimizer": {"m": torch.tensor(value)}},
    )
    arguments = {
        "values": {"value": value},
        "recipe_text": RECIPE,
        "recipe_digest": DIGEST,
        "world_size": 2,
        **keys,
    }
    return save(root, TrainState(step, step * 8), tensors=tensors, **arguments)


def newest(root, report=lambda message: None):
    """The value of the newest whole checkpoint, after checking that all its parts agree."""
    checkpoint = latest(root, DIGEST, RECIPE, report=report)
    assert checkpoint is not None
    value = checkpoint.values["value"]
    assert torch.equal(checkpoint.tensors("model")["w"], torch.full((50,), float(value)))
    assert checkpoint.tensors("optimizer")["m"].item() == value
    return value


def fork(work, limit_s=120.0):
    """Run `work(say)` in a fork; return its exit status as of os.wait, and what it said before it
    ended.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            work(lambda text: os.write(writing, f"{text}\n".encode()))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    timer = threading.Timer(limit_s, os.kill, (pid, signal.SIGKILL))
    timer.start()
    with os.fdopen(reading) as said:
        lines = said.read().splitlines()
    status = os.waitpid(pid, 0)[1]
    timer.cancel()
    return status, lines


def die_before_event(number):
    """kill -9 this process right before its `number`-th file operation."""
    watched = {
        "open",
        "os.rename",
        "os.mkdir",
        "os.remove",
        "os.rmdir",
        "os.scandir",
        "shutil.rmtree",
    }
    count = 0

    def hook(event, args):
        nonlocal count
        if event in watched:
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@pytest.fixture
def no_fsync(monkeypatch):
    """A killed process leaves the kernel's cache alone, so only time is lost here; a power cut is
    another test's.
    """
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def kill_at_every_event(prepare, work, check):
    """Kill `work` before its first, second, ... file operation, each time from a fresh start, until
    it survives.
    """
    for number in range(1, 1000):
        prepare()

        def killed(say, number=number):
            die_before_event(number)
            work(say)

        status, said = fork(killed)
        assert status in (0, signal.SIGKILL), (number, status)
        check(said)
        if status == 0:
            return number
    raise AssertionError("work never ends")


# ---- round trip ----------------------------------------------------------------------------------


def test_a_checkpoint_gives_back_what_was_saved(tmp_path):
    whole = torch.randn(6, 4)
    convolution = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last).weight
    tensors = {
        "a": {
            "plain": whole,
            "tied": whole,
            "slice": whole[2:4],
            "transposed": whole.T,
            "channels_last": convolution,
            "scalar": torch.tensor(3.5),
            "count": torch.tensor(7),
            "bf16": torch.randn(3).bfloat16(),
            "flag": torch.tensor([True, False]),
            "empty": torch.zeros(0, 3),
        },
        "b.c": {"x": torch.arange(3)},
    }
    values = {"float": 0.1 + 0.2, "nested": {"list": [1, None, "ü"]}}
    path = write(tmp_path / "checkpoints", 1234, tensors=tensors, values=values)
    assert path.name == "step-00001234"
    checkpoint = latest(path.parent, DIGEST, RECIPE)
    assert checkpoint.state == TrainState(1234, 9872)
    assert checkpoint.values == values
    assert (checkpoint.recipe_text, checkpoint.recipe_digest, checkpoint.world_size) == (
        RECIPE,
        DIGEST,
        2,
    )
    assert checkpoint.tensor_names == ["a", "b.c"]
    for name, group in tensors.items():
        loaded = checkpoint.tensors(name)
        assert loaded.keys() == group.keys()
        for key, tensor in group.items():
            assert loaded[key].dtype == tensor.dtype
            assert torch.equal(loaded[key], tensor), key
    with pytest.raises(CheckpointError, match=r"holds no tensors 'model', only a, b\.c"):
        checkpoint.tensors("model")


def test_the_manifest_names_versions_and_every_file(tmp_path):
    path = write(tmp_path, 3)
    manifest = json.loads((path / "manifest.json").read_text())
    assert {p.name for p in path.iterdir()} == {*manifest["files"], "manifest.json"}
    assert not [p for p in path.rglob("*") if p.suffix in (".pt", ".pkl", ".bin")]
    assert manifest["versions"].keys() >= {
        "torch",
        "timm",
        "accelerate",
        "safetensors",
        "vanillakd",
        "python",
    }
    assert manifest["time"].endswith("+00:00")


def test_storable_copies_only_what_it_must():
    whole = torch.randn(4)
    ready = storable({"a": whole, "b": whole})
    assert ready["a"].data_ptr() == whole.data_ptr() != ready["b"].data_ptr()


def test_no_checkpoint_is_none_and_a_wrong_path_is_an_error(tmp_path):
    assert latest(tmp_path / "checkpoints", DIGEST, RECIPE) is None
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        load(tmp_path / "step-00000001")


def test_files_are_on_disk_before_their_name_is(tmp_path, monkeypatch):
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


def test_a_save_killed_before_any_file_operation_leaves_a_whole_checkpoint(tmp_path, no_fsync):
    root = tmp_path / "checkpoints"

    def prepare():
        shutil.rmtree(root, ignore_errors=True)
        write(root, 1)

    def work(say):
        path = write(root, 2)
        say(2)
        prune(root, 1, newest=path)
        write(root, 2, value=3)  # replaces it
        say(3)

    seen = set()

    def check(said):
        for path in root.glob("step-*"):
            load(path)  # none is ever half written or half deleted under its name
        value = newest(root)
        assert value >= max([1, *map(int, said)])
        assert not [p for p in root.iterdir() if not p.name.startswith("step-")]
        seen.add(value)

    assert kill_at_every_event(prepare, work, check) > 40
    assert seen == {1, 2, 3}


def test_a_replacement_killed_before_any_file_operation_leaves_one_whole_directory(
    tmp_path, no_fsync
):
    path = tmp_path / "best"

    def put(version):
        with atomic_directory(path) as folder:
            (folder / "a").write_text(version)
            (folder / "sub").mkdir()
            (folder / "sub" / "b").write_text(version)

    def prepare():
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        put("old")

    def work(say):
        put("new")
        say("new")

    moved = 0

    def check(said):
        nonlocal moved
        found = current_directory(path)
        content = {(found / "a").read_text(), (found / "sub" / "b").read_text()}
        assert content in ({"old"}, {"new"})
        assert not said or content == {"new"}
        moved += found != path
        clean(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["best"]
        assert (path / "a").read_text() in content

    kill_at_every_event(prepare, work, check)
    assert moved  # the moment between the two renames was among them


@pytest.mark.parametrize("seed", range(6))
def test_saves_killed_at_any_time_leave_a_whole_checkpoint(tmp_path, seed):
    """Kills land inside safetensors' writes too, which announce no events."""
    write(tmp_path, 1)
    large = {"ballast": {"x": torch.zeros(300_000)}}

    def work(say):
        for step in range(2, 10_000):
            parts = {
                "model": {"w": torch.full((50,), float(step))},
                "optimizer": {"m": torch.tensor(step)},
                **large,
            }
            path = write(tmp_path, step, tensors=parts)
            say(step)
            prune(tmp_path, 1, newest=path)

    status, said = fork(work, limit_s=random.Random(seed).uniform(0.05, 0.5))
    assert status == signal.SIGKILL
    assert newest(tmp_path) >= max([1, *map(int, said)])


def test_an_error_inside_leaves_what_was_there(tmp_path):
    path = tmp_path / "best"
    with atomic_directory(path) as folder:
        (folder / "a").write_text("old")

    def failing():
        with atomic_directory(path) as folder:
            (folder / "a").write_text("new")
            raise KeyError("mistake")

    with pytest.raises(KeyError, match="mistake"):
        failing()
    assert (path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


# ---- damage --------------------------------------------------------------------------------------

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "recipe.yaml", "manifest.json")


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x01
    file.write_bytes(content)


def shorten(file):
    file.write_bytes(file.read_bytes()[:-3])


@pytest.mark.parametrize("damage", [flip, shorten, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, name, damage):
    for step in (1, 2, 3):
        write(tmp_path, step)
    damage(tmp_path / "step-00000003" / name)
    messages = []
    assert newest(tmp_path, messages.append) == 2
    assert len(messages) == 1
    assert (
        f"step-00000003/{name}: {'missing' if damage is Path.unlink else 'damaged'}" in messages[0]
    )
    with pytest.raises(CheckpointError, match=name):
        load(tmp_path / "step-00000003")


def test_every_byte_of_a_manifest_counts(tmp_path):
    path = write(tmp_path, 1)
    file = path / "manifest.json"
    original = file.read_bytes()
    expected = load(path)
    for index in range(0, len(original), 7):
        file.write_bytes(original[:index] + bytes([original[index] ^ 0x01]) + original[index + 1 :])
        try:
            checkpoint = load(path)
        except CheckpointError:
            continue
        assert checkpoint == expected  # a blank between tokens


def test_when_all_are_damaged_nothing_starts_again_in_silence(tmp_path):
    for step in (1, 2):
        flip(write(tmp_path, step) / "state.json")
    with pytest.raises(
        CheckpointError,
        match=r"(?s)no checkpoint is whole.*step-00000002.*step-00000001.*resume=never",
    ):
        latest(tmp_path, DIGEST, RECIPE)


def test_another_format_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.checkpoint.store.FORMAT", 2)
    write(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="written in format 2 by version"):
        latest(tmp_path, DIGEST, RECIPE)


# ---- disks that refuse ---------------------------------------------------------------------------


@contextmanager
def small_disk(folder, size):
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


def assert_refused(root, match, **keys):
    with pytest.raises(CheckpointError, match=match):
        write(root, 2, **keys)
    assert [p.name for p in root.iterdir()] == ["step-00000001"]
    assert newest(root) == 1


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        root = disk / "checkpoints"
        write(root, 1)
        assert_refused(
            root,
            r"no room left to write it \(0|1 MiB free there\).*Free some room.*output=",
            tensors=BALLAST,
        )
        (disk / "filler").write_bytes(b"0" * (shutil.disk_usage(disk).free - 8192))
        assert_refused(root, "no room left", tensors={}, recipe_text="x" * 50_000)


def test_a_read_only_disk_keeps_the_checkpoint_before(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        write(disk, 1)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert_refused(disk, r"cannot be written: Read-only file system.*output=")


def test_a_file_size_limit_is_a_full_disk(tmp_path):
    write(tmp_path, 1)

    def work(say):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            write(tmp_path, 2, tensors=BALLAST)
        except CheckpointError as error:
            say(error)

    status, said = fork(work)
    assert status == 0
    assert "no room left to write it" in said[0]
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO])
def test_an_error_that_comes_late_from_fsync(tmp_path, monkeypatch, number):
    """Network file systems report a full disk only when the data is flushed."""
    write(tmp_path, 1)

    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    room = number in (errno.ENOSPC, errno.EDQUOT)
    assert_refused(
        tmp_path, "no room left" if room else f"cannot be written: {os.strerror(number)}"
    )


def test_a_path_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"Not a directory|File exists"):
        write(tmp_path / "file" / "checkpoints", 1)


# ---- another recipe ------------------------------------------------------------------------------


def test_another_recipe_names_the_keys(tmp_path):
    write(tmp_path, 1)
    other = (
        "name: b\noutput: elsewhere\ntrain:\n  budget: 5 epochs\n  compile: true\n  seed: [1, 2]\n"
    )
    with pytest.raises(CheckpointError) as caught:
        latest(tmp_path, "e" * 64, other)
    message = str(caught.value)
    assert '  train.budget: "3 epochs" -> "5 epochs"\n' in message
    assert "  train.seed: (absent) -> [1, 2]\n" in message
    assert message.count("->") == 2  # name, output and compile are no part of what a run is
    assert "output=" in message
    assert "resume=never" in message


def test_many_differences_are_counted(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(CheckpointError, match="and 13 more") as caught:
        latest(tmp_path, "e" * 64, RECIPE + "".join(f"key{i}: {i}\n" for i in range(21)))
    assert str(caught.value).count("->") == 8


def test_another_digest_without_another_key_points_at_the_version(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(CheckpointError, match="no key differs by name; version"):
        latest(tmp_path, "e" * 64, RECIPE)


# ---- retention -----------------------------------------------------------------------------------


def names(root):
    return sorted(p.name for p in root.iterdir())


def test_the_last_are_kept_and_strangers_left_alone(tmp_path):
    (tmp_path / "notes").mkdir()
    for step in (5, 90_000_000, 100_000_000, 20):
        path = write(tmp_path, step)
    path = write(tmp_path, 200_000_000)
    removed = prune(tmp_path, 2, newest=path)
    assert names(tmp_path) == ["notes", "step-100000000", "step-200000000"]
    assert {p.name for p in removed} == {"step-00000005", "step-00000020", "step-90000000"}


def test_a_damaged_later_checkpoint_does_not_push_out_the_good_ones(tmp_path):
    for step in (1, 3):
        write(tmp_path, step)
    flip(tmp_path / "step-00000003" / "state.json")
    assert newest(tmp_path) == 1
    prune(tmp_path, 1, newest=write(tmp_path, 2))
    assert names(tmp_path) == ["step-00000002"]


def test_what_a_killed_writer_left_goes_at_the_next_save_and_resume(tmp_path):
    for act in (lambda: write(tmp_path, 2), lambda: latest(tmp_path, DIGEST, RECIPE)):
        (tmp_path / ".tmp-step-00000009-1").mkdir()
        (tmp_path / ".tmp-step-00000009-1" / "model.safetensors").write_text("half")
        act()
        assert names(tmp_path) == ["step-00000002"]


def test_leftovers_of_one_name_are_cleaned_and_nothing_of_another(tmp_path):
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


# ---- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_noted_and_handlers_return(number):
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    with Signals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number.name
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == number.name
    assert before == {n: signal.getsignal(n) for n in before}


def test_the_second_interrupt_is_not_waited_for():
    def impatient():
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.received == "SIGINT"
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        impatient()
    assert signal.getsignal(signal.SIGINT) is before is not signal.SIG_IGN


def test_an_interrupt_that_was_ignored_stays_ignored():
    """As a shell starts what runs in the background; SIGTERM stops it."""

    def background(say):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            say(str(signals.received))
            os.kill(os.getpid(), signal.SIGTERM)
            say(str(signals.received))
        say(str(signal.getsignal(signal.SIGINT) is signal.SIG_IGN))

    assert fork(background) == (0, ["None", "SIGTERM", "True"])


def test_forked_workers_die_of_sigterm_and_leave_the_rest_to_their_parent():
    with Signals() as signals:

        def worker(say):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGUSR1)
            say("alive")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

        assert fork(worker) == (signal.SIGTERM, ["alive"])
        assert signals.received is None


# ---- metrics on resume ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected", "dropped"),
    [
        ('{"step": 1}\n{"step": 2}\n{"step": 3}\n', '{"step": 1}\n{"step": 2}\n', 1),
        ('{"step": 1}\n{"step": 2, "lo', '{"step": 1}\n', 1),
        (
            '{"event": "start"}\n{"step": 1, "x": 0.10}',
            '{"event": "start"}\n{"step": 1, "x": 0.10}\n',
            0,
        ),
        ('{"step": 1, "lo{"step": 2}\n{"step": 2}\n\n7\n', '{"step": 2}\n', 3),
        ('{"step": 3}\n', "", 1),
        ("", "", 0),
    ],
)
def test_metrics_after_the_resumed_step_and_torn_lines_go(tmp_path, text, expected, dropped):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    assert truncate_jsonl(path, 2) == dropped
    assert path.read_text() == expected
    assert names(tmp_path) == ["metrics.jsonl"]


def test_metrics_that_need_no_change_are_not_rewritten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert truncate_jsonl(path, 2) == 0
    path.write_text('{"step": 1}\n')
    before = path.stat()
    assert truncate_jsonl(path, 2) == 0
    assert path.stat().st_ino == before.st_ino


def test_metrics_survive_a_kill(tmp_path):
    path = tmp_path / "metrics.jsonl"
    old = "".join(f'{{"step": {step}}}\n' for step in range(5))

    def check(said):
        assert path.read_text() in (old, '{"step": 0}\n{"step": 1}\n')

    kill_at_every_event(lambda: path.write_text(old), lambda say: truncate_jsonl(path, 1), check)
