"""What a checkpoint holds of a run, in this version and in earlier ones."""

from typing import Any

from distill.training.run_state import RunState

FIRST_VERSION: dict[str, Any] = {
    "classes": ["cat", "dog"],
    "inputs": {"training images": 3},
    "seconds": 1.5,
    "device_seconds": 3.0,
    "num_skipped": 0,
    "judged_step": 4,
    "accuracies": {"kd": {"top1": 50.0}},
    "students": {"kd": {"stopped_at": None}},
}


def test_the_keys_of_a_checkpoint_stay() -> None:
    values = FIRST_VERSION | {"training": {"steps": 4}, "warnings": ["w"], "views": {"kd": {}}}
    values["evaluated_step"] = values.pop("judged_step")
    assert RunState.from_dict(values).to_dict() == values
    in_stages = values | {"stage_ends": {"first": {}}}
    assert RunState.from_dict(in_stages).to_dict() == in_stages


def test_a_checkpoint_of_an_earlier_version_loads() -> None:
    state = RunState.from_dict(FIRST_VERSION)
    assert (state.training, state.warnings, state.views, state.stage_ends) == (None, [], None, None)
    assert state.evaluated_step == 4
