"""A run resumes on a fresh machine from what it published, bit for bit."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from command import Cli
from fake_hub import FakeHub
from fake_hub_repository import File
from tiny import EVERYTHING, assert_same_run, run, stop_after, write_recipe

from distill.training.loop import DONE, INTERRUPTED

HUB = "hf://alice/net"
PUBLISH = {
    "log": {"publish": {"repo": "alice/net", "every": "4 iterations", "checkpoint": True}},
}


def checkpoints(hub: FakeHub) -> set[str]:
    return {name.split("/")[2] for name in hub["alice/net"].files() if "checkpoints" in name}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert run(write_recipe(folder, EVERYTHING)) == DONE
    return folder / "run"


@pytest.mark.parametrize("step", [3, 5])
def test_a_run_continues_on_a_fresh_machine_as_if_it_had_not_stopped(
    hub: FakeHub,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    recipe = write_recipe(tmp_path, EVERYTHING, PUBLISH)
    with monkeypatch.context() as patch:
        stop_after(step, patch)
        assert run(recipe, f"resume={HUB}") == INTERRUPTED
    assert checkpoints(hub) == {f"step-0000000{step}"}
    shutil.rmtree(tmp_path / "run")
    assert run(recipe, f"resume={HUB}") == DONE
    assert_same_run(uninterrupted, tmp_path / "run")
    assert checkpoints(hub) == {"step-00000008"}, "the older one is gone"
    assert not list((tmp_path / "run").glob(".tmp*"))


def test_it_continues_from_any_commit(
    hub: FakeHub, uninterrupted: Path, tmp_path: Path, cli: Cli
) -> None:
    recipe = write_recipe(tmp_path, EVERYTHING, PUBLISH)
    hub.fault("/api/models/alice/net/commit/main", "status", status=503, on=(2, 3))
    assert run(recipe) == DONE
    repository = hub["alice/net"]
    assert repository.titles()[0].startswith("step 4"), "the machine was lost after this push"
    shutil.rmtree(tmp_path / "run")
    commit = repository.head().oid
    done = cli("train", recipe, f"resume={HUB}@{commit}")
    assert done.code == 0, done.err
    assert f"from step-00000004 of {HUB}@{commit}" in done.out
    assert_same_run(uninterrupted, tmp_path / "run")


def test_what_is_here_is_continued_without_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    assert run(recipe, "train.budget=4 iterations") == DONE
    assert run(recipe, "train.budget=4 iterations", f"resume={HUB}") == DONE
    assert not hub.log


def test_the_same_command_starts_and_resumes(hub: FakeHub, tmp_path: Path, cli: Cli) -> None:
    recipe = write_recipe(tmp_path, PUBLISH, {"resume": HUB})
    first = cli("train", recipe)
    assert first.code == 0, first.err
    assert f"{HUB} is not there yet: starting at step 0" in first.out
    shutil.rmtree(tmp_path / "run")
    again = cli("train", recipe)
    assert again.code == 0, again.err
    assert "this run is complete" in again.out
    assert "published in alice/net" in again.out


def test_a_run_that_was_lost_before_its_first_checkpoint_publishes_there_again(
    hub: FakeHub, tmp_path: Path, cli: Cli
) -> None:
    recipe = write_recipe(tmp_path, PUBLISH, {"checkpoint": {"every": "8 iterations"}})
    hub.fault("/api/models/alice/net/commit/main", "status", status=403, on=(2,))
    assert cli("train", recipe, f"resume={HUB}").code == 0
    assert not checkpoints(hub), "the machine was lost after the first push"
    shutil.rmtree(tmp_path / "run")
    other = cli("train", recipe, f"resume={HUB}", "seed=7")
    assert "alice/net: holds files of something else" in other.out
    shutil.rmtree(tmp_path / "run")
    again = cli("train", recipe, f"resume={HUB}")
    assert f"{HUB} has no checkpoint yet: starting at step 0" in again.out
    assert "published in alice/net, which has step 8" in again.out


@pytest.mark.parametrize(
    ("token", "match"),
    [
        (None, "needs a token with write access"),
        ("hf_bob_may_write", "your token is that of bob, who may not write for alice"),
        ("hf_alice_may_read", "your token may only read"),
    ],
)
def test_a_private_repository_is_not_taken_for_an_absent_one(
    hub: FakeHub,
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    match: str,
) -> None:
    hub.account("hf_alice_may_read", "alice", role="read")
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    done = cli("train", write_recipe(tmp_path, PUBLISH), f"resume={HUB}")
    assert done.code == 2, done.out
    assert f"resume: {HUB}: " in done.err
    assert match in done.err
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("hf://alice/absent", "resume: hf://alice/absent: there is no such model"),
        ("hf://alice/empty", "holds no checkpoint of a run: .*log.publish.checkpoint: true"),
        ("hf://alice/net@absent", "there is no revision 'absent'"),
        ("hf://alice/net/x", "resume: .*should be OWNER/NAME"),
        ("later", "resume: .*should be auto, never or hf://OWNER/NAME"),
    ],
)
def test_a_repository_without_a_checkpoint_is_refused(
    hub: FakeHub, tmp_path: Path, cli: Cli, name: str, match: str
) -> None:
    import re

    hub.repository("alice/empty")
    hub.repository("alice/net")
    done = cli("train", write_recipe(tmp_path), f"resume={name}")
    assert done.code == 2
    assert re.search(match, done.err), done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "run/checkpoints").exists()


def test_another_recipe_and_damage_are_refused(hub: FakeHub, tmp_path: Path, cli: Cli) -> None:
    recipe = write_recipe(tmp_path, PUBLISH)
    assert run(recipe) == DONE
    shutil.rmtree(tmp_path / "run")
    other = cli("train", recipe, f"resume={HUB}", "seed=7")
    assert other.code == 2
    assert "seed: 0 -> 7" in other.err
    assert f"resume: step-00000008 of {HUB}@" in other.err
    assert not list((tmp_path / "run").glob("[!.]*")), "nothing was installed"

    repository = hub["alice/net"]
    head = repository.head()
    (state,) = [name for name in head.files if name.endswith("state.json")]
    repository.add({state: head.files[state].content.replace(b"1", b"2", 1)})
    damaged = cli("train", recipe, f"resume={HUB}")
    assert damaged.code == 2
    assert "all checkpoints are damaged" in damaged.err
    assert f"{state}: damaged" in damaged.err
    assert not list((tmp_path / "run").glob("[!.]*"))
    assert not list((tmp_path / "run").glob(".tmp-resume"))

    repository.add({state: head.files[state].content})
    assert cli("train", recipe, f"resume={HUB}").code == 0, "the folder is usable"


def test_an_intact_checkpoint_is_used_instead_of_newer_ones(
    hub: FakeHub, uninterrupted: Path, tmp_path: Path, cli: Cli
) -> None:
    recipe = write_recipe(tmp_path, EVERYTHING, PUBLISH)
    hub.fault("/api/models/alice/net/commit/main", "status", status=503, on=(2, 3))
    assert run(recipe) == DONE
    repository = hub["alice/net"]
    place = "run/checkpoints/step-0000000"
    files = repository.files()
    later = {name: files[name] for name in files if name.startswith(f"{place}4/")}
    later = {name.replace("step-00000004", "step-00000006"): later[name] for name in later}
    later[f"{place}6/state.json"] = b"{}"
    repository.add({**later, f"{place}9/state.json": b"{}"})
    shutil.rmtree(tmp_path / "run")
    done = cli("train", recipe, f"resume={HUB}")
    assert done.code == 0, done.err
    assert "from step-00000004 of" in done.out
    assert "step-00000006/state.json: damaged" in " ".join(done.out.split())
    assert_same_run(uninterrupted, tmp_path / "run")


def test_a_download_that_fails_leaves_nothing_to_resume_from(
    hub: FakeHub, tmp_path: Path, cli: Cli
) -> None:
    recipe = write_recipe(tmp_path, PUBLISH)
    assert run(recipe) == DONE
    shutil.rmtree(tmp_path / "run")
    hub.fault("*/optimizer*", "status", status=404, on=None)
    hub.fault("/cdn/*", "status", status=503, on=None)
    failed = cli("train", recipe, f"resume={HUB}")
    assert failed.code == 2
    assert f"resume: {HUB}" in failed.err
    assert not (tmp_path / "run/checkpoints").exists()
    hub.faults.faults.clear()
    again = cli("train", recipe, f"resume={HUB}")
    assert again.code == 0, again.err


def test_only_checkpoints_that_are_asked_for_are_published(hub: FakeHub, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"log": {"publish": {"repo": "alice/net", "every": "4 iterations"}}}
    assert run(write_recipe(tmp_path, changes)) == DONE
    files = hub["alice/net"].head().files
    assert not checkpoints(hub)
    assert isinstance(files["model.safetensors"], File)
