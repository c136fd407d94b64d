"""log.gradient_norms on two processes: the norms are those of one process, and DDP averages the
same gradients as without them.

As in test_two_processes.py one launch makes all runs of two processes.
"""

from pathlib import Path
from typing import Any

import pytest
from launch import Launch
from tiny import EVERYTHING, assert_equal_tensors, records, run, tensors, write_recipe

from distill.training.loop import DONE

NORMS = {"log": {"gradient_norms": True}}
STUDENTS: dict[str, Any] = {
    "lamb": EVERYTHING["students"]["lamb"],  # clipped
    "dist": EVERYTHING["students"]["sgd"],  # its loss is collective in a statistics group
}
MICRO: dict[str, Any] = {"students": STUDENTS, "train": {"budget": "2 iterations"}}
SHARED = {**MICRO, "train": {**MICRO["train"], "micro_batch_size": None}}
ZERO: dict[str, Any] = {
    "students": {
        name: {
            **EVERYTHING["students"]["adamw"],
            "drop_rate": 0.0,
            "optimizer": optimizer,
            "schedule": {},
        }
        for name, optimizer in (
            ("clipped", {"name": "adamw", "lr": 1e-3, "clip_grad_norm": 0.1}),
            ("free", {"name": "adamw", "lr": 1e-3}),
        )
    },
    "train": {"budget": "2 iterations"},
}


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    folder = tmp_path_factory.mktemp("norms")
    launch = Launch(folder)

    def recipe(name: str, *changes: dict[str, Any]) -> Path:
        return write_recipe(folder, EVERYTHING, *changes, name=name)

    launch.add("micro-2", recipe("micro-2", MICRO, NORMS))
    launch.add("without-2", recipe("without-2", MICRO))
    launch.add("shared-2", recipe("shared-2", SHARED, NORMS))
    for stage in (1, 2, 3):
        changes = {"train": {"zero_stage": stage}}
        launch.add(f"zero{stage}", recipe(f"zero{stage}", ZERO, NORMS, changes))
    launch.start()
    for name, changes in (("micro-1", MICRO), ("shared-1", SHARED), ("zero-1", ZERO)):
        assert run(recipe(name, changes, NORMS)) == DONE
    launch.finish()
    return launch


def norms(launch: Launch, name: str) -> dict[str, dict[str, float]]:
    last = [line for line in records(launch.folder / name) if line["event"] == "train"][-1]
    return {
        student: {key: value for key, value in values.items() if key.startswith("gradient_norm_")}
        for student, values in last["students"].items()
    }


@pytest.mark.parametrize("batches", ["micro", "shared"])
def test_two_processes_record_the_norms_of_one(launch: Launch, batches: str) -> None:
    one, two = norms(launch, f"{batches}-1"), norms(launch, f"{batches}-2")
    for name in STUDENTS:
        assert len(one[name]) == 3
        assert two[name] == pytest.approx(one[name], rel=1e-2), name


def test_ddp_averages_the_same_gradients(launch: Launch) -> None:
    assert_equal_tensors(tensors(launch.folder / "micro-2"), tensors(launch.folder / "without-2"))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_records_the_total(launch: Launch, stage: int) -> None:
    one, two = norms(launch, "zero-1"), norms(launch, f"zero{stage}")
    for name in ZERO["students"]:
        assert list(two[name]) == ["gradient_norm_total"]
        assert two[name]["gradient_norm_total"] == pytest.approx(
            one[name]["gradient_norm_total"], rel=1e-3
        )
