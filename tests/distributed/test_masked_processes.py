"""Two processes that reconstruct removed patches end with the weights of one."""

from pathlib import Path

from launch import Launch
from tiny import MASKED, assert_equal_tensors, run, tensors, write_recipe

from distill.training.loop import DONE


def test_two_processes_are_one(tmp_path: Path) -> None:
    launch = Launch(tmp_path)
    launch.add("two", write_recipe(tmp_path, MASKED, name="two"))
    launch.start()
    try:
        assert run(write_recipe(tmp_path, MASKED, name="one")) == DONE
    finally:
        launch.finish()
    assert launch.codes("two") == [DONE, DONE], launch.shown("two")
    one, two = (tensors(tmp_path / name) for name in ("one", "two"))
    assert any(name.startswith("pre.heads/") for name in one)
    # Two micro-batches of 8: a sum of two gradients has one order.
    assert_equal_tensors(two, one)
