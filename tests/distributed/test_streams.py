"""Streams over HTTP with faults, on one process and two: the same batches bit for bit, each shard fetched once, the same end whatever happens.

Sample i of the shards has label i, so labels say which samples came. As in test_two_processes.py one launch does all that takes two processes;
each case reads the shards under a URL of its own (a link beside them), and has a cache of its own.
"""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streams_probe
import torch
from launch import Launch
from servers import FolderServer
from shards import describe, images_of, write_tars
from tiny import records, report, run, stop_after, tensors, write_recipe

from distill.data.fashion import EmbeddedFashionMnist
from distill.data.lanes import LaneOrder
from distill.engine import Engine
from distill.plan import make_plan
from distill.recipe import load_recipe
from distill.train import DONE, INTERRUPTED

NUM_SAMPLES, PER_SHARD, BATCH = 600, 25, 16
STEPS = NUM_SAMPLES // BATCH  # an epoch: 37, and 8 samples are left out
# Blocks smaller than shards, lanes of six shards.
STREAM: dict[str, Any] = {"kind": "stream", "lanes": 4, "block": 20, "classes": "classes.txt"}
VIEW: dict[str, Any] = {"crop": "random_resized", "auto_augment": "rand-m7-mstd0.5-inc1", "random_erasing": 0.5}
MIXING = {"mixup": 0.2, "cutmix": 1.0, "group_size": 8}
KINDS: dict[str, dict[str, Any]] = {
    "micro": {"data": {"augment": VIEW, "mixing": MIXING}},
    "whole": {"data": {"augment": {**VIEW, "repeats": 3}, "mixing": MIXING}, "train": {"micro_batch_size": None}},
}
# A run in two stages, of 8 and 7 steps; at the second the data are the package's.
FOREIGN, OWN = 8, 7
# Shards that meet a fault, the first of them a 503; and the one that comes damaged.
STRUCK = [f"shard-{number:05d}.tar" for number in (2, 5, 11, 17, 20)]
CORRUPTED = STRUCK[-1]
BROKEN_SHARDS, CUT_AT = (10, 11), 20_000  # in lanes of the second process, and of the first
BROKEN: dict[str, Any] = {"data": {"shards": {"retries": 0}}}
# From the start; from the middle; over the end of an epoch.
TIMEOUT_S = 120
RANGES = [(0, 2), (17, 19), (STEPS - 1, STEPS + 2)]


class Shards:
    """The shards, and the server that has them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = write_tars(
            folder / "served" / "set",
            images_of(EmbeddedFashionMnist("train"), range(NUM_SAMPLES)),
            PER_SHARD,
            labels=range(NUM_SAMPLES),
        )
        (folder / "classes.txt").write_text("\n".join(f"sample {i}" for i in range(NUM_SAMPLES)))
        describe(folder / "served" / "set", [f"sample {i}" for i in range(NUM_SAMPLES)])
        self.server = FolderServer(folder / "served")

    def url(self, case: str) -> str:
        (self.folder / "served" / case).symlink_to("set")
        return f"{self.server.url}/{case}"

    def faults(self, case: str) -> None:
        """What strikes each of some shards once."""
        self.server.fault(f"/{case}/shard-00002.tar", "status", status=503)
        self.server.fault(f"/{case}/shard-00005.tar", "reset", after_bytes=5000)
        self.server.fault(f"/{case}/shard-00011.tar", "stall", after_bytes=3000)
        self.server.fault(f"/{case}/shard-00017.tar", "truncate", after_bytes=7000)
        self.server.fault(f"/{case}/shard-00020.tar", "corrupt", after_bytes=7000)

    def recipe(self, case: str, path: str, *changes: dict[str, Any]) -> Path:
        """Of a stream alone, whose labels count samples."""
        base = {
            "data": {
                "root": str(self.folder),
                "train": None,
                "fraction": 1.0,
                "eval": None,
                "shards": {"cache": f"cache-{case}", "timeout_s": 1},
            },
            "train": {"budget": "3 epochs"},
        }
        stream = {"data": {"train": {**STREAM, "path": path}}}
        return write_recipe(self.folder, base, stream, *changes, name=case)

    def run_recipe(self, case: str, *changes: dict[str, Any]) -> Path:
        """Of a run in two stages: the shards without their labels, then images with labels."""
        path = self.url(case)
        if BROKEN in changes:
            for number in BROKEN_SHARDS:
                self.server.fault(f"/{case}/shard-{number:05d}.tar", "shorten", after_bytes=CUT_AT, on=None)
        else:
            self.faults(case)
        stream = {**STREAM, "path": path, "labelled": False, "classes": None}
        stages: dict[str, Any] = {
            "train": {"budget": None},
            "data": {"shards": {"cache": str(self.folder / f"cache-{case}"), "timeout_s": 1}},
            "student": {"objective": {"soft": {"loss": "kl"}}},
            "stages": [
                {
                    "name": "foreign",
                    "budget": f"{FOREIGN} iterations",
                    "data": {"train": stream},
                    "student": {"objective": {"hard": None}},
                },
                {"name": "own", "budget": f"{OWN} iterations"},
            ],
        }
        return write_recipe(self.folder, stages, *changes, name=case)

    def requested(self, case: str) -> dict[str, int]:
        """How often each shard was asked for."""
        start = f"/{case}/shard-"
        return {path: count for path, count in self.server.requests.items() if path.startswith(start)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shards]:
    shards = Shards(tmp_path_factory.mktemp("streams"))
    with shards.server:
        yield shards
    shutil.rmtree(shards.folder)


Seen = dict[int, list[Any]]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """Of one process."""
    engine = Engine(precision="fp32")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def launch(shards: Shards) -> Launch:
    """All that takes two processes."""
    launch = Launch(shards.folder)
    cases: dict[str, Any] = {}
    for kind, changes in KINDS.items():
        for workers in (0, 2):
            case = f"{kind}-2x{workers}"
            path = shards.url(case)
            shards.faults(case)
            cases[case] = [
                str(shards.recipe(case, path, changes)), RANGES, [f"data.num_workers={workers}"],
            ]  # fmt: skip
    path = shards.url("epochs")
    shards.faults("epochs")
    cases["epochs"] = [str(shards.recipe("epochs", path, KINDS["micro"])), [(0, 2 * STEPS)], ["data.num_workers=2"]]
    (shards.folder / "cases.json").write_text(json.dumps(cases))
    launch.call("streams_probe:all_cases")
    launch.add("skip-2", shards.run_recipe("skip-2", BROKEN, {"data": {"unreadable": "skip"}}))
    moved = shards.run_recipe("moved")
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_after(2, monkeypatch)
        assert run(moved) == INTERRUPTED
    launch.add("moved", moved, stop_rank=1, stop_step=FOREIGN - 2 + 3)
    launch.add("refused", shards.run_recipe("refused", BROKEN))
    launch.start()
    try:
        for name, *changes in (("skip-1", BROKEN, {"data": {"unreadable": "skip"}}), ("undisturbed",)):
            assert run(shards.run_recipe(name, *changes)) == DONE
    finally:
        launch.finish()
    yield launch


def of_all_ranks(launch: Launch, case: str) -> Seen:
    """What two processes saw together, each position once."""
    both = [returned[case] for returned in launch.returned("streams_probe:all_cases")]
    assert not both[0].keys() & both[1].keys()
    return {int(position): what for one in both for position, what in one.items()}


def at_once(engine: Engine, shards: Shards, kind: str) -> Seen:
    """Two epochs and more of one process that decodes by itself, from the disk."""
    recipe = shards.recipe(f"{kind}-local", "served/set", KINDS[kind])
    return streams_probe.seen(engine, recipe, [(0, 2 * STEPS)], ["data.num_workers=0"])


def in_steps(found: Seen, ranges: list[tuple[int, int]]) -> Seen:
    return {
        position: what
        for position, what in found.items()
        if any(first <= position // BATCH < last for first, last in ranges)
    }


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_global_batch_is_the_same_bit_for_bit_whoever_reads_it(
    kind: str, shards: Shards, launch: Launch, engine: Engine
) -> None:
    """Labels, positions, augmented and mixed pixels, targets: of one process or two, with workers or without, begun anywhere."""
    whole = at_once(engine, shards, kind)
    assert sorted(whole) == list(range(2 * STEPS * BATCH))
    expected = in_steps(whole, RANGES)
    case = f"{kind}-1x2"
    path = shards.url(case)
    shards.faults(case)
    recipe = shards.recipe(case, path, KINDS[kind])
    assert streams_probe.seen(engine, recipe, RANGES, ["data.num_workers=2"]) == expected
    for workers in (0, 2):
        assert of_all_ranks(launch, f"{kind}-2x{workers}") == expected


def test_nothing_is_lost_nothing_comes_twice_and_nothing_is_fetched_twice(shards: Shards, launch: Launch) -> None:
    """Two epochs of two processes with two workers each, on one machine, from a server with faults."""
    found = of_all_ranks(launch, "epochs")
    assert sorted(found) == list(range(2 * STEPS * BATCH))
    for epoch in (0, 1):
        samples = [label for position, (label, _) in found.items() if position // BATCH // STEPS == epoch]
        assert len(set(samples)) == len(samples) == STEPS * BATCH
    requests = shards.requested("epochs")
    names = [path.name for path in shards.paths]
    assert requests == {f"/epochs/{name}": 1 + (name in STRUCK) for name in names}, "twice where the first broke off"
    for path in shards.paths:
        served = shards.server.bytes_served[f"/epochs/{path.name}"]
        again = path.stat().st_size if path.name == CORRUPTED else 0
        assert served == path.stat().st_size + again + (len(b"fault") if path.name == STRUCK[0] else 0), path.name


def test_the_second_epoch_asks_for_nothing(engine: Engine, shards: Shards) -> None:
    case = "cached"
    recipe = shards.recipe(case, shards.url(case), KINDS["micro"])
    streams_probe.seen(engine, recipe, [(0, STEPS)], ["data.num_workers=2"])
    before = Counter(shards.server.requests)
    assert set(shards.requested(case)) == {f"/{case}/{path.name}" for path in shards.paths}
    streams_probe.seen(engine, recipe, [(STEPS, 2 * STEPS)], ["data.num_workers=2"])
    assert Counter(shards.server.requests) - before == Counter({f"/{case}/manifest.json": 1})


@pytest.mark.parametrize("step", [0, 20, STEPS + 11])
def test_a_resume_fetches_no_more_than_two_blocks_of_each_lane(engine: Engine, step: int, shards: Shards) -> None:
    """Its first batch needs the shards under one block of each lane, two where the block lies over a border; the next block is fetched ahead."""
    case = f"deep-{step}"
    recipe = shards.recipe(case, shards.url(case), KINDS["micro"])
    found = streams_probe.seen(engine, recipe, [(step, step + 1)], ["data.num_workers=0"])
    needed = {f"/{case}/shard-{label // PER_SHARD:05d}.tar" for label, _ in found.values()}
    asked = shards.requested(case)
    assert needed <= set(asked)
    assert len(needed) <= 2 * STREAM["lanes"]
    order = make_plan(load_recipe(recipe)).stages[0].order
    assert isinstance(order, LaneOrder)
    under_two_blocks = order.shards_ahead(step, np.arange(BATCH)).tolist()
    assert len(under_two_blocks) <= 3 * STREAM["lanes"] < len(shards.paths), "a block is no longer than a shard"
    assert set(asked) <= {f"/{case}/shard-{number:05d}.tar" for number in under_two_blocks}
    assert max(asked.values()) == 1


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_a_shard_that_nobody_can_have_is_skipped_and_counted_alike(shards: Shards, launch: Launch) -> None:
    """Neighbours stand in for its samples, whoever misses them: two processes end with the weights of one."""
    assert launch.codes("skip-2") == [DONE, DONE]
    stage = make_plan(load_recipe(shards.folder / "skip-1.yaml")).stages[0]
    missing = [np.isin(stage.order.batch(step).indices // PER_SHARD, BROKEN_SHARDS) for step in range(FOREIGN)]
    by_process = np.array(missing)[:, : BATCH // 2].sum(), np.array(missing)[:, BATCH // 2 :].sum()
    assert min(by_process) > 5
    counts = [int(mask.sum()) for mask in missing]
    for name in ("skip-1", "skip-2"):
        counted = {
            line["step"]: line["num_skipped"] for line in records(shards.folder / name) if line["event"] == "train"
        }
        assert counted == {step: sum(counts[:step]) for step in range(1, FOREIGN + OWN + 1)}
        assert report(shards.folder / name)["num_skipped"] == sum(counts)
    assert_equal_but_statistics(*(tensors(shards.folder / name) for name in ("skip-2", "skip-1")))


def test_stopped_in_each_stage_on_another_number_of_processes_it_ends_alike(shards: Shards, launch: Launch) -> None:
    """One process to step 2, two over the border to the third step of the second stage, one to the end; each met the server's faults."""
    assert launch.codes("moved") == [INTERRUPTED, INTERRUPTED]
    assert f"stopped after step {FOREIGN + 3}, saved in" in launch.shown("moved")[0]
    assert run(shards.folder / "moved.yaml") == DONE
    moved, whole = (shards.folder / name for name in ("moved", "undisturbed"))
    assert_equal_but_statistics(tensors(moved), tensors(whole))
    assert [line["step"] for line in records(moved)] == [line["step"] for line in records(whole)]
    last = [report(output)["students"]["alone"]["last"]["top1"] for output in (moved, whole)]
    assert last[0] == last[1]


def test_a_shard_that_nobody_can_have_ends_the_run(shards: Shards, launch: Launch) -> None:
    """Both processes miss one in their first batch: bad input for both, said once, with the shard, and where it ends."""
    assert launch.codes("refused") == [2, 2]
    shown = "".join(launch.shown("refused"))
    assert re.findall(rf"{shards.server.url}/refused/shard-000\d\d.tar.*?mend it or its server", shown, re.DOTALL) == [
        shown.partition("): ")[2].partition(", or set")[0]
    ]
    assert f"it has {CUT_AT} bytes and {shards.paths[0].stat().st_size} were promised" in shown


def assert_equal_but_statistics(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit; BatchNorm's running statistics, which two processes average, within their rounding."""
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        if "running_" in name:
            torch.testing.assert_close(one[name], tensor, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(one[name], tensor), name


# ---- processes that end ----------------------------------------------------------------------------------------------


def torchrun(recipe: Path, log: Path) -> subprocess.Popen[bytes]:
    """`distill train` on two processes, in a session of its own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
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
    recipe = shards.run_recipe("missed", BROKEN, {"seed": 13})  # the second process comes to one at its fourth step
    log = tmp_path / "log"
    assert ended(torchrun(recipe, log)) == 1
    shown = log.read_text()
    assert re.findall(r"^distill.*", shown, re.MULTILINE) == [
        f"distill (rank 1): {shards.server.url}/missed/shard-00010.tar: it has {CUT_AT} bytes and {shards.paths[0].stat().st_size} were promised, "
        "in both of 2 transfers: it has changed, or is damaged where it lies: mend it or its server, or set data.unreadable to skip",
        "distill FAILED",  # torchrun's summary of its command
    ]
    assert re.findall(r"rank +: (\d).*?\n.*?exitcode +: (\d)", shown) == [("0", "1"), ("1", "2")]
    assert "step 3/15" in shown
    assert "step 4/15" not in shown


def held_recipe(shards: Shards, case: str) -> tuple[Path, str]:
    """A run that comes to a shard which the server holds back, between its third step and the end of the first stage; and that shard."""
    recipe = shards.run_recipe(case, {"data": {"shards": {"timeout_s": 60}}, "checkpoint": {"every": "1 iterations"}})
    order = make_plan(load_recipe(recipe)).stages[0].order
    later = [set((order.batch(step).indices // PER_SHARD).tolist()) for step in range(FOREIGN)]
    number = min(set().union(*later[3:]) - set().union(*later[:3]) - {2, 5, 11, 17, 20})
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
    """Whether three steps are saved, and somebody waits for the shard."""
    return (output / "checkpoints" / "step-00000003").exists() and bool(shards.server.requests[path])


def goes_on_to_the_same_end(shards: Shards, output: Path) -> None:
    assert_equal_but_statistics(tensors(output), tensors(shards.folder / "undisturbed"))
    assert not list((shards.folder / f"cache-{output.name}").glob("*.part*")), (
        "what a killed writer left was cleared away"
    )


def test_killed_while_it_waits_for_a_shard_the_same_command_goes_on(shards: Shards, launch: Launch) -> None:
    """kill -9 of a process whose workers and threads are fetching; what it left in the cache hinders nobody."""
    recipe, path = held_recipe(shards, "killed")
    child = multiprocessing.get_context("fork").Process(target=lambda: os._exit(run(recipe, "data.num_workers=2")))
    child.start()
    try:
        until(lambda: comes_to(shards, shards.folder / "killed", path), child.is_alive)
    finally:
        child.kill()
        child.join()
    assert list((shards.folder / "cache-killed").glob("*.part*"))
    shards.server.release.set()
    assert run(recipe, "data.num_workers=2") == DONE
    goes_on_to_the_same_end(shards, shards.folder / "killed")


@pytest.mark.slow
def test_one_of_two_killed_while_they_stream_the_same_command_goes_on(
    shards: Shards, launch: Launch, tmp_path: Path
) -> None:
    shards.server.release.clear()
    recipe, path = held_recipe(shards, "killed-2")
    process = torchrun(recipe, tmp_path / "first")
    try:
        until(lambda: comes_to(shards, shards.folder / "killed-2", path), lambda: process.poll() is None)
        os.kill(rank_of(process.pid, 1), signal.SIGKILL)
    finally:
        code = ended(process)
        shards.server.release.set()
    assert code == 1
    assert "another process of this run has ended after step" in (tmp_path / "first").read_text()
    assert ended(torchrun(recipe, tmp_path / "second")) == DONE
    assert "going on from" in (tmp_path / "second").read_text()
    goes_on_to_the_same_end(shards, shards.folder / "killed-2")


def rank_of(launcher: int, rank: int) -> int:
    """The process of a rank."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise AssertionError(f"no rank {rank} under {launcher}")
