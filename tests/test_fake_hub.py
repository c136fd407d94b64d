"""The fake Hub answers huggingface_hub as the real one does, in success and in refusal."""

from pathlib import Path
from threading import Thread

import pytest
from fake_hub import FakeHub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub import hf_hub_download as download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

WEIGHTS = bytes(range(256)) * 4000


def api(token: str | None = None) -> HfApi:
    return HfApi(endpoint=constants.ENDPOINT, token=token)


def adding(**files: bytes) -> list[CommitOperationAdd]:
    names = {name.replace("__", "."): content for name, content in files.items()}
    return [CommitOperationAdd(path, content) for path, content in names.items()]


def commit_weights(title: str) -> None:
    files = adding(model__safetensors=WEIGHTS)
    api().create_commit("alice/net", files, commit_message=title)


def test_what_is_committed_is_read_back(hub: FakeHub) -> None:
    assert api().whoami()["name"] == "alice"
    api().create_repo("lab/net", private=True)
    assert hub["lab/net"].private
    files = adding(model__safetensors=WEIGHTS, README__md=b"---\nlicense: mit\n---\nhello")
    made = api().create_commit("lab/net", files, commit_message="first")
    info = api().model_info("lab/net")
    assert info.sha == made.oid == hub["lab/net"].head().oid
    assert info.private
    assert Path(download("lab/net", "model.safetensors")).read_bytes() == WEIGHTS
    assert Path(download("lab/net", "README.md", revision=made.oid)).parent.name == made.oid
    entries = {entry.path: entry for entry in api().list_repo_tree("lab/net", recursive=True)}
    assert entries["model.safetensors"].lfs.size == len(WEIGHTS)
    assert [each.path for each in api().get_paths_info("lab/net", ["README.md", "absent"])] == [
        "README.md"
    ]
    again = adding(model__safetensors=WEIGHTS)
    assert api().create_commit("lab/net", again, commit_message="same").oid == made.oid
    delete = [CommitOperationDelete("README.md")]
    api().create_commit("lab/net", delete, commit_message="shorter")
    assert hub["lab/net"].titles() == ["shorter", "first", "initial commit"]
    assert sorted(hub["lab/net"].files()) == [".gitattributes", "model.safetensors"]
    tokens = [request.headers.get("authorization") for request in hub.log]
    assert "Bearer hf_alice_may_write" in tokens
    cdn = [request for request in hub.log if request.path.startswith("/cdn/")]
    assert cdn
    assert all("authorization" not in request.headers for request in cdn)


def test_a_commit_on_another_parent_is_refused(hub: FakeHub) -> None:
    repository = hub.repository("alice/net")
    before = repository.head().oid
    after = repository.add({"a.txt": b"another client's"})
    files = adding(a__txt=b"mine")
    with pytest.raises(HfHubHTTPError) as refused:
        api().create_commit("alice/net", files, commit_message="late", parent_commit=before)
    assert refused.value.response.status_code == 412
    assert repository.head().oid == after


def test_branches_and_pull_requests(hub: FakeHub) -> None:
    repository = hub.repository("alice/net")
    api().create_branch("alice/net", branch="next")
    with pytest.raises(HfHubHTTPError, match="409"):
        api().create_branch("alice/net", branch="next")
    api().create_commit("alice/net", adding(a__txt=b"1"), commit_message="n", revision="next")
    made = api("hf_bob_may_write").create_commit(
        "alice/net", adding(a__txt=b"2"), commit_message="please", create_pr=True
    )
    assert made.pr_revision == "refs/pr/1"
    assert [f.get("a.txt") for f in map(repository.files, ("main", "next", "refs/pr/1"))] == [
        None,
        b"1",
        b"2",
    ]
    refs = api().list_repo_refs("alice/net", include_pull_requests=True)
    assert [branch.name for branch in refs.branches] == ["main", "next"]
    assert [pull.ref for pull in refs.pull_requests or []] == ["refs/pr/1"]
    assert Path(download("alice/net", "a.txt", revision="refs/pr/1")).read_bytes() == b"2"


def test_refusals_have_the_classes_of_the_real_hub(hub: FakeHub) -> None:
    hub.repository("alice/net", {"config.json": b"{}"})
    hub.repository("bob/private", {"config.json": b"{}"}, private=True)
    hub.repository("bob/gated", {"config.json": b"{}"}, gated=True)
    with pytest.raises(EntryNotFoundError):
        download("alice/net", "absent.json")
    with pytest.raises(RevisionNotFoundError):
        download("alice/net", "config.json", revision="absent")
    for name in ("bob/private", "bob/absent"):
        with pytest.raises(RepositoryNotFoundError):
            download(name, "config.json")
        with pytest.raises(RepositoryNotFoundError):
            download(name, "config.json", token=False)
    with pytest.raises(GatedRepoError):
        download("bob/gated", "config.json")
    assert download("bob/private", "config.json", token="hf_bob_may_write")
    hub.account("hf_reader", "alice", role="read")
    for token, repo, status in (
        ("hf_alice_may_write", "bob/new", 403),
        ("hf_reader", "alice/new", 403),
        ("hf_wrong", "alice/new", 401),
        ("hf_alice_may_write", "alice/net", 409),
    ):
        with pytest.raises(HfHubHTTPError) as refused:
            api(token).create_repo(repo)
        assert refused.value.response.status_code == status
    card = adding(README__md=b"---\nlicense: free as a bird\n---\n")
    with pytest.raises(ValueError, match="license"):
        api().create_commit("alice/net", card, commit_message="no")
    assert hub["alice/net"].titles() == ["by hand", "initial commit"]


def test_faults_strike_the_request_that_they_are_ordered_for(hub: FakeHub) -> None:
    repository = hub.repository("alice/net")
    hub.fault("*/preupload/main", "status", status=429, retry_after="1")
    hub.fault("/lfs/*", "cut", after_bytes=70_000)
    hub.fault("*/commit/main", "status", status=503)
    with pytest.raises(HfHubHTTPError, match="503"):
        commit_weights("1")
    assert [request.status for request in hub.log if "preupload" in request.path] == [429, 200]
    assert hub.requests[f"/lfs/alice/net/{next(iter(repository.objects))}"] == 2
    hub.fault("*/commit/main", "unanswered")
    with pytest.raises(Exception, match=r"disconnected|reset"):
        commit_weights("2")
    assert repository.titles() == ["2", "initial commit"]


def test_it_is_down_from_a_byte_on_until_it_is_restored(hub: FakeHub) -> None:
    repository = hub.repository("alice/net")
    hub.cut_after(600_000)
    with pytest.raises(RuntimeError, match=r"model\.safetensors"):
        commit_weights("1")
    assert hub.bytes_received <= 600_000
    hub.restore()
    commit_weights("2")
    assert repository.titles() == ["2", "initial commit"]


def test_a_request_is_held_until_it_is_released(hub: FakeHub) -> None:
    hub.repository("alice/net")
    hub.fault("/api/models/alice/net", "hold")
    found: list[object] = []
    asking = Thread(target=lambda: found.append(api().model_info("alice/net").sha))
    asking.start()
    asking.join(0.3)
    assert not found
    hub.release.set()
    asking.join(10)
    assert found == [hub["alice/net"].head().oid]
