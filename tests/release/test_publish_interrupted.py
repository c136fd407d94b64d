"""An upload that is interrupted, refused or overtaken leaves the repository as it was, and the same
command finishes it.
"""

import random
from pathlib import Path
from threading import Thread

import pytest
import torch
from command import Cli
from fake_hub import FakeHub
from fake_hub_repository import File
from publishing import publish, unchanged
from safetensors.torch import load, save

from distill.errors import InputError

BEFORE = {"notes.md": b"mine", "README.md": b"# before\n"}


def bytes_of_a_publication(hub: FakeHub, export: Path) -> int:
    """How many bytes the Hub receives up to the end of the commit."""
    hub.repository("alice/aaaa", BEFORE)
    start = hub.bytes_received
    publish(export, repo="alice/aaaa")
    paths = [request.path for request in hub.log]
    return hub.read_at[paths.index("/api/models/alice/aaaa/commit/main")] - start


def test_cut_at_twenty_bytes_nothing_changes_and_the_same_command_finishes_it(
    hub: FakeHub, tiny_run: Path
) -> None:
    export = tiny_run / "best/kd"
    total = bytes_of_a_publication(hub, export)
    assert total > 300_000
    chosen = sorted(random.Random(2026).sample(range(1, total - 16), 20))
    for number, byte in enumerate(chosen):
        repo = f"alice/b{number:03}"
        repository = hub.repository(repo, BEFORE)
        with unchanged(hub):
            hub.cut_after(byte)
            with pytest.raises(InputError) as cut:
                publish(export, repo=repo)
            hub.restore()
        assert "nothing was changed" in str(cut.value), byte
        assert "connection to the Hub failed" in str(cut.value), byte
        publish(export, repo=repo)
        assert repository.titles()[1:] == ["by hand", "initial commit"]
        assert (
            repository.files()["model.safetensors"] == (export / "model.safetensors").read_bytes()
        )
        assert repository.files()["notes.md"] == b"mine"


def test_a_new_repository_that_is_cut_stays_empty(hub: FakeHub, tiny_run: Path) -> None:
    hub.fault("/lfs/*", "cut", after_bytes=1000, on=None)
    with pytest.raises(InputError, match="the new repository is there, without these files; the"):
        publish(tiny_run / "best/kd")
    assert hub["alice/net"].titles() == ["initial commit"]
    hub.faults.faults.clear()
    publish(tiny_run / "best/kd")
    assert len(hub["alice/net"].titles()) == 2


def test_of_two_publishers_at_once_one_is_refused(hub: FakeHub, tiny_run: Path) -> None:
    repository = hub.repository("alice/net", BEFORE)
    hub.fault("*/commit/main", "hold", on=(1, 2))
    ended: dict[str, InputError | None] = {}

    def publish_one(student: str) -> None:
        try:
            publish(tiny_run / "best" / student)
            ended[student] = None
        except InputError as error:
            ended[student] = error

    both = [Thread(target=publish_one, args=(student,)) for student in ("kd", "alone")]
    for thread in both:
        thread.start()
    for _ in range(600):
        if hub.requests["/api/models/alice/net/commit/main"] == 2:
            break
        both[0].join(0.05)
    hub.release.set()
    for thread in both:
        thread.join(60)
    refused = [error for error in ended.values() if error is not None]
    assert len(refused) == 1
    assert "another client changed it at the same time" in str(refused[0])
    assert "nothing was changed" in str(refused[0])
    (first,) = [student for student, error in ended.items() if error is None]
    assert len(repository.titles()) == 3
    weights = (tiny_run / "best" / first / "model.safetensors").read_bytes()
    assert repository.files()["model.safetensors"] == weights


def test_a_commit_whose_answer_is_lost_is_found(hub: FakeHub, tiny_run: Path, cli: Cli) -> None:
    repository = hub.repository("alice/net", BEFORE)
    hub.fault("*/commit/main", "unanswered")
    done = cli("publish", tiny_run / "best/kd", "alice/net", "--license", "mit")
    assert done.code == 0, done.err
    assert repository.head().oid[:12] in done.out
    assert len(repository.titles()) == 3


@pytest.mark.parametrize(
    ("path", "status", "match"),
    [
        ("*/commit/main", 503, "the Hub answers 503 .*nothing was changed; the same command"),
        ("*/commit/main", 403, "your token may not write there .*nothing was changed"),
        ("*/commit/main", 412, "another client changed it .*nothing was changed"),
        ("*/commit/main", 429, "429, too many requests: try again later; nothing was changed"),
        ("*/preupload/main", 401, "does not accept your token: .*; nothing was changed"),
        ("*/objects/batch", 403, "your token may not write there .*nothing was changed"),
        ("/api/whoami-v2", 503, "the Hub answers 503 .*nothing was changed"),
        ("/api/validate-yaml", 500, "the Hub answers 500 .*nothing was changed"),
    ],
)
def test_an_answer_that_refuses_changes_nothing(
    hub: FakeHub, tiny_run: Path, path: str, status: int, match: str
) -> None:
    hub.repository("alice/net", BEFORE)
    hub.fault(path, "status", status=status, on=None)
    with unchanged(hub), pytest.raises(InputError, match=match) as refused:
        publish(tiny_run / "best/kd")
    assert "hf_alice" not in str(refused.value)
    hub.faults.faults.clear()
    publish(tiny_run / "best/kd")


def test_too_many_requests_are_repeated_when_the_hub_says(hub: FakeHub, tiny_run: Path) -> None:
    hub.repository("alice/net", BEFORE)
    for path in ("*/preupload/main", "*/objects/batch", "/lfs/*"):
        hub.fault(path, "status", status=429, retry_after="1")
    publish(tiny_run / "best/kd")
    assert len(hub["alice/net"].titles()) == 3


def test_a_repository_that_appears_meanwhile_is_not_overwritten(
    hub: FakeHub, tiny_run: Path
) -> None:
    hub.fault("/api/repos/create", "status", status=409)
    with unchanged(hub), pytest.raises(InputError, match="another client changed it"):
        publish(tiny_run / "best/kd")


def test_what_could_not_be_checked_is_checked_by_the_same_command(
    hub: FakeHub, tiny_run: Path
) -> None:
    hub.fault("*/resolve/*", "status", status=503, on=None)
    with pytest.raises(
        InputError, match=r"published, but not checked: hf://.* same command checks"
    ):
        publish(tiny_run / "best/kd")
    head = hub["alice/net"].head()
    assert "model.safetensors" in head.files
    hub.faults.faults.clear()
    assert publish(tiny_run / "best/kd").commit == head.oid


def test_other_weights_at_the_hub_are_noticed(hub: FakeHub, tiny_run: Path) -> None:
    publish(tiny_run / "best/kd")
    repository = hub["alice/net"]
    file = repository.head().files["model.safetensors"]
    weights = load(file.content)
    weights["conv1.weight"] = torch.nextafter(weights["conv1.weight"], torch.tensor(9.0))
    repository.objects[file.sha256] = save(weights, metadata={"format": "pt"})
    assert File(repository.objects[file.sha256]).sha256 != file.sha256
    with pytest.raises(InputError, match=r"its logits differ from those of .*do not use it"):
        publish(tiny_run / "best/kd")
