"""kill -9 at any moment: the same command, given again, ends with what the uninterrupted run ends
with, bit for bit.

A child forked from this process trains (the imports alone would cost a fresh one several seconds)
and is killed for real. One test uses the command line and signals all processes of its group,
data-loading workers included, as SLURM does.
"""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import (
    EVERYTHING,
    assert_equal_tensors,
    assert_same_run,
    checkpoint,
    run,
    tensors,
    write_recipe,
)

from distill.training.loop import DONE, INTERRUPTED

# Saving after every step, and best exports after every second: most of a child's time is spent
# where a kill could hurt.
OFTEN = {"checkpoint": {"every": "1 iterations"}, "evaluate": {"every": "2 iterations"}}
TIMEOUT_S = 300


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """An uninterrupted run, and the processor time it takes."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    recipe = write_recipe(folder, EVERYTHING, OFTEN)
    before = time.process_time()
    assert run(recipe) == DONE
    return folder / "run", time.process_time() - before


def start(recipe: Path, before: Callable[[], None] = lambda: None) -> BaseProcess:
    """A forked child that does `before` and trains; its exit code is the run's."""

    def child() -> None:
        before()
        os._exit(run(recipe))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    return process


def ended(process: BaseProcess) -> int:
    process.join(TIMEOUT_S)
    if process.exitcode is None:
        process.kill()
        pytest.fail(f"the run has not ended within {TIMEOUT_S} s")
    return process.exitcode


def kill_after(cpu_seconds: float) -> Callable[[], None]:
    """Lets the system kill this process after so much work, however busy the machine is. Nothing
    handles SIGPROF: it ends like -9.
    """

    def arm() -> None:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)

    return arm


def kill_at_file_operation(number: int, folder: Path) -> Callable[[], None]:
    """Lets this process kill itself just before its `number`-th operation on the file system below
    `folder`.
    """

    def arm() -> None:
        left = number

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            writes = (
                event == "open"
                and isinstance(arguments[2], int)
                and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            )
            if (writes or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir")) and str(
                folder
            ) in str(arguments[0]):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(audit)  # cannot be taken away again, so it is set in the child

    return arm


def test_killed_at_random_moments(uninterrupted: tuple[Path, float], tmp_path: Path) -> None:
    expected, seconds = uninterrupted
    recipe = write_recipe(tmp_path, EVERYTHING, OFTEN)
    draw, killed_at = random.Random(0), []
    while len(killed_at) < 60:
        code = ended(start(recipe, kill_after(draw.uniform(0.05, 0.4) * seconds)))
        if code == DONE:
            break
        assert code == -signal.SIGPROF
        killed_at += [len(list((tmp_path / "run").glob("checkpoints/step-*")))]
    assert run(recipe) == DONE
    assert len(killed_at) >= 2
    assert max(killed_at) > 0, "no kill came after a checkpoint"
    assert_same_run(tmp_path / "run", expected)


def at_operations(numbers: list[int], expected: Path, folder: Path) -> None:
    """Killed at an operation, continued, killed at the next operation of that session, and
    so on to the end.
    """
    recipe = write_recipe(folder, EVERYTHING, OFTEN)
    for number in numbers:
        code = ended(start(recipe, kill_at_file_operation(number, folder / "run")))
        assert code in (-signal.SIGKILL, DONE)
    assert run(recipe) == DONE
    assert_same_run(folder / "run", expected)
    left = [
        path.name for path in (folder / "run").rglob("*") if path.name.startswith((".tmp", ".old"))
    ]
    assert not left, "what killed writers left was cleared away"


def test_killed_within_a_save(uninterrupted: tuple[Path, float], tmp_path: Path) -> None:
    """Six kills in one run, each at another operation on its files."""
    at_operations(random.Random(1).sample(range(3, 60), 6), uninterrupted[0], tmp_path)


@pytest.mark.slow
def test_killed_at_file_operations_of_a_session(
    uninterrupted: tuple[Path, float], tmp_path: Path
) -> None:
    """Every third: all 199 take 10 minutes, and passed when this was written."""
    for number in range(1, 200, 3):
        at_operations([number], uninterrupted[0], tmp_path / str(number))


# ---- through the command line --------------------------------------------------------------------


def test_a_signal_to_the_whole_process_group_saves_and_leaves_no_worker(tmp_path: Path) -> None:
    """SIGTERM to the run and its data-loading workers at once, at step 5 or later: exit code 75,
    and then the same end.
    """
    long = {"train": {"budget": "40 iterations"}, "checkpoint": {"every": "10 iterations"}}
    workers = {"data": {"num_workers": 2}}
    recipe = write_recipe(tmp_path, EVERYTHING, long, workers)
    command = [sys.executable, "-m", "distill", "train", str(recipe)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + TIMEOUT_S
        while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGTERM)
        shown, _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == INTERRUPTED, shown
    assert "SIGTERM: stopped after step" in shown
    assert "Traceback" not in shown
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert 5 <= int(checkpoint(tmp_path / "run").name.removeprefix("step-")) < 40

    assert run(recipe) == DONE
    recipe_of_one = write_recipe(tmp_path, EVERYTHING, long, name="uninterrupted")
    assert yaml.safe_load(recipe_of_one.read_text())["data"]["num_workers"] == 0
    assert run(recipe_of_one) == DONE
    assert_equal_tensors(tensors(tmp_path / "run"), tensors(tmp_path / "uninterrupted"))
    assert not multiprocessing.active_children()
