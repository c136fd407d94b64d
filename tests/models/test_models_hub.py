"""Models of the Hub: what a name means, one commit for a run, and one message for each refusal."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from fake_hub import FakeHub
from timm.models import save_for_hf

from distill.errors import InputError
from distill.models import cifar as cifar  # registers its models
from distill.models.hub.download import fetch, in_cache, pin_commits, pinned_commits
from distill.models.origin import origin_of_student, origin_of_teacher
from distill.models.student import create_student, first_weights
from distill.models.teacher import build_teacher
from distill.recipe.hub_names import HubModel, is_hub_name, parse_hub_name
from distill.recipe.schema import StudentSpec, TeacherSpec

CLASSES = ("ant", "bee", "cat", "dog")
CARD = b"---\nlicense: cc-by-nc-4.0\n---\n# A teacher\n"


def exported(seed: int, folder: Path, name: str = "cifar_resnet8") -> dict[str, bytes]:
    """The files of a model, as timm publishes them."""
    torch.manual_seed(seed)
    net = timm.create_model(name, num_classes=len(CLASSES))
    config = {"label_names": list(CLASSES)}
    save_for_hf(net, str(folder), model_config=config, safe_serialization=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def published(hub: FakeHub, tmp_path: Path) -> FakeHub:
    hub.repository("alice/net", {**exported(1, tmp_path / "one"), "README.md": CARD})
    return hub


def student(**keys: object) -> StudentSpec:
    model = {"model": "cifar_resnet8", "objective": {"hard": {"loss": "ce"}}}
    return StudentSpec.model_validate(
        {**model, "optimizer": {"name": "momentum", "lr": 0.1}, **keys}
    )


def teacher_of(**keys: object) -> torch.Tensor:
    teacher = build_teacher(
        TeacherSpec(**keys), classes=CLASSES, root=Path(), device="cpu", data_image_size=32
    )
    return teacher(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("hf://alice/net", "alice/net", None),
        ("hf:/alice/net", "alice/net", None),
        ("hf-hub:alice/net", "alice/net", None),
        ("hf_hub:alice/net@v1", "alice/net", "v1"),
        ("hf://alice/n.e-t_1@refs/pr/3", "alice/n.e-t_1", "refs/pr/3"),
        ("hf://alice/net@refs%2Fpr%2F3", "alice/net", "refs/pr/3"),
        ("hf://alice/net/", "alice/net", None),
    ],
)
def test_a_name_has_a_repository_and_a_revision(text: str, repo: str, revision: str | None) -> None:
    assert is_hub_name(text)
    assert parse_hub_name(text) == HubModel(repo, revision)
    assert parse_hub_name(str(Path(text))) == HubModel(repo, revision)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("hf://net", "should be OWNER/NAME"),
        ("hf://alice/net/model.safetensors", "should be OWNER/NAME"),
        ("hf://datasets/alice/images", "is no model"),
        ("hf://alice/net@", "no revision after the @"),
        ("hf://alice/net@a b", "not the name of a revision"),
        ("hf://alice/net@../../etc", "not the name of a revision"),
        ("hf://alice/-net", "not a name that the Hub allows"),
        ("hf://alice/a--b", "not a name that the Hub allows"),
        ("hf://alice/" + "n" * 97, "not a name that the Hub allows"),
        ("hf://alice/n\x1b[31m", r"n\\\\x1b\[31m"),
        ("hf://alice/net.git", r"ends in \.git"),
    ],
)
def test_a_name_that_is_not_allowed_is_refused(text: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        parse_hub_name(text)
    with pytest.raises(ValueError, match=match):
        TeacherSpec(weights=text)


def test_paths_are_no_names() -> None:
    assert not any(map(is_hub_name, ("runs/a", "hf/alice/net", "./hf:x", "pretrained", "a/b")))


# ---- one commit ----------------------------------------------------------------------------------


def test_a_revision_is_resolved_once_and_kept(published: FakeHub, tmp_path: Path) -> None:
    repository = published["alice/net"]
    first = repository.head().oid
    one = fetch("hf://alice/net", "weights")
    assert str(one.model) == f"hf://alice/net@{first}"
    assert {path.name for path in one.folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    repository.add(exported(2, tmp_path / "two"))
    asked = len(published.log)
    assert fetch("hf-hub:alice/net", "weights") == one
    assert len(published.log) == asked, "the second call asks nothing"
    assert pinned_commits() == {"hf://alice/net": first}
    pin_commits({})
    assert fetch("hf://alice/net", "weights").folder.name == repository.head().oid
    pin_commits({"hf://alice/net": first})
    assert fetch("hf://alice/net", "weights") == one


def test_a_teacher_and_a_student_are_those_of_the_commit(
    published: FakeHub, tmp_path: Path
) -> None:
    commit = published["alice/net"].head().oid
    local = teacher_of(weights=str(tmp_path / "one"))
    for name in ("hf://alice/net", f"hf-hub:alice/net@{commit}"):
        assert torch.equal(teacher_of(weights=name), local)
    timms = timm.create_model("hf-hub:alice/net", pretrained=True)
    spec = student(weights="hf://alice/net")
    net, _ = create_student(spec, classes=CLASSES, image_size=32, seed=0, root=Path())
    assert net.state_dict().keys() == timms.state_dict().keys()
    for name, tensor in timms.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor), name
    assert first_weights(spec) == {
        "began_with": f"hf://alice/net@{commit}",
        "began_with_license": "cc-by-nc-4.0",
    }


def test_the_teacher_records_its_commit_and_licence(published: FakeHub) -> None:
    teacher = build_teacher(
        TeacherSpec(weights="hf://alice/net"),
        classes=CLASSES,
        root=Path(),
        device="cpu",
        data_image_size=32,
    )
    commit = published["alice/net"].head().oid
    assert teacher.record == {
        "model": "cifar_resnet8",
        "weights": f"hf://alice/net@{commit}",
        "license": "cc-by-nc-4.0",
        "sha256": teacher.fingerprint,
    }
    assert commit in teacher.source
    assert commit in teacher.view.sources["image_size"]


def test_weights_that_only_torch_wrote_are_read_too(hub: FakeHub, tmp_path: Path) -> None:
    files = exported(1, tmp_path / "one")
    del files["model.safetensors"]
    state = timm.create_model(f"local-dir:{tmp_path / 'one'}", pretrained=True).state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin")
    hub.repository(
        "alice/old", {**files, "pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes()}
    )
    assert torch.equal(
        teacher_of(weights="hf://alice/old"), teacher_of(weights=str(tmp_path / "one"))
    )


def test_of_another_architecture_it_is_refused(published: FakeHub) -> None:
    spec = student(model="cifar_resnet14", weights="hf://alice/net")
    with pytest.raises(InputError, match=r"hf://alice/net@\w{40} holds a cifar_resnet8"):
        origin_of_student(spec, Path())
    with pytest.raises(InputError, match=r"teacher\.student .* picks among"):
        origin_of_teacher(TeacherSpec(weights="hf://alice/net", student="kd"), Path())


def test_what_need_not_be_here_is_not_downloaded(published: FakeHub) -> None:
    assert in_cache("hf://alice/net", "weights") is None
    assert origin_of_student(student(weights="hf://alice/net"), Path(), may_download=False).assumed
    assert not published.log
    commit = fetch("hf://alice/net", "weights").model.revision
    found = in_cache("hf://alice/net", "weights")
    assert found is not None
    assert found.model.revision == commit


# ---- without network -----------------------------------------------------------------------------


def test_offline_the_cache_is_used(published: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    one = fetch("hf://alice/net", "weights")
    pin_commits({})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(published.log)
    assert fetch("hf://alice/net", "weights") == one
    assert len(published.log) == asked
    shutil.rmtree(Path(constants.HF_HUB_CACHE))
    pin_commits({})
    with pytest.raises(InputError, match=r"^weights: hf://alice/net: is not in the cache .*unset"):
        fetch("hf://alice/net", "weights")


def test_a_download_that_fails_is_finished_by_the_next(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repository("alice/net", exported(1, tmp_path / "one"))
    hub.fault("/cdn/*", "status", status=503, on=None)
    with pytest.raises(InputError, match=r"hf://alice/net: the Hub answers 503"):
        fetch("hf://alice/net", "weights")
    hub.faults.faults.clear()
    found = fetch("hf://alice/net", "weights")
    assert (found.folder / "model.safetensors").read_bytes() == (
        tmp_path / "one/model.safetensors"
    ).read_bytes()


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("hf://alice/absent", "no such model, or it is private: fix the name, .*hf auth login"),
        ("hf://bob/private", "no such model, or it is private"),
        ("hf://alice/net@absent", "there is no revision 'absent': name a branch, tag or commit"),
        ("hf://bob/gated", "accept its terms at http://127.0.0.1:.*/bob/gated, then .*HF_TOKEN"),
        ("hf://alice/text", "is no model of timm: it holds no config.json"),
        ("hf://alice/weightless", "is no model of timm: it holds no config.json"),
        ("hf://alice/transformer", "not the config.json of an exported timm model"),
    ],
)
def test_what_cannot_be_read_says_why_and_what_to_do(
    published: FakeHub, name: str, match: str, tmp_path: Path
) -> None:
    config = {"config.json": (tmp_path / "one/config.json").read_bytes()}
    published.repository("bob/private", config, private=True)
    published.repository("bob/gated", config, gated=True)
    published.repository("alice/text", {"README.md": b"hello"})
    published.repository("alice/weightless", config)
    foreign = {"config.json": json.dumps({"model_type": "vit"}).encode()}
    published.repository("alice/transformer", {**foreign, "model.safetensors": b"\0" * 100})
    with pytest.raises(InputError, match=match) as refused:
        origin_of_teacher(TeacherSpec(weights=name), Path())
    assert str(refused.value).startswith(("teacher.weights: hf://", "hf://alice/transformer@"))
    assert "hf_alice" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_token_that_is_wrong_is_named_without_showing_it(
    published: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    with pytest.raises(InputError, match="does not accept your token") as refused:
        fetch("hf://alice/net", "weights")
    assert "wrongwrong" not in str(refused.value)


def test_no_network_is_one_message(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    nobody = "http://127.0.0.1:9"  # the port "discard", where nothing listens
    template = nobody + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(InputError, match=r"cannot be reached .*HF_ENDPOINT.*HF_HUB_OFFLINE=1"):
        fetch("hf://alice/net", "weights")
