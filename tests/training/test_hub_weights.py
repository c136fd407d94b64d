"""Runs whose teacher or student is a model of the Hub keep its commit, and say which it was."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command import Cli
from fake_hub import FakeHub
from safetensors.torch import load_file, save_file
from tiny import IMAGE_SIZE, assert_same_run, best, checkpoint, run, stop_after, write_recipe

from distill.errors import InputError
from distill.models.export_format import read_record
from distill.models.hub.download import pin_commits
from distill.release.evaluate import evaluate_models
from distill.training.build import refuse_other_commits
from distill.training.loop import DONE, INTERRUPTED

MODEL = "cifar_resnet8"
CHANGES = {
    "teacher": {"model": MODEL, "weights": "hf://alice/net", "image_size": IMAGE_SIZE},
    "students": {
        "fresh": {},
        "tuned": {"weights": "hf://alice/net@v1", "objective": {"soft": {"loss": "kl"}}},
    },
}


def files_of(export: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in export.iterdir()}


@pytest.fixture
def published(hub: FakeHub, tiny_run: Path) -> FakeHub:
    repository = hub.repository("alice/net", files_of(tiny_run / "best/kd"))
    repository.tags["v1"] = repository.head().oid
    return hub


def move_branch(hub: FakeHub, tiny_run: Path, folder: Path) -> str:
    """Publishes other weights to main, as another client would."""
    shutil.copytree(tiny_run / "best/kd", folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v * 1.5 if v.dtype == torch.float32 else v for k, v in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return hub["alice/net"].add(files_of(folder))


def test_a_run_keeps_its_commits_when_it_resumes(
    published: FakeHub, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = published["alice/net"].head().oid
    whole = write_recipe(tmp_path, CHANGES, name="whole")
    assert run(whole) == DONE
    stopped = write_recipe(tmp_path, CHANGES, name="stopped")
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        assert run(stopped) == INTERRUPTED
    moved = move_branch(published, tiny_run, tmp_path / "other")
    pin_commits({})
    assert run(stopped) == DONE
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")

    state = json.loads((checkpoint(tmp_path / "stopped") / "state.json").read_text())
    assert state["hub"] == {"hf://alice/net": first, "hf://alice/net@v1": first}
    report = json.loads((tmp_path / "stopped/report.json").read_text())
    assert report["origins"]["teacher"]["weights"] == f"hf://alice/net@{first}"
    assert report["origins"]["tuned"] == {"began_with": f"hf://alice/net@{first}"}
    assert report["origins"]["fresh"] == {"began_with": "random weights"}
    record = best(tmp_path / "stopped", "tuned")[1]
    assert record["teacher"] == report["origins"]["teacher"]
    assert record["began_with"] == f"hf://alice/net@{first}"

    pin_commits({})
    assert run(write_recipe(tmp_path, CHANGES, name="later")) == DONE
    report = json.loads((tmp_path / "later/report.json").read_text())
    assert report["origins"]["teacher"]["weights"] == f"hf://alice/net@{moved}"


def test_the_student_begins_with_the_weights_of_the_hub(
    published: FakeHub, tiny_run: Path, tmp_path: Path
) -> None:
    local = {
        **CHANGES["students"],
        "tuned": {
            "weights": str(tiny_run / "best/kd/model.safetensors"),
            "objective": {"soft": {"loss": "kl"}},
        },
    }
    assert run(write_recipe(tmp_path, CHANGES, name="hub")) == DONE
    assert run(write_recipe(tmp_path, CHANGES, {"students": local}, name="local")) == DONE
    for student in ("fresh", "tuned"):
        of_hub, of_file = (best(tmp_path / name, student)[0] for name in ("hub", "local"))
        assert all(torch.equal(of_hub[key], of_file[key]) for key in of_file)


def test_check_needs_no_hub_and_train_says_the_commit(
    published: FakeHub, tmp_path: Path, cli: Cli
) -> None:
    recipe = write_recipe(tmp_path, CHANGES)
    found = cli("recipe", "check", recipe)
    assert found.code == 0
    assert "teacher.weights: hf://alice/net is not in the cache; training downloads it" in found.out
    assert not published.log
    trained = cli("train", recipe, "train.budget=1 iterations")
    assert trained.code == 0
    commit = published["alice/net"].head().oid
    assert f"hf://alice/net is commit {commit}" in trained.out
    assert "is not in the cache" not in cli("recipe", "check", recipe).out


def test_a_model_of_the_hub_is_evaluated_as_its_export(
    published: FakeHub, tiny_run: Path, cli: Cli
) -> None:
    data = {"data": "fashion_mnist", "split": "test", "num_workers": 0}
    here = evaluate_models(tiny_run / "best/kd", **data)["kd"]
    there = evaluate_models("hf://alice/net", **data)["net"]
    assert there == here
    command = ("evaluate", "hf://alice/net@v1", "--data", "fashion_mnist", "--split", "test")
    printed = cli(*command, "--num-workers", 0)
    assert printed.code == 0
    assert f"{here.top1:.2f}" in printed.out
    refused = cli("evaluate", "hf://alice/net", "--student", "kd", "--data", "fashion_mnist")
    assert refused.code == 2
    assert "--student kd picks among what a run holds, and hf://alice/net is one" in refused.err
    absent = cli("evaluate", "hf://alice/absent", "--data", "fashion_mnist")
    assert absent.code == 2
    assert "hf://alice/absent: there is no such model" in absent.err


def test_processes_with_different_commits_are_refused() -> None:
    main = SimpleNamespace(on_main=lambda act: {"hf://alice/net@v1": "a" * 40})
    pin_commits({"hf://alice/net@v1": "a" * 40})
    refuse_other_commits(main)
    pin_commits({"hf://alice/net@v1": "b" * 40})
    with pytest.raises(InputError, match=r"changed on the Hub .* as in hf://alice/net@a{40}"):
        refuse_other_commits(main)
    pin_commits({})


def test_the_record_of_a_published_model_is_read(published: FakeHub, tiny_run: Path) -> None:
    from distill.release.find import find_models

    path = Path("hf://alice/net")
    (found,) = find_models(path, model=None, student=None, weights="best", image_size=None)
    record = read_record(tiny_run / "best/kd")
    name = f"hf://alice/net@{published['alice/net'].head().oid}"
    assert found.record == {**record, "hub": name, "began_with": name}
    newer = published["alice/net"].add({"NOTES": b"1"})
    (found,) = find_models(path, model=None, student=None, weights="best", image_size=None)
    assert found.record["hub"] == f"hf://alice/net@{newer}"
