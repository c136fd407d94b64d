"""Processes that miss a shard, or are killed while they stream: all end in time, one says why, and
the same command ends as if nothing had been.
"""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from stream_set import (
    BROKEN,
    CUT_AT,
    FOREIGN,
    HELD,
    PER_SHARD,
    TIMEOUT_S,
    Shards,
    shards_and_undisturbed,
)
from tiny import assert_equal_but_statistics, run, tensors

from distill.recipe import load_recipe
from distill.training.loop import DONE
from distill.training.plan import make_plan


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shards]:
    with shards_and_undisturbed(tmp_path_factory.mktemp("streams")) as shards:
        yield shards


def torchrun(recipe: Path, log: Path) -> subprocess.Popen[bytes]:
    """`distill train` on two processes, in a session of its own."""
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    with log.open("w") as file:
        return subprocess.Popen(
            [*launcher, "-m", "distill", "train", str(recipe)],
            env={**os.environ, "ACCELERATE_USE_CPU": "true"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def ended(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(TIMEOUT_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_shard_that_one_process_misses_ends_both(shards: Shards, tmp_path: Path) -> None:
    """It says why, and exits with 2; the other, which waits for it, ends without a word."""
    recipe = shards.run_recipe(
        "missed", BROKEN, {"seed": 13}
    )  # the second process comes to one at its fourth step
    log = tmp_path / "log"
    assert ended(torchrun(recipe, log)) == 1
    shown = log.read_text()
    assert re.findall(r"^distill.*", shown, re.MULTILINE) == [
        (
            f"distill (rank 1): {shards.server.url}/missed/shard-00010.tar: it has {CUT_AT} bytes"
            f" and {shards.paths[10].stat().st_size} were promised, in both of 2 transfers: it has"
            " changed, or is damaged where it lies: fix it or its server, or set data.unreadable"
            " to skip"
        ),
        "distill FAILED",  # torchrun's summary of its command
    ]
    assert dict(re.findall(r"rank +: (\d).*?\n.*?exitcode +: (\S+)", shown))["1"] == "2"
    assert "step 3/15" in shown
    assert "step 4/15" not in shown


def held_recipe(shards: Shards, case: str) -> tuple[Path, str]:
    """A run that comes to a shard which the server holds back, between its third step and the end
    of the first stage; and that shard.
    """
    recipe = shards.run_recipe(case, HELD)
    order = make_plan(load_recipe(recipe)).stages[0].order
    later = [set((order.batch(step).indices // PER_SHARD).tolist()) for step in range(FOREIGN)]
    number = min(set().union(*later[3:]) - set().union(*later[:3]))
    path = f"/{case}/shard-{number:05d}.tar"
    shards.server.fault(path, "hold", on=None)
    return recipe, path


def until(happened: Callable[[], bool], goes_on: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not happened():
        assert goes_on()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def comes_to(shards: Shards, output: Path, path: str) -> bool:
    """Whether three steps are saved, and a process waits for the shard."""
    return (output / "checkpoints" / "step-00000003").exists() and bool(
        shards.server.requests[path]
    )


def resumes_to_the_same_end(shards: Shards, output: Path) -> None:
    assert_equal_but_statistics(tensors(output), tensors(shards.folder / "undisturbed"))
    assert not list((shards.folder / f"cache-{output.name}").glob("*.part*")), (
        "what a killed writer left was cleared away"
    )


def test_killed_while_it_waits_for_a_shard_the_same_command_continues(shards: Shards) -> None:
    """kill -9 of a process whose workers and threads are fetching; what it left in the cache
    disturbs no process.
    """
    recipe, path = held_recipe(shards, "killed")
    child = multiprocessing.get_context("fork").Process(
        target=lambda: os._exit(run(recipe, "data.num_workers=2"))
    )
    child.start()
    try:
        until(lambda: comes_to(shards, shards.folder / "killed", path), child.is_alive)
    finally:
        child.kill()
        child.join()
    assert list((shards.folder / "cache-killed").glob("*.part*"))
    shards.server.release.set()
    assert run(recipe, "data.num_workers=2") == DONE
    resumes_to_the_same_end(shards, shards.folder / "killed")


@pytest.mark.slow
def test_one_of_two_killed_while_they_stream_the_same_command_continues(
    shards: Shards, tmp_path: Path
) -> None:
    shards.server.release.clear()
    recipe, path = held_recipe(shards, "killed-2")
    process = torchrun(recipe, tmp_path / "first")
    try:
        until(
            lambda: comes_to(shards, shards.folder / "killed-2", path),
            lambda: process.poll() is None,
        )
        os.kill(rank_of(process.pid, 1), signal.SIGKILL)
    finally:
        code = ended(process)
        shards.server.release.set()
    assert code == 1
    assert "another process of this run has ended after step" in (tmp_path / "first").read_text()
    assert ended(torchrun(recipe, tmp_path / "second")) == DONE
    assert "resuming from" in (tmp_path / "second").read_text()
    resumes_to_the_same_end(shards, shards.folder / "killed-2")


def rank_of(launcher: int, rank: int) -> int:
    """The process of a rank."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise AssertionError(f"no rank {rank} under {launcher}")
