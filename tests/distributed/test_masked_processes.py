"""Two processes that reconstruct removed patches end with the weights of one, under ZeRO too."""

from typing import Any

import pytest
import torch
from launch import Launch, deviation
from tiny import MASKED, assert_equal_tensors, run, tensors, write_recipe

from distill.training.loop import DONE

STUDENT = MASKED["students"]["pre"]
# Parameters that blocks hold themselves, which ZeRO-3 gathers outside of their forward. AdamW
# amplifies what rounds near zero, unless eps is large.
SCALED: dict[str, Any] = {
    "students": {
        "pre": {
            **STUDENT,
            "model_args": {**STUDENT["model_args"], "ls_init_value": 0.5},
            "optimizer": {**STUDENT["optimizer"], "args": {"eps": 1e-4}},
        }
    }
}
ROUNDING = 1e-3


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("masked")
    launch = Launch(folder)
    launch.add("two", write_recipe(folder, MASKED, name="two"))
    for stage in (2, 3):
        zero = {"train": {"zero_stage": stage}}
        launch.add(f"zero{stage}", write_recipe(folder, MASKED, SCALED, zero, name=f"zero{stage}"))
    launch.start()
    try:
        assert run(write_recipe(folder, MASKED, name="one")) == DONE
        assert run(write_recipe(folder, MASKED, SCALED, name="scaled")) == DONE
    finally:
        launch.finish()
    return launch


def test_two_processes_are_one(launch: Launch) -> None:
    assert launch.codes("two") == [DONE, DONE], launch.shown("two")
    one, two = (tensors(launch.folder / name) for name in ("one", "two"))
    assert any(name.startswith("pre.heads/") for name in one)
    # Two micro-batches of 8: a sum of two gradients has one order.
    assert_equal_tensors(two, one)


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_is_one_process(stage: int, launch: Launch) -> None:
    name, folder = f"zero{stage}", launch.folder
    assert launch.codes(name) == [DONE, DONE], launch.shown(name)
    apart = deviation(folder / "scaled", folder / name, folder / "scaled.yaml")
    assert apart["pre"] < ROUNDING, apart
    one, two = (tensors(folder / each, "pre.heads") for each in ("scaled", name))
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-3, atol=1e-5)
