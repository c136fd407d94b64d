"""A run that publishes while it trains: never blocked, never ended, never changed by it."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from command import Cli
from fake_hub import FakeHub
from tiny import assert_same_run, run, stop_after, write_recipe

from distill.errors import InputError
from distill.recipe import load_recipe
from distill.training import publishing
from distill.training.loop import DONE, INTERRUPTED
from distill.training.screen import Screen

COMMIT = "/api/models/alice/net/commit/main"
METADATA = b"---\nlicense: mit\n---\n"  # as the Hub's page for a new repository writes it


def recipe(folder: Path, name: str = "run", **publish: Any) -> Path:
    log = {"publish": {"repo": "alice/net", "every": "4 iterations", **publish}}
    return write_recipe(folder, {"log": log}, {"students": {"alone": {}, "other": {}}}, name=name)


def warnings(shown: str) -> list[str]:
    return [line for line in shown.splitlines() if line.startswith("warning: log.publish")]


def test_a_run_publishes_its_best_weights_and_is_not_blocked(hub: FakeHub, tmp_path: Path) -> None:
    hub.fault(COMMIT, "hold", on=(1,))
    output, trained_while_held = tmp_path / "run", []

    def release() -> None:
        deadline = time.monotonic() + 60
        while not (output / "report.json").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        trained_while_held.append((output / "report.json").exists() and not hub.release.is_set())
        hub.release.set()

    watching = threading.Thread(target=release)
    watching.start()
    assert run(recipe(tmp_path, license="mit")) == DONE
    watching.join()
    assert trained_while_held == [True], "the run reached its end while a push was held"

    repository = hub["alice/net"]
    assert repository.private
    titles = repository.titles()
    assert [title.split(":")[0] for title in titles] == ["step 8", "step 4", "initial commit"]
    files = repository.files()
    (student,) = {title.split(": ")[1].split(",")[0] for title in titles[:1]}
    for name in ("model.safetensors", "config.json", "distill.json"):
        assert files[name] == (output / "best" / student / name).read_bytes()
    for name in ("recipe.yaml", "metrics.jsonl", "report.json"):
        assert files[name] == (output / name).read_bytes()
    assert files["LICENSE"].startswith(b"MIT License")
    assert b"still training" not in files["README.md"]
    before = repository.commits[repository.head().parent or ""].files
    assert b"This run is still training" in before["README.md"].content
    assert "report.json" not in before
    assert not list(output.glob(".tmp-publish-*"))
    net = timm.create_model("hf-hub:alice/net", pretrained=True).eval()
    local = timm.create_model(f"local-dir:{output}/best/{student}", pretrained=True).eval()
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(net(images), local(images))


def test_publishing_changes_nothing_in_the_run(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {"log": {"publish": None}}
    students = {"students": {"alone": {}, "other": {}}}
    assert run(write_recipe(tmp_path, plain, students, name="plain")) == DONE
    published = recipe(tmp_path, "published")
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        assert run(published) == INTERRUPTED
    assert run(published) == DONE
    assert_same_run(tmp_path / "plain", tmp_path / "published")
    assert hub["alice/net"].titles()[0].startswith("step 8")


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ({"path": COMMIT, "kind": "status", "status": 503}, "the Hub answers 503"),
        ({"path": COMMIT, "kind": "status", "status": 403}, "your token may not write there"),
        ({"path": "/lfs/*", "kind": "cut", "after_bytes": 1000}, "connection to the Hub failed"),
        ({"path": "/api/whoami-v2", "kind": "status", "status": 401}, "does not accept your token"),
    ],
)
def test_a_push_that_fails_is_one_warning(
    hub: FakeHub, tmp_path: Path, cli: Cli, fault: dict[str, Any], match: str
) -> None:
    repository = hub.repository("alice/net", {"README.md": METADATA}, private=True)
    before = repository.head()
    hub.fault(**fault, on=None)
    done = cli("train", recipe(tmp_path))
    assert done.code == 0, done.err
    (warning,) = warnings(done.out)
    assert match in warning
    assert "alice/net has nothing yet, and the run continues" in warning
    assert "hf_alice" not in done.out + done.err
    assert repository.head() == before
    hub.faults.faults.clear()
    again = cli("train", recipe(tmp_path))
    assert again.code == 0
    assert "published in alice/net, which has step 8" in again.out
    assert repository.head() != before


@pytest.mark.parametrize(
    ("repo", "match"),
    [
        ("bob/net", "your token is that of alice, who may not write for bob"),
        ("alice/public", "exists and is public, and should be private"),
    ],
)
def test_a_repository_that_cannot_be_used_is_a_warning(
    hub: FakeHub, tmp_path: Path, cli: Cli, repo: str, match: str
) -> None:
    before = hub.repository("alice/public").head()
    done = cli("train", recipe(tmp_path, repo=repo))
    assert done.code == 0
    (warning,) = warnings(done.out)
    assert match in warning
    assert hub["alice/public"].head() == before
    assert "bob/net" not in hub


@pytest.mark.parametrize("name", ["notes.md", "run/id", "metrics.jsonl", "README.md"])
def test_a_repository_with_other_files_is_not_touched(
    hub: FakeHub, tmp_path: Path, cli: Cli, name: str
) -> None:
    repository = hub.repository("alice/net", {name: b"another\n"}, private=True)
    before = repository.head()
    done = cli("train", recipe(tmp_path, checkpoint=True))
    assert done.code == 0, done.err
    (warning,) = warnings(done.out)
    assert f"alice/net: holds files of something else ({name})" in warning
    assert "set log.publish.repo to another repository" in warning
    assert "resume=hf://alice/net" in warning
    assert repository.head() == before


def test_only_checkpoints_of_earlier_steps_are_deleted(hub: FakeHub, tmp_path: Path) -> None:
    path = recipe(tmp_path, checkpoint=True)
    assert run(path, "train.budget=4 iterations") == DONE
    repository = hub["alice/net"]
    places = [f"run/checkpoints/step-{step:08d}/state.json" for step in (2, 4, 9)]
    repository.add({places[0]: b"{}", places[2]: b"{}"}, title="a copy that is ahead")
    assert run(path, "train.budget=4 iterations") == DONE  # complete: it publishes again
    files = repository.files()
    assert [place in files for place in places] == [False, True, True]


def test_two_processes_do_not_publish_one_run(hub: FakeHub, tmp_path: Path, cli: Cli) -> None:
    path = recipe(tmp_path)
    hub.fault(COMMIT, "hold", on=(2,))
    taken = []

    def take_over() -> None:
        deadline = time.monotonic() + 60
        while hub.requests[COMMIT] < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        run_id = hub["alice/net"].files()["run/id"].split()[0]
        taken.append(hub["alice/net"].add({"run/id": run_id + b"\nanother session\n"}))
        hub.release.set()

    watching = threading.Thread(target=take_over)
    watching.start()
    done = cli("train", path)
    watching.join()
    assert done.code == 0
    assert hub["alice/net"].head().oid == taken[0]
    (warning,) = warnings(done.out)
    assert "another client changed it at the same time" in warning
    assert run(path) == DONE, "the next session takes over"
    assert hub["alice/net"].titles()[0].startswith("step 8")


def test_a_run_that_an_earlier_version_published_is_published_on(
    hub: FakeHub, tmp_path: Path
) -> None:
    path = recipe(tmp_path)
    assert run(path, "train.budget=4 iterations") == DONE
    repository = hub["alice/net"]
    name = repository.head().oid
    files = {path: file for path, file in repository.head().files.items() if path != "run/id"}
    repository.commits[name] = replace(repository.head(), files=files)
    (tmp_path / "run/.run_id").unlink()
    assert run(path, "train.budget=4 iterations") == DONE
    assert "run/id" in repository.files()


def test_without_a_token_the_run_says_so_and_trains(
    hub: FakeHub, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    done = cli("train", recipe(tmp_path))
    assert done.code == 0
    (warning,) = warnings(done.out)
    assert "publishing needs a token with write access" in warning
    assert "has nothing yet" in warning


def test_what_prevents_a_push_is_reported_before_the_first_one(
    hub: FakeHub, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    original = publishing.Publisher.warn_once
    has_warned: list[bool] = []

    def looked(publisher: publishing.Publisher) -> None:
        deadline = time.monotonic() + 60
        while publisher._failure is None and time.monotonic() < deadline:
            time.sleep(0.01)
        original(publisher)
        has_warned.append(publisher._has_warned)

    monkeypatch.setattr(publishing.Publisher, "warn_once", looked)
    done = cli("train", recipe(tmp_path, every="8 iterations"), "evaluate.every=8 iterations")
    lines = done.out.splitlines()
    (warned,) = [i for i, line in enumerate(lines) if line.startswith("warning: log.publish")]
    (saved,) = [i for i, line in enumerate(lines) if "report.json" in line]
    assert has_warned[0]
    assert warned < saved


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_the_last_push(
    hub: FakeHub, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    hub.fault(COMMIT, "hold", on=None)
    shown: list[str] = []

    def interrupt(screen: Screen, message: str) -> None:
        shown.append(message)
        if message.startswith("waiting for the last push to alice/net, Ctrl-C ends the wait"):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Screen, "say", interrupt)
    start = time.monotonic()
    done = cli("train", recipe(tmp_path, every="8 iterations"))
    assert done.code == 0
    assert time.monotonic() - start < 60
    (warning,) = [each for each in shown if each.startswith("warning: log.publish")]
    assert f"{signal.Signals(number).name} ended the wait for the last push" in warning
    assert not list((tmp_path / "run").glob(".tmp-publish-*"))


def test_the_last_push_is_waited_for_only_so_long(
    hub: FakeHub, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "LAST_PUSH_S", 0.5)
    hub.fault(COMMIT, "hold", on=None)
    start = time.monotonic()
    done = cli("train", recipe(tmp_path, every="8 iterations"))
    assert done.code == 0
    assert time.monotonic() - start < 60
    (warning,) = warnings(done.out)
    assert "the last push took longer than 0.5 s" in warning


def test_the_recipe_is_checked(tmp_path: Path, cli: Cli) -> None:
    for change, match in (
        ("log.publish.repo=net", "log.publish.repo: "),
        ("log.publish.license=mitt", "log.publish.license mitt: the Hub does not know this id"),
        ("log.publish.license=other", "distill publish --license other --license-file FILE"),
        ("log.publish.evry=1", "log.publish.evry: unknown key (did you mean 'every'"),
    ):
        done = cli("train", recipe(tmp_path), change)
        assert done.code == 2, change
        assert match in done.err
    with pytest.raises(InputError, match="should be OWNER/NAME"):
        load_recipe(recipe(tmp_path, repo="net"))
