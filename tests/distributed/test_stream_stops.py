"""A stop by signal while a step waits for a shard that does not come: all processes save their
step, and the same command ends with the weights of a run without a stop.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
import yaml
from shards import describe, images_of, write_tars
from stream_set import FOREIGN, OWN, PER_SHARD, Shards, shards_and_undisturbed
from test_stream_ends import ended, held_recipe, rank_of, resumes_to_the_same_end, torchrun, until
from tiny import records, run, write_recipe

from distill.data.fashion import EmbeddedFashionMnist
from distill.recipe import load_recipe
from distill.training.loop import DONE, INTERRUPTED
from distill.training.plan import make_plan


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shards]:
    with shards_and_undisturbed(tmp_path_factory.mktemp("streams")) as shards:
        yield shards


class Alone:
    """`distill train` in a process of its own; nothing is left of it behind the block."""

    def __init__(self, log: Path, recipe: Path, *overrides: str) -> None:
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "distill", "train", str(recipe), *overrides],
                env={**os.environ, "ACCELERATE_USE_CPU": "true"},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def lives(self) -> bool:
        return self._process.poll() is None

    def terminated(self) -> int:
        """Its exit code after SIGTERM."""
        self._process.terminate()
        return self._process.wait(60)


def steps_before(recipe: Path, path: str) -> int:
    """How many steps a run can do without a shard."""
    number, order = (
        int(re.findall(r"\d+", path)[-1]),
        make_plan(load_recipe(recipe)).stages[0].order,
    )
    return next(step for step in range(FOREIGN) if number in order.batch(step).indices // PER_SHARD)


def logged(output: Path) -> int:
    """Steps that a run has done."""
    metrics = output / "metrics.jsonl"
    return metrics.read_text().count('"event": "train"') if metrics.exists() else 0


def checkpoints(output: Path) -> list[int]:
    return sorted(
        int(path.name.removeprefix("step-")) for path in (output / "checkpoints").glob("step-*")
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_process_saves_where_it_stands(
    num_workers: int, shards: Shards, tmp_path: Path
) -> None:
    """Checkpoints are far apart: what is saved, the signal saved."""
    case, workers = f"stopped-{num_workers}", f"data.num_workers={num_workers}"
    shards.server.release.clear()
    recipe, path = held_recipe(shards, case)
    output, log, num_steps = shards.folder / case, tmp_path / "log", steps_before(recipe, path)
    changes = (workers, "checkpoint.every='100 iterations'")
    with Alone(log, recipe, *changes) as child:
        until(lambda: logged(output) == num_steps, child.lives)
        assert child.terminated() == INTERRUPTED
    shards.server.release.set()
    assert checkpoints(output) == [num_steps]
    saved = f"{output}/checkpoints/step-{num_steps:08d}"
    assert f"SIGTERM: stopped after step {num_steps}, saved in {saved}; " in log.read_text()
    assert run(recipe, *changes) == DONE
    resumes_to_the_same_end(shards, output)


def test_before_the_first_step_there_is_nothing_to_save(shards: Shards, tmp_path: Path) -> None:
    shards.server.release.clear()
    recipe = shards.run_recipe("early", {"data": {"shards": {"timeout_s": 120}}})
    shards.server.fault("/early/*.tar", "hold", on=None)
    log = tmp_path / "log"
    with Alone(log, recipe) as child:
        until(lambda: any(shards.requested("early").values()), child.lives)
        assert child.terminated() == INTERRUPTED
    shards.server.release.set()
    assert (
        "SIGTERM: stopped after step 0, nothing to save; the same command resumes the run"
        in log.read_text()
    )
    assert run(recipe) == DONE
    resumes_to_the_same_end(shards, shards.folder / "early")


def test_at_the_border_of_stages_what_the_stage_before_left_stays(
    shards: Shards, tmp_path: Path
) -> None:
    """The first shard of a second stage does not come."""
    shards.server.release.clear()
    recipe = shards.run_recipe("border", {"data": {"shards": {"timeout_s": 120}}})
    tree = yaml.safe_load(recipe.read_text())
    tree["stages"].reverse()
    tree["stages"][1]["optimizer"] = "reset"
    recipe.write_text(yaml.safe_dump(tree, sort_keys=False))
    shards.server.fault("/border/*.tar", "hold", on=None)
    output = shards.folder / "border"
    with Alone(tmp_path / "log", recipe) as child:
        until(
            lambda: any(shards.requested("border").values()) and logged(output) == OWN, child.lives
        )
        (saved,) = (output / "checkpoints").glob(f"step-{OWN:08d}")
        before = saved.stat().st_ino
        assert child.terminated() == INTERRUPTED
    shards.server.release.set()
    assert saved.stat().st_ino == before
    assert (
        f"SIGTERM: stopped after step {OWN}, saved in {saved}; " in (tmp_path / "log").read_text()
    )
    assert run(recipe) == DONE


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_evaluation_that_waits_is_given_up(
    num_workers: int, shards: Shards, tmp_path: Path
) -> None:
    shards.server.release.clear()
    source, case = EmbeddedFashionMnist("test"), f"evaluated-{num_workers}"
    folder = shards.folder / "served" / case
    write_tars(folder, images_of(source, range(40)), 10, labels=source.labels[:40].tolist())
    describe(folder, source.classes)
    evaluated = {"kind": "stream", "path": f"{shards.server.url}/{case}"}
    recipe = write_recipe(
        tmp_path,
        {
            "data": {
                "eval": evaluated,
                "shards": {"timeout_s": 120, "cache": str(tmp_path / "cache")},
            }
        },
    )
    shards.server.fault(f"/{case}/shard-00003.tar", "hold", on=None)
    workers = f"data.num_workers={num_workers}"
    with Alone(tmp_path / "log", recipe, workers) as child:
        until(lambda: bool(shards.server.requests[f"/{case}/shard-00003.tar"]), child.lives)
        assert child.terminated() == INTERRUPTED
    shards.server.release.set()
    assert "SIGTERM: stopped after step 4, saved in" in (tmp_path / "log").read_text()
    assert run(recipe, workers) == DONE
    steps = [line["step"] for line in records(tmp_path / "run") if line["event"] == "evaluate"]
    assert steps == [4, 8], "the resumed run began with the evaluation that was abandoned"


def test_both_save_when_one_of_them_gets_a_signal(shards: Shards, tmp_path: Path) -> None:
    """The signalled process may have its batch while the other waits without a signal."""
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
    resumes_to_the_same_end(shards, output)
