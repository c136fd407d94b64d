"""Runs in stages: interrupted anywhere, they end like an uninterrupted run."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from stages import FOREIGN, OWN, two_stages
from tiny import (
    assert_same_run,
    checkpoint,
    records,
    report,
    run,
    stop_after,
    tensors,
    write_recipe,
)
from torch import nn

from distill.recipe import load_recipe
from distill.training.loop import DONE, INTERRUPTED
from distill.training.plan import make_plan

RESET = {"optimizer": "reset", "averages": "reset"}


@pytest.fixture(scope="module", params=[{}, RESET], ids=["carried", "reset"])
def uninterrupted(
    request: pytest.FixtureRequest, foreign: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert run(write_recipe(folder, two_stages(foreign, second=request.param))) == DONE
    return folder / "run", request.param


@pytest.mark.parametrize(
    "stops",
    [(2,), (FOREIGN,), (FOREIGN + 1,), (3, 1, 1, 4)],
    ids=["first", "boundary", "second", "often"],
)
def test_stopped_in_either_stage_or_between_them_it_resumes_bit_for_bit(
    stops: tuple[int, ...],
    uninterrupted: Any,
    foreign: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, second = uninterrupted
    recipe, done = write_recipe(tmp_path, two_stages(foreign, second=second)), 0
    for steps in stops:
        stop_after(steps, monkeypatch)
        assert run(recipe) == INTERRUPTED
        done += steps
        assert checkpoint(tmp_path / "run").name == f"step-{done:08d}"
        monkeypatch.undo()
    assert run(recipe) == DONE
    assert_same_run(tmp_path / "run", expected)


def test_workers_and_reading_them_do_not_matter(
    uninterrupted: Any, foreign: Path, tmp_path: Path
) -> None:
    expected, second = uninterrupted
    assert (
        run(
            write_recipe(tmp_path, two_stages(foreign, second=second), {"data": {"num_workers": 2}})
        )
        == DONE
    )
    assert_tensors_equal(tensors(tmp_path / "run"), tensors(expected))


def assert_tensors_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_carried_and_reset_are_different_runs(foreign: Path, tmp_path: Path) -> None:
    """Momentum and average of the first stage are there after the boundary, or not."""
    results = {}
    for name, second in (
        ("carried", {}),
        ("optimizer", {"optimizer": "reset"}),
        ("averages", {"averages": "reset"}),
    ):
        assert run(write_recipe(tmp_path, two_stages(foreign, second=second), name=name)) == DONE
        results[name] = tensors(tmp_path / name, "kd")
    weight = next(
        name
        for name in results["carried"]
        if name.startswith("kd.model/") and name.endswith("conv1.weight")
    )
    average = weight.replace("kd.model/", "kd.ema-0.5/")
    assert torch.equal(results["carried"][weight], results["averages"][weight])
    assert not torch.equal(results["carried"][weight], results["optimizer"][weight])
    assert not torch.equal(results["carried"][average], results["averages"][average])
    counts = {name: int(result["kd.ema-0.5/ema/num_updates"]) for name, result in results.items()}
    assert counts == {"carried": FOREIGN + OWN, "optimizer": FOREIGN + OWN, "averages": OWN}


def test_one_report_names_both_stages(
    uninterrupted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, _ = uninterrupted
    stages = report(expected)["stages"]
    assert [(s["name"], s["first_step"], s["last_step"], s["labels_read"]) for s in stages] == [
        ("foreign", 0, FOREIGN, False),
        ("own", FOREIGN, FOREIGN + OWN, True),
    ]
    assert set(stages[0]["models"]) == {"kd", "kd/ema-0.5", "dkd"}
    assert stages[1]["models"]["kd"] == report(expected)["students"]["kd"]["last"]
    train = [record for record in records(expected) if record["event"] == "train"]
    assert [(record["step"], record["stage"]) for record in train] == [
        (2, "foreign"),
        (4, "foreign"),
        (5, "foreign"),
        (7, "own"),
        (9, "own"),
        (11, "own"),
        (12, "own"),
    ]
    assert "loss_hard" not in train[0]["students"]["kd"]
    assert "loss_hard" in train[-1]["students"]["kd"]
    steps = [record["step"] for record in records(expected) if record["event"] == "evaluate"]
    assert steps == [
        3,
        5,
        8,
        11,
        12,
    ], "intervals count from a stage's start, and its end has one"


def test_each_stage_begins_its_own_order(foreign: Path, tmp_path: Path) -> None:
    from distill.engine import Engine
    from distill.training.build import train_loader
    from distill.training.share import share_of_process

    same = {"data": {"train": {"kind": "fashion_mnist", "split": "train"}}, "student": {}}
    recipe = load_recipe(write_recipe(tmp_path, two_stages(foreign, same)))
    plan = make_plan(recipe)
    first, second = plan.stages
    assert not (first.order.batch(0).indices == second.order.batch(0).indices).all(), (
        "the same data in another order"
    )
    engine = Engine(precision="fp32")
    try:
        with train_loader(
            plan, second, share_of_process(16, 8, 1), engine, second.first_step
        ) as loader:
            batch = next(loader)
    finally:
        engine.close()
    assert batch.step == FOREIGN
    assert batch.positions.tolist() == list(range(FOREIGN * 16, FOREIGN * 16 + 8))
    assert batch.labels.tolist() == second.source.labels[second.order.batch(0).indices[:8]].tolist()


def test_a_signal_during_the_last_evaluation_of_a_stage_repeats_it(
    uninterrupted: Any, foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny import send_during

    from distill.training.evaluations import Evaluations

    expected, second = uninterrupted
    recipe = write_recipe(tmp_path, two_stages(foreign, second=second))
    send_during(Evaluations, "run", monkeypatch, 2, signal.SIGTERM)
    assert run(recipe) == INTERRUPTED
    assert checkpoint(tmp_path / "run").name == f"step-{FOREIGN:08d}"
    assert json.loads((checkpoint(tmp_path / "run") / "state.json").read_text())["stage_ends"] == {}
    monkeypatch.undo()
    assert run(recipe) == DONE
    assert_same_run(tmp_path / "run", expected)


def test_restart_forgets_the_optimizer_and_starts_averages_from_the_weights_of_now() -> None:
    from distill.engine import Engine
    from distill.models.pixels import Pixels
    from distill.student import Averages, BuildOptimizer, Replicated
    from distill.student.learner import Learner

    def sgd(momentum: float) -> BuildOptimizer:
        return lambda learner: torch.optim.SGD(learner.parameters(), momentum=momentum)

    engine = Engine(precision="fp32")
    try:
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        placed = Replicated(
            Learner(net, Pixels((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
            sgd(0.9),
            engine,
            clip_grad_norm=None,
            averages=Averages((0.5,)),
        )
        for _ in range(2):
            placed.forward(torch.ones(2, 3, 2, 2)).logits.sum().backward()
            placed.step(0.1)
            placed.update_averages()
        placed.restart(sgd(0.5), None, new_optimizer=False, new_averages=False)
        state = placed.state()[0]
        assert state["optimizer"]
        assert not torch.equal(state["ema-0.5"]["1.weight"], state["model"]["1.weight"])
        placed.restart(sgd(0.5), 1.0, new_optimizer=True, new_averages=True)
        tensors, values = placed.state()
        assert tensors["optimizer"] == {}
        assert values["optimizer"]["groups"][0]["settings"]["momentum"] == 0.5
        assert torch.equal(tensors["ema-0.5"]["1.weight"], tensors["model"]["1.weight"])
    finally:
        engine.close()
