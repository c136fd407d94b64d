"""`distill doctor` of a run in stages: the hungriest optimizer, and epochs of each stage's own
data.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from command import Cli
from shards import write_tars
from tiny import write_recipe

from distill.doctor.measure import measure
from distill.recipe import load_recipe

LAMB, SGD = {"name": "lamb", "lr": 0.01}, {"name": "momentum", "lr": 0.01}


def staged(folder: Path, *stages: dict[str, Any], **changes: Any) -> str:
    named = [{"name": f"s{i}", "budget": "1 epochs", **stage} for i, stage in enumerate(stages)]
    return str(write_recipe(folder, {"train": {"budget": None}, "stages": named, **changes}))


def optimizer(*stages: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"optimizer": "reset", "student": {"optimizer": each}} for each in stages]


@pytest.mark.parametrize("hungry", [0, 1])
def test_memory_is_that_of_the_stage_whose_optimizers_hold_most(
    hungry: int, tmp_path: Path
) -> None:
    stages = [SGD, SGD]
    stages[hungry] = LAMB
    found = measure(load_recipe(staged(tmp_path, *optimizer(*stages))), 10)
    assert found.of_stage == f"s{hungry}"
    assert [s.state_bytes for s in found.students] == [2 * s.weight_bytes for s in found.students]
    assert not any(
        s.elementwise for s in found.students
    )  # LAMB is none in its stage, so ZeRO is none for the run


def test_a_sum_over_students_is_of_one_stage(tmp_path: Path) -> None:
    """Each student has LAMB at some time, and never both."""
    turns = [
        {"optimizer": "reset", "students": {"a": {"optimizer": first}, "b": {"optimizer": second}}}
        for first, second in ((LAMB, SGD), (SGD, LAMB))
    ]
    found = measure(load_recipe(staged(tmp_path, *turns, students={"a": {}, "b": {}})), 10)
    assert found.of_stage is None
    assert [s.state_bytes // s.weight_bytes for s in found.students] == [2, 1]
    assert not any(s.elementwise for s in found.students)


def test_another_rate_is_no_other_optimizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    monkeypatch.setattr("distill.doctor.measure.optimizer_bytes", lambda *_: counted.append(1) or 0)
    assert (
        measure(load_recipe(staged(tmp_path, *optimizer(SGD, SGD | {"lr": 0.5}))), 10).of_stage
        is None
    )
    assert counted == [1]


def test_epochs_are_of_each_stage_s_data(cli: Cli, tmp_path: Path) -> None:
    """160 images of a stream in batches of 16; a fiftieth of 6,000; a stage whose data is not here;
    7 iterations of it.
    """
    write_tars(tmp_path / "tars", [b"image"] * 160, 50)
    tars = {"kind": "stream", "path": str(tmp_path / "tars"), "labelled": False}
    soft = {"student": {"objective": {"hard": None, "soft": {"loss": "kl"}}}}
    here = ({"data": {"train": tars}, "budget": "3 epochs", **soft}, {"budget": "2 epochs"})

    def found(*stages: dict[str, Any]) -> tuple[str, str]:
        (folder := tmp_path / str(len(stages))).mkdir()
        outcome = cli("doctor", staged(folder, *stages), "--gpus", 1, "--decode", 100, "--json")
        assert outcome.code == 0, outcome.err
        counted = json.loads(outcome.out)
        return (
            counted["sections"]["Assumed"]["training images"]["value"],
            counted["forecast"][0]["gpu_hours"],
        )

    images, hours = found(*here)
    assert images == "s0 160, s1 120"
    away = {"data": {"train": tars | {"path": "nowhere"}}, **soft}
    images, more = found(*here, {**away, "budget": "7 iterations"})
    assert images == "s0 160, s1 120, s2 unknown"
    assert float(more) / float(hours) == pytest.approx((3 * 10 + 2 * 7 + 7) / (3 * 10 + 2 * 7))
    assert found(*here, {**away, "budget": "7 iterations"}, away) == (
        "s0 160, s1 120, s2 unknown, s3 unknown",
        None,
    )
