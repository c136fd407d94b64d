"""A student whose loss is not finite stops alone: the others, the checkpoints, the best exports and
the report continue without it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import (
    EVERYTHING,
    assert_equal_tensors,
    assert_same_run,
    best,
    checkpoint,
    records,
    report,
    run,
    stop_after,
    tensors,
    write_recipe,
)

from distill.training.loop import ALL_STOPPED, DONE, INTERRUPTED

SOUND = EVERYTHING["students"]
# The update of step 4 (the first after 3 finished ones) is 1e30 times too large, so the loss of
# step 5 is not finite.
DIVERGING: dict[str, Any] = {
    "optimizer": {"name": "momentum", "lr": 1e-3},
    "schedule": {"name": "step", "milestones": ["3 iterations"], "decay_factor": 1e30},
    "ema": {"decays": [0.5]},
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two students without the one that diverges."""
    folder = tmp_path_factory.mktemp("sound")
    assert (
        run(
            write_recipe(
                folder, EVERYTHING, {"students": {name: SOUND[name] for name in ("lamb", "sgd")}}
            )
        )
        == DONE
    )
    return folder / "run"


def with_diverging(folder: Path, *changes: dict[str, Any], name: str = "run") -> Path:
    students = {"lamb": SOUND["lamb"], "bad": DIVERGING, "sgd": SOUND["sgd"]}
    return write_recipe(folder, EVERYTHING, {"students": students}, *changes, name=name)


def test_one_student_stops_and_the_others_do_not_notice(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(with_diverging(tmp_path)) == DONE
    shown = capsys.readouterr().out
    assert (
        "bad: the loss of step 5 is not finite; this student stops here, the others continue"
        in shown
    )
    assert "students.bad.optimizer.lr" in shown
    for name in ("lamb", "sgd"):
        assert_equal_tensors(tensors(tmp_path / "run", name), tensors(sound, name))
        assert best(tmp_path / "run", name)[1] == best(sound, name)[1]
    assert not tensors(tmp_path / "run", "bad")
    stops = [line for line in records(tmp_path / "run") if line["event"] == "stopped"]
    assert stops == [{"event": "stopped", "step": 5, "student": "bad"}]
    for line in records(tmp_path / "run"):
        assert "students" not in line or ("bad" in line["students"]) == (line["step"] < 5)

    students = report(tmp_path / "run")["students"]
    assert {name: students[name]["stopped_at"] for name in students} == {
        "lamb": None,
        "bad": 5,
        "sgd": None,
    }
    weights, record = best(tmp_path / "run", "bad")
    assert record["step"] == 3 == students["bad"]["best"]["step"], (
        "what it was before it diverged stays"
    )
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.parametrize("stop", [4, 5, 6])
def test_a_resumed_run_remembers_who_stopped(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before, at and after the step whose loss is not finite."""
    assert run(with_diverging(tmp_path, name="uninterrupted")) == DONE
    stop_after(stop, monkeypatch)
    recipe = with_diverging(tmp_path)
    assert run(recipe) == INTERRUPTED
    state = json.loads((checkpoint(tmp_path / "run") / "state.json").read_text())
    assert state["students"]["bad"]["stopped_at"] == (None if stop < 5 else 5)
    assert run(recipe) == DONE
    assert_same_run(tmp_path / "run", tmp_path / "uninterrupted")


def test_a_stop_after_the_checkpoint_that_a_run_resumes_from_is_recorded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of step 5 does not belong to a run that stands at step 4."""
    assert run(with_diverging(tmp_path, name="uninterrupted")) == DONE
    stop_after(6, monkeypatch)
    recipe = with_diverging(tmp_path)
    assert run(recipe) == INTERRUPTED
    shutil.rmtree(checkpoint(tmp_path / "run"))
    assert checkpoint(tmp_path / "run").name == "step-00000004"
    assert run(recipe) == DONE
    assert_same_run(tmp_path / "run", tmp_path / "uninterrupted")


def test_weights_that_give_no_finite_loss_are_never_the_best(tmp_path: Path) -> None:
    """A student that is evaluated right after the update that ruins it has no finite logits, which
    counts as wrong for every image; JSON has no NaN.
    """
    recipe = with_diverging(tmp_path, {"evaluate": {"every": "4 iterations"}})
    assert run(recipe) == DONE
    models = next(
        line["models"] for line in records(tmp_path / "run") if line["event"] == "evaluate"
    )
    assert models["bad"]["loss"] is None
    assert models["bad"]["top1"] == 0
    assert report(tmp_path / "run")["students"]["bad"]["best"] is None
    assert not (tmp_path / "run" / "best" / "bad").exists()


def test_a_run_whose_students_have_all_stopped_ends_with_a_code_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(
        tmp_path,
        {"students": {"one": DIVERGING, "two": DIVERGING}, "evaluate": {"every": "2 iterations"}},
    )
    for _ in range(2):  # the same command finds the same end
        assert run(recipe) == ALL_STOPPED == 3
        assert "step 6/8" not in capsys.readouterr().out
        result = report(tmp_path / "run")
        assert result["steps"] == 5
        assert [student["stopped_at"] for student in result["students"].values()] == [5, 5]
        assert best(tmp_path / "run", "one")[1]["step"] == 2
        assert [
            line["step"] for line in records(tmp_path / "run") if line["event"] == "stopped"
        ] == [5, 5]
