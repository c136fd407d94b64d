"""report.json: what a run was, what it cost, and what computed it; after a stop the same as without
one.
"""

import json
import platform
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import tiny
from tiny import NUM_EVAL

from distill.data.fashion import CLASSES
from distill.evaluation.accuracy import Accuracy
from distill.models import cifar as cifar  # registers its models
from distill.training.clock import Clock
from distill.training.summary import Summary


def report(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "report.json").read_text()))


def test_a_report_says_what_was_trained_on_what(tiny_run: Path) -> None:
    found = report(tiny_run)
    students = found["students"]
    net = timm.create_model("cifar_resnet8", num_classes=10)
    assert students["kd"]["parameters"] == sum(p.numel() for p in net.parameters())
    assert students["alone"]["objective"]["hard"]["loss"] == "ce"
    assert students["alone"]["objective"]["soft"] is None
    assert students["kd"]["objective"]["soft"]["loss"] == "kl"
    assert students["kd"]["objective"]["soft"]["temperature"] == 2.0
    (train,) = found["data"]["train"]
    assert (train["kind"], train["split"], train["images"], train["images_used"]) == (
        "fashion_mnist",
        "train",
        6000,
        120,
    )
    assert found["data"]["eval"]["images"] == NUM_EVAL
    assert found["data"]["eval"]["path"] == str(tiny_run.parent / "eval")
    assert found["data"]["num_classes"] == len(CLASSES)


def test_a_report_says_what_computed_it(tiny_run: Path) -> None:
    versions = report(tiny_run)["versions"]
    assert versions["python"] == platform.python_version()
    for library in ("torch", "timm", "accelerate", "deepspeed"):
        assert versions[library] == metadata.version(library)
    assert len(versions["commit"].removesuffix("-dirty")) == 40


def test_a_report_says_how_fast_it_was(tiny_run: Path) -> None:
    found = report(tiny_run)
    speed = found["throughput"]
    assert speed["images_per_s"] == pytest.approx(6 * 16 / speed["training_seconds"])
    assert 0 < speed["data_wait_seconds"] < speed["training_seconds"] < found["seconds"]


def test_speed_and_warnings_of_earlier_sessions_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"students": {"good": {}, "bad": {"optimizer": {"lr": 1e30}}}}
    recipe = tiny.write_recipe(tmp_path, changes)
    tiny.stop_after(4, monkeypatch)
    assert tiny.run(recipe) == 75
    state = tiny.checkpoint(tmp_path / "run") / "state.json"
    first = json.loads(state.read_text())
    assert first["training"]["steps"] == 4
    assert tiny.run(recipe) == 0
    last = json.loads((tiny.checkpoint(tmp_path / "run") / "state.json").read_text())
    assert last["training"]["steps"] == 8
    assert last["training"]["seconds"] > first["training"]["seconds"]
    found = report(tmp_path / "run")
    stopped, guessing = found["warnings"]
    assert stopped.startswith("bad: the loss of step ")
    assert guessing.startswith("teacher: top-1 ")
    assert found["throughput"]["images_per_s"] == pytest.approx(
        8 * 16 / found["throughput"]["training_seconds"]
    )


def test_a_checkpoint_of_an_earlier_version_has_no_training_time() -> None:
    clock = Clock(1)
    clock.add_earlier(100, 100, None)
    assert clock.throughput(16) == {
        "images_per_s": 0.0,
        "training_seconds": 0.0,
        "data_wait_seconds": 0.0,
    }


@pytest.mark.parametrize(
    ("output", "best", "top1", "lines"),
    [
        (
            "runs/a b/kd",
            "kd",
            50.0,
            [
                "next:",
                "  distill evaluate 'runs/a b/kd'",
                "  distill export 'runs/a b/kd' 'exports/a b/kd'",
            ],
        ),
        (
            "/data/run",
            "kd",
            None,  # evaluated without labels
            [
                "next:",
                "  distill evaluate /data/run --data FOLDER",
                "  distill export /data/run exports/run",
            ],
        ),
        ("runs/x", None, None, []),
    ],
)
def test_the_end_names_the_next_commands(
    output: str, best: str | None, top1: float | None, lines: list[str]
) -> None:
    accuracies = {"kd": Accuracy(top1, None, None, 9)} if best else {}
    students = [SimpleNamespace(is_backbone=False)]
    ended: Any = SimpleNamespace(
        output=Path(output), best=best, accuracies=accuracies, students=students
    )
    assert Summary.next_commands(ended) == [*lines, f"report: {output}/report.json"]
