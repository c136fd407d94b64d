"""Trackers: a resumed run continues in the same run, and the models of a metric share a chart."""

from pathlib import Path

import pytest
import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill.engine import Tracking
from distill.engine.trackers import OVERLAID, read_run_id
from distill.student.loss_sums import Losses


def test_a_run_keeps_its_id(tmp_path: Path) -> None:
    first = read_run_id(tmp_path / "a" / "trackers")
    assert read_run_id(tmp_path / "a" / "trackers") == first
    assert read_run_id(tmp_path / "b" / "trackers") != first


def test_wandb_and_trackio_are_asked_for_the_same_run_again(tmp_path: Path) -> None:
    tracking = Tracking(("wandb", "trackio", "tensorboard"), "mine", "team", tmp_path)
    new = tracking.arguments("a/run", "abc", 0)
    assert new["wandb"] == {
        "name": "a/run",
        "id": "abc",
        "resume": "allow",
        "entity": "team",
        "dir": str(tmp_path),
    }
    assert new["trackio"] == {"name": "a/run-abc", "resume": "allow"}
    assert new["tensorboard"] == {}
    resumed = tracking.arguments("a/run", "abc", 40)
    assert (resumed["wandb"], resumed["trackio"]) == (new["wandb"], new["trackio"])
    assert resumed["tensorboard"] == {"purge_step": 41}
    assert Tracking(("wandb",)).arguments("a", "b", 0).keys() == {"wandb"}


def test_each_loss_term_has_a_chart() -> None:
    terms = {f"loss_{name}" for name in Losses.NAMES} - {"loss_kept"}
    assert terms <= {*OVERLAID}


def test_tensorboard_continues_and_groups_by_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    log = {"trackers": ["tensorboard"], "project": "mine", "directory": str(elsewhere)}
    recipe = tiny.write_recipe(tmp_path, {"log": log, "students": {"a": {}, "b": {"seed": 1}}})
    tiny.stop_after(3, monkeypatch)
    assert tiny.run(recipe) == 75
    assert tiny.run(recipe) == 0
    found = EventAccumulator(str(elsewhere / "mine"))
    found.Reload()
    tags = set(found.Tags()["scalars"])
    assert {
        "loss_total/a",
        "loss_total/b",
        "lr/a",
        "top1/a",
        "top1/teacher",
        "agreement/b",
        "run/images_per_s",
    } <= tags
    assert [event.step for event in found.Scalars("loss_total/a")] == list(range(1, 9)), (
        "no step twice, none lost"
    )
    losses = {
        r["step"]: r["students"]["b"]["loss_total"]
        for r in tiny.records(tmp_path / "run")
        if "students" in r
    }
    for event in found.Scalars("loss_total/b"):
        assert event.value == pytest.approx(losses[event.step], rel=1e-6)
