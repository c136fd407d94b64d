"""Interrupted = uninterrupted, bit for bit on one process: weights, optimizers, averages, metrics,
best exports, report.
"""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from tiny import (
    BASE,
    EVERYTHING,
    assert_same_run,
    checkpoint,
    records,
    report,
    run,
    send_during,
    stop_after,
    tensors,
    write_recipe,
)

import distill.training.loop
from distill.data.fashion import EmbeddedFashionMnist
from distill.data.order.shuffled import Order
from distill.data.sources import open_source
from distill.errors import InputError
from distill.recipe.schema import ImageFolderSpec
from distill.training.evaluations import Evaluations
from distill.training.loop import DONE, INTERRUPTED
from distill.training.run_state import RunCheckpoints


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps with evaluations after 3, 6 and 8 and checkpoints after 4 and 8; an epoch is 7
    steps.
    """
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert run(write_recipe(folder, EVERYTHING)) == DONE
    return folder / "run"


@pytest.mark.parametrize(
    ("step", "number"),
    [
        pytest.param(1, signal.SIGTERM, id="before the first step"),
        pytest.param(3, signal.SIGUSR1, id="where an evaluation is due, inside a log interval"),
        pytest.param(5, signal.SIGTERM, id="in the middle of an epoch"),
        pytest.param(8, signal.SIGINT, id="after the last step"),
    ],
)
def test_a_stopped_run_resumes_as_if_it_had_not_stopped(
    step: int,
    number: int,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop_after(step, monkeypatch, number)
    recipe = write_recipe(tmp_path, EVERYTHING)
    assert run(recipe) == INTERRUPTED == 75
    assert (
        f"{signal.Signals(number).name}: stopped after step {step}, saved in"
        in capsys.readouterr().out
    )
    assert checkpoint(tmp_path / "run").name == f"step-{step:08d}"
    assert not (tmp_path / "run" / "report.json").exists()
    assert run(recipe) == DONE
    assert (
        f"resuming from {tmp_path / 'run' / 'checkpoints'}/step-{step:08d}"
        in capsys.readouterr().out
    )
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "call", "stopped_after"),
    [
        ("train_loader", 1, 1),
        ("evaluate", 1, 3),
        ("save", 1, 5),
        ("evaluate", 3, 8),
        ("save", 2, None),
    ],
    ids=str,
)
def test_a_signal_while_a_run_starts_evaluates_or_saves(
    what: str,
    call: int,
    stopped_after: int | None,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A start and a save wait for the next step, of which there is none after the last; an
    evaluation is abandoned, and repeated later.
    """
    owner, name = {
        "evaluate": (Evaluations, "run"),
        "save": (RunCheckpoints, "save"),
        "train_loader": (distill.training.loop, "train_loader"),
    }[what]
    send_during(owner, name, monkeypatch, call)
    recipe = write_recipe(tmp_path, EVERYTHING)
    if stopped_after is not None:
        assert run(recipe) == INTERRUPTED
        assert checkpoint(tmp_path / "run").name == f"step-{stopped_after:08d}"
    assert run(recipe) == DONE
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.slow
def test_a_run_stopped_at_every_step_ends_the_same(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each session makes one step; a new optimizer, loader, average and scaler each time."""
    recipe = write_recipe(tmp_path, EVERYTHING)
    for step in range(1, 8):
        stop_after(1, monkeypatch)
        assert run(recipe) == INTERRUPTED
        assert checkpoint(tmp_path / "run").name == f"step-{step:08d}"
    assert run(recipe) == DONE
    assert_same_run(tmp_path / "run", uninterrupted)


def test_the_signal_handlers_are_put_back(tmp_path: Path) -> None:
    before = [
        signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    ]
    assert run(write_recipe(tmp_path, {"train": {"budget": "1 iterations"}})) == DONE
    assert before == [
        signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    ]


# ---- damage --------------------------------------------------------------------------------------


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run was stopped after step 7, so its best exports, metrics and one checkpoint are ahead
    of where it resumes.
    """
    stop_after(7, monkeypatch)
    recipe = write_recipe(tmp_path, EVERYTHING)
    assert run(recipe) == INTERRUPTED
    flip_a_byte(checkpoint(tmp_path / "run") / "lamb.optimizer.safetensors")
    assert run(recipe) == DONE
    shown = capsys.readouterr().out
    assert "step-00000007/lamb.optimizer.safetensors: damaged" in shown
    assert "step-00000004" in shown.partition("resuming from")[2].splitlines()[0]
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_again_in_silence(
    tmp_path: Path,
) -> None:
    recipe = write_recipe(tmp_path, {"train": {"budget": "4 iterations"}})
    assert run(recipe) == DONE
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    flip_a_byte(checkpoint(tmp_path / "run") / "alone.model.safetensors")
    with pytest.raises(InputError, match=r"all checkpoints are damaged(.|\n)*resume=never"):
        run(recipe)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


# ---- where best/ and the checkpoint part ---------------------------------------------------------


def parted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run stopped after step 7, whose checkpoint of step 7 is lost: best/ may be ahead of what it
    resumes from.
    """
    stop_after(7, monkeypatch)
    recipe = write_recipe(folder, {"evaluate": {"every": "1 iterations"}})
    assert run(recipe) == INTERRUPTED
    shutil.rmtree(checkpoint(folder / "run"))
    assert checkpoint(folder / "run").name == "step-00000004"
    return recipe


def test_a_better_export_than_the_checkpoint_knows_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill, a GPU may not give the same score again; the report must then still name the
    weights that lie there.
    """
    recipe = parted(tmp_path, monkeypatch)
    record = tmp_path / "run" / "best" / "alone" / "distill.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "top1": 99.0, "step": 6}))
    weights = record.with_name("model.safetensors").read_bytes()
    assert run(recipe) == DONE
    assert report(tmp_path / "run")["students"]["alone"]["best"] == {
        "top1": 99.0,
        "step": 6,
        "weights": "raw",
        "metric": "top1",
    }
    assert record.with_name("model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("damage", ["gone", "torn"])
def test_a_lost_export_is_written_by_the_next_evaluation(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parted(tmp_path, monkeypatch)
    folder = tmp_path / "run" / "best" / "alone"
    if damage == "gone":
        shutil.rmtree(folder)
    else:
        (folder / "distill.json").write_text('{"top1": 99')
    assert run(recipe) == DONE
    record = json.loads((folder / "distill.json").read_text())
    assert 5 <= record["step"] <= 8
    assert {key: record[key] for key in ("top1", "step", "weights", "metric")} == report(
        tmp_path / "run"
    )["students"]["alone"]["best"]


# ---- beginning and end ---------------------------------------------------------------------------


def test_a_complete_run_is_reported_and_not_trained_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, EVERYTHING)
    assert run(recipe) == DONE
    first = report(tmp_path / "run")
    (
        tmp_path / "run" / "report.json"
    ).unlink()  # as if killed between the last checkpoint and the report
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(recipe) == DONE
    assert "this run is complete" in capsys.readouterr().out
    assert report(tmp_path / "run") == first
    (tmp_path / "run" / "report.json").unlink()
    assert {
        path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()
    } == files


def test_without_an_evaluation_set_the_last_weights_are_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, {"data": {"eval": None}})
    stop_after(8, monkeypatch)
    assert run(recipe) == INTERRUPTED
    assert run(recipe) == DONE
    record = json.loads((tmp_path / "run" / "best" / "alone" / "distill.json").read_text())
    assert (record["top1"], record["step"]) == (None, 8)
    assert not [line for line in records(tmp_path / "run") if line["event"] == "evaluate"]


@pytest.mark.parametrize("name", ["state", "recipe", "manifest"])
def test_a_student_may_bear_the_name_of_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, {"students": {name: {}}, "train": {"budget": "2 iterations"}})
    stop_after(1, monkeypatch)
    assert run(recipe) == INTERRUPTED
    assert run(recipe) == DONE
    assert tensors(tmp_path / "run", name)


def test_resume_never_moves_an_earlier_run_aside(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"train": {"budget": "2 iterations"}})
    assert run(recipe) == DONE
    assert run(recipe, "resume=never") == DONE
    aside = next(tmp_path.glob("run.before-*"))
    assert_same_run(aside, tmp_path / "run")


def test_a_run_of_another_recipe_is_not_continued(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"train": {"budget": "2 iterations"}})
    assert run(recipe) == DONE
    with pytest.raises(InputError, match=r"students\.alone\.optimizer\.lr: 0\.05 -> 0\.1"):
        run(recipe, "students.alone.optimizer.lr=0.1")


# ---- unreadable images ---------------------------------------------------------------------------


def test_unreadable_images_are_skipped_and_counted_once_a_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one session and in two: what the order says comes to stand where a broken file is."""
    source = EmbeddedFashionMnist("train")
    for index in range(48):
        folder = tmp_path / "images" / str(source.labels[index])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:02d}.png").write_bytes(source.read(index))
    images = open_source(ImageFolderSpec(kind="image_folder", path="images"), tmp_path)
    broken = (5, 17, 30)
    for index in broken:
        Path(images.describe(index)).write_bytes(images.read(index)[:100])
    folder = {"kind": "image_folder", "path": str(tmp_path / "images")}
    changes = {
        "data": {"train": folder, "eval": folder, "fraction": 1.0, "unreadable": "skip"},
        "log": {"every": "5 iterations"},
    }
    order = Order(len(images), BASE["train"]["batch_size_global"], seed=0)
    expected = sum(int(np.isin(order.batch(step).indices, broken).sum()) for step in range(8))
    assert expected > 3

    assert run(write_recipe(tmp_path, changes, name="uninterrupted")) == 0
    assert report(tmp_path / "uninterrupted")["num_skipped"] == expected
    last = report(tmp_path / "uninterrupted")["students"]["alone"]["last"]
    assert (last["num_samples"], last["num_skipped"]) == (45, 3)

    stop_after(3, monkeypatch)
    recipe = write_recipe(tmp_path, changes)
    assert run(recipe) == INTERRUPTED
    assert run(recipe) == 0
    assert_same_run(tmp_path / "run", tmp_path / "uninterrupted")
    with pytest.raises(InputError, match=r"images/.*\.png"):
        run(write_recipe(tmp_path, changes, {"data": {"unreadable": "error"}}, name="strict"))
