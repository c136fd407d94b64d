"""Told to stop while a step waits for a shard that does not come: all save where they stand, and the same command ends as if nothing had been."""

import multiprocessing
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stream_set import FOREIGN, PER_SHARD, Shards
from test_stream_ends import ended, goes_on_to_the_same_end, held_recipe, rank_of, torchrun, until
from tiny import run

from distill.plan import make_plan
from distill.recipe import load_recipe
from distill.train import DONE, INTERRUPTED


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shards]:
    """The shards, and a run over them that nothing disturbs."""
    shards = Shards(tmp_path_factory.mktemp("streams"))
    with shards.server:
        assert run(shards.run_recipe("undisturbed")) == DONE
        yield shards
    shutil.rmtree(shards.folder)


def run_to(log: Path, recipe: Path, *overrides: str) -> None:
    """In a process of its own."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        sys.stdout = file
        code = run(recipe, *overrides)
        file.flush()
    os._exit(code)


def steps_before(recipe: Path, path: str) -> int:
    """How many steps a run can do without a shard."""
    number, order = int(re.findall(r"\d+", path)[-1]), make_plan(load_recipe(recipe)).stages[0].order
    return next(step for step in range(FOREIGN) if number in order.batch(step).indices // PER_SHARD)


def logged(output: Path) -> int:
    """Steps that a run has done."""
    metrics = output / "metrics.jsonl"
    return metrics.read_text().count('"event": "train"') if metrics.exists() else 0


def checkpoints(output: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (output / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_process_saves_where_it_stands(num_workers: int, shards: Shards, tmp_path: Path) -> None:
    """Checkpoints are far apart: what is saved, the signal saved."""
    case, workers = f"stopped-{num_workers}", f"data.num_workers={num_workers}"
    shards.server.release.clear()
    recipe, path = held_recipe(shards, case)
    output, log, num_steps = shards.folder / case, tmp_path / "log", steps_before(recipe, path)
    changes = (workers, "checkpoint.every='100 iterations'")
    child = multiprocessing.get_context("fork").Process(target=run_to, args=(log, recipe, *changes))
    child.start()
    try:
        until(lambda: logged(output) == num_steps, child.is_alive)
        os.kill(int(child.pid or 0), signal.SIGTERM)
        child.join(60)
        assert child.exitcode == INTERRUPTED
    finally:
        child.kill()
        shards.server.release.set()
    assert checkpoints(output) == [num_steps]
    saved = f"{output}/checkpoints/step-{num_steps:08d}"
    assert f"SIGTERM: stopped after step {num_steps}, saved in {saved}; " in log.read_text()
    assert run(recipe, *changes) == DONE
    goes_on_to_the_same_end(shards, output)


def test_before_the_first_step_there_is_nothing_to_save(shards: Shards, tmp_path: Path) -> None:
    shards.server.release.clear()
    recipe = shards.run_recipe("early", {"data": {"shards": {"timeout_s": 120}}})
    shards.server.fault("/early/*.tar", "hold", on=None)
    log = tmp_path / "log"
    child = multiprocessing.get_context("fork").Process(target=run_to, args=(log, recipe))
    child.start()
    try:
        until(lambda: any(shards.requested("early").values()), child.is_alive)
        os.kill(int(child.pid or 0), signal.SIGTERM)
        child.join(60)
        assert child.exitcode == INTERRUPTED
    finally:
        child.kill()
        shards.server.release.set()
    assert "SIGTERM: stopped after step 0, nothing to save; the same command goes on" in log.read_text()
    assert run(recipe) == DONE
    goes_on_to_the_same_end(shards, shards.folder / "early")


def test_both_save_when_one_of_them_is_told(shards: Shards, tmp_path: Path) -> None:
    """The one that is told may have its batch, and the other, which waits, may not know."""
    shards.server.release.clear()
    recipe, path = held_recipe(shards, "stopped-both")
    output, num_steps = shards.folder / "stopped-both", steps_before(recipe, path)
    process = torchrun(recipe, tmp_path / "first")
    try:
        until(lambda: logged(output) == num_steps, lambda: process.poll() is None)
        os.kill(rank_of(process.pid, 0), signal.SIGTERM)
        assert ended(process) == 1, "torchrun's own, for any code of a rank but 0"
    finally:
        ended(process)
        shards.server.release.set()
    shown = (tmp_path / "first").read_text()
    assert f"SIGTERM: stopped after step {num_steps}, saved in" in shown
    assert shown.count("Traceback") == 1, "torchrun's own"
    assert set(re.findall(r"exitcode +: (\S+)", shown)) <= {str(INTERRUPTED), "-15"}
    assert ended(torchrun(recipe, tmp_path / "second")) == DONE
    goes_on_to_the_same_end(shards, output)
