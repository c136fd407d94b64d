"""Streams over HTTP with faults, on one process and two: the same batches bit for bit, each shard
fetched once, the same end whatever happens.

Sample i of the shards has label i, so labels say which samples came. As in test_two_processes.py
one launch does all that takes two processes.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import streams_probe
from launch import Launch
from stream_set import (
    BATCH,
    BROKEN,
    BROKEN_SHARDS,
    CORRUPTED,
    CUT_AT,
    FOREIGN,
    OWN,
    PER_SHARD,
    STEPS,
    STREAM,
    STRUCK,
    TIMEOUT_S,
    Shards,
)
from tiny import assert_equal_but_statistics, records, report, run, stop_after, tensors

from distill.data.order.lanes import LaneOrder
from distill.engine import Engine
from distill.recipe import load_recipe
from distill.training.loop import DONE, INTERRUPTED
from distill.training.plan import make_plan

VIEW: dict[str, Any] = {
    "crop": "random_resized",
    "auto_augment": "rand-m7-mstd0.5-inc1",
    "random_erasing": 0.5,
}
MIXING = {"mixup": 0.2, "cutmix": 1.0, "group_size": 8}
KINDS: dict[str, dict[str, Any]] = {
    "micro": {"data": {"augment": VIEW, "mixing": MIXING}},
    "whole": {
        "data": {"augment": {**VIEW, "repeats": 3}, "mixing": MIXING},
        "train": {"micro_batch_size": None},
    },
}
# From the start; from the middle; over the end of an epoch.
RANGES = [(0, 2), (17, 19), (STEPS - 1, STEPS + 2)]


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
                str(shards.recipe(case, path, changes)),
                RANGES,
                [f"data.num_workers={workers}"],
            ]
    path = shards.url("epochs")
    shards.faults("epochs", stall=False)
    cases["epochs"] = [
        str(shards.recipe("epochs", path, KINDS["micro"], {"train": {"budget": "2 epochs"}})),
        [(0, 2 * STEPS)],
        ["data.num_workers=2", f"data.shards.timeout_s={TIMEOUT_S}"],
    ]
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
        for name, *changes in (
            ("skip-1", BROKEN, {"data": {"unreadable": "skip"}}),
            ("undisturbed",),
        ):
            assert run(shards.run_recipe(name, *changes)) == DONE
    finally:
        launch.finish()
    return launch


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
    """Labels, positions, augmented and mixed pixels, targets: of one process or two, with workers
    or without, begun anywhere.
    """
    whole = at_once(engine, shards, kind)
    assert sorted(whole) == list(range(2 * STEPS * BATCH))
    expected = in_steps(whole, RANGES)
    for workers in (0, 2):
        case = f"{kind}-1x{workers}"
        path = shards.url(case)
        shards.faults(case)
        assert (
            streams_probe.seen(
                engine,
                shards.recipe(case, path, KINDS[kind]),
                RANGES,
                [f"data.num_workers={workers}"],
            )
            == expected
        )
    for workers in (0, 2):
        assert of_all_ranks(launch, f"{kind}-2x{workers}") == expected


def test_nothing_is_lost_nothing_comes_twice_and_nothing_is_fetched_twice(
    shards: Shards, launch: Launch
) -> None:
    """Two epochs of two processes with two workers each, on one machine, from a server
    with faults.
    """
    found = of_all_ranks(launch, "epochs")
    assert sorted(found) == list(range(2 * STEPS * BATCH))
    for epoch in (0, 1):
        samples = [
            label for position, (label, _) in found.items() if position // BATCH // STEPS == epoch
        ]
        assert len(set(samples)) == len(samples) == STEPS * BATCH
    requests = shards.requested("epochs")
    names = [path.name for path in shards.paths]
    assert requests == {f"/epochs/{name}": 1 + (name in STRUCK) for name in names}, (
        "twice where the first broke off"
    )
    for path in shards.paths:
        served = shards.server.bytes_served[f"/epochs/{path.name}"]
        again = path.stat().st_size if path.name == CORRUPTED else 0
        assert served == path.stat().st_size + again + (
            len(b"fault") if path.name == STRUCK[0] else 0
        ), path.name


def test_the_second_epoch_asks_for_nothing(engine: Engine, shards: Shards) -> None:
    case = "cached"
    recipe = shards.recipe(case, shards.url(case), KINDS["micro"])
    patient = f"data.shards.timeout_s={TIMEOUT_S}"
    streams_probe.seen(engine, recipe, [(0, STEPS)], ["data.num_workers=2", patient])
    before = Counter(shards.server.requests)
    assert set(shards.requested(case)) == {f"/{case}/{path.name}" for path in shards.paths}
    streams_probe.seen(engine, recipe, [(STEPS, 2 * STEPS)], ["data.num_workers=2", patient])
    assert Counter(shards.server.requests) - before == Counter({f"/{case}/manifest.json": 1})


@pytest.mark.parametrize("step", [0, 20, STEPS + 11])
def test_a_resume_fetches_no_more_than_two_blocks_of_each_lane(
    engine: Engine, step: int, shards: Shards
) -> None:
    """Its first batch needs the shards under one block of each lane, two where the block
    lies in two shards; the next block is fetched in advance.
    """
    case = f"deep-{step}"
    recipe = shards.recipe(case, shards.url(case), KINDS["micro"])
    patient = f"data.shards.timeout_s={TIMEOUT_S}"
    found = streams_probe.seen(engine, recipe, [(step, step + 1)], ["data.num_workers=0", patient])
    needed = {f"/{case}/shard-{label // PER_SHARD:05d}.tar" for label, _ in found.values()}
    asked = shards.requested(case)
    assert needed <= set(asked)
    assert len(needed) <= 2 * STREAM["lanes"]
    order = make_plan(load_recipe(recipe)).stages[0].order
    assert isinstance(order, LaneOrder)
    under_two_blocks = order.shards_ahead(step, np.arange(BATCH)).tolist()
    assert len(under_two_blocks) <= 3 * STREAM["lanes"] < len(shards.paths), (
        "a block is no longer than a shard"
    )
    assert set(asked) <= {f"/{case}/shard-{number:05d}.tar" for number in under_two_blocks}
    assert max(asked.values()) == 1


def test_nothing_is_fetched_that_only_steps_after_the_end_read(
    engine: Engine, shards: Shards
) -> None:
    """A run of two steps, eight samples of each lane, and less than a block."""
    case = "short"
    recipe = shards.recipe(case, shards.url(case), {"train": {"budget": "2 iterations"}})
    patient = f"data.shards.timeout_s={TIMEOUT_S}"
    found = streams_probe.seen(engine, recipe, [(0, 2)], ["data.num_workers=0", patient])
    read = {f"/{case}/shard-{label // PER_SHARD:05d}.tar" for label, _ in found.values()}
    order = make_plan(load_recipe(recipe)).stages[0].order
    assert isinstance(order, LaneOrder)
    assert len(order.shards_ahead(0, np.arange(BATCH))) > len(read), (
        "an endless run would fetch more"
    )
    assert set(shards.requested(case)) == read


# ---- runs ----------------------------------------------------------------------------------------


def test_a_shard_that_nobody_can_have_is_skipped_and_counted_alike(
    shards: Shards, launch: Launch
) -> None:
    """Neighbours replace its samples on every process: two processes end with the weights
    of one.
    """
    assert launch.codes("skip-2") == [DONE, DONE]
    stage = make_plan(load_recipe(shards.folder / "skip-1.yaml")).stages[0]
    missing = [
        np.isin(stage.order.batch(step).indices // PER_SHARD, BROKEN_SHARDS)
        for step in range(FOREIGN)
    ]
    by_process = np.array(missing)[:, : BATCH // 2].sum(), np.array(missing)[:, BATCH // 2 :].sum()
    assert min(by_process) > 5
    counts = [int(mask.sum()) for mask in missing]
    for name in ("skip-1", "skip-2"):
        counted = {
            line["step"]: line["num_skipped"]
            for line in records(shards.folder / name)
            if line["event"] == "train"
        }
        assert counted == {step: sum(counts[:step]) for step in range(1, FOREIGN + OWN + 1)}
        assert report(shards.folder / name)["num_skipped"] == sum(counts)
    assert_equal_but_statistics(*(tensors(shards.folder / name) for name in ("skip-2", "skip-1")))


def test_stopped_in_each_stage_on_another_number_of_processes_it_ends_alike(
    shards: Shards, launch: Launch
) -> None:
    """One process to step 2, two over the border to the third step of the second stage, one to the
    end; each met the server's faults.
    """
    assert launch.codes("moved") == [INTERRUPTED, INTERRUPTED]
    assert f"stopped after step {FOREIGN + 3}, saved in" in launch.shown("moved")[0]
    assert run(shards.folder / "moved.yaml") == DONE
    moved, whole = (shards.folder / name for name in ("moved", "undisturbed"))
    assert_equal_but_statistics(tensors(moved), tensors(whole))
    assert [line["step"] for line in records(moved)] == [line["step"] for line in records(whole)]
    last = [report(output)["students"]["alone"]["last"]["top1"] for output in (moved, whole)]
    assert last[0] == last[1]


def test_a_shard_that_nobody_can_have_ends_the_run(shards: Shards, launch: Launch) -> None:
    """Both processes miss one in their first batch: bad input for both, said once, with the shard,
    and where it ends.
    """
    assert launch.codes("refused") == [2, 2]
    shown = "".join(launch.shown("refused"))
    said = re.findall(r"(http\S+): it has (\d+) bytes and (\d+) were promised", shown)
    assert len(said) == shown.count("fix it") == 1
    assert said[0][0] in [
        f"{shards.server.url}/refused/shard-{number:05d}.tar" for number in BROKEN_SHARDS
    ]
    assert said[0][1] == str(CUT_AT)
