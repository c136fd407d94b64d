"""What `distill publish` refuses: one message with the fix, exit code 2, and no change anywhere."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Cli
from fake_hub import FakeHub
from publishing import finished_copy, publish, scores_of, unchanged
from safetensors.torch import load_file, save_file
from tiny import checkpoint

from distill.errors import InputError
from distill.models.hub.derived import base_model
from distill.models.hub.licences import Noted, noted_weights
from distill.release.export import export_student


def edited(export: Path, folder: Path, file: str, change: Callable[[Any], None]) -> Path:
    """A copy of an export in which someone changed a JSON file."""
    shutil.copytree(export, folder / "edited")
    path = folder / "edited" / file
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return folder / "edited"


# ---- the repository and the token ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("repo", "options", "match"),
    [
        ("net", {}, "net: should be OWNER/NAME"),
        ("alice/net/x", {}, "should be OWNER/NAME"),
        ("alice/ne t", {}, "'ne t' is not a name that the Hub allows"),
        ("alice/..", {}, "not a name that the Hub allows"),
        ("alice/n\x1b[31m", {}, r"n\\\\x1b\[31m"),
        ("bob/new", {}, "your token is that of alice, who may not write for bob: use alice/.*lab/"),
        ("bob/private", {}, "who may not write for bob"),
        ("bob/private", {"pull_request": True}, "no such repository, or it is private"),
        ("alice/absent", {"pull_request": True}, "there is no such repository"),
        (
            "alice/net",
            {"private": True},
            "exists and is public, and should be private: .* leave out --private",
        ),
        ("alice/net", {"branch": "a", "pull_request": True}, "--revision and --pull-request"),
        ("alice/net", {"branch": ""}, "--revision: '' is not the name of a branch"),
        ("alice/net", {"branch": "a b"}, "--revision: 'a b' is not the name of a branch"),
        ("alice/net", {"branch": "../x"}, "--revision: '../x' is not the name of a branch"),
        ("alice/net", {"branch": "refs/pr/1"}, "is a reference: give the name of a branch"),
        ("alice/net", {"branch": "0a" * 20}, "is a commit, which never changes"),
        (
            "alice/net",
            {"message": f"with hf_{'a' * 30}"},
            "--message, line 1: seems to hold a t",
        ),
    ],
)
def test_a_repository_that_cannot_be_written(
    hub: FakeHub, tiny_run: Path, repo: str, options: dict[str, Any], match: str
) -> None:
    hub.repository("alice/net", {"a": b"1"})
    hub.repository("bob/private", {"a": b"1"}, private=True)
    with unchanged(hub), pytest.raises(InputError, match=match) as refused:
        publish(tiny_run / "best/kd", repo=repo, **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("token", "match"),
    [
        (None, "publishing needs a token with write access: make one at .*HF_TOKEN"),
        ("hf_reader_reader", "your token may only read: use one with write access"),
        ("hf_unknown_unknown", "does not accept your token"),
        ("hf_unknown_unknöwn", "your token is malformed: it has characters that no token has"),
    ],
)
def test_a_token_that_is_missing_or_may_not_write(
    hub: FakeHub,
    tiny_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    cli: Cli,
    token: str | None,
    match: str,
) -> None:
    hub.account("hf_reader_reader", "alice", role="read")
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with unchanged(hub), pytest.raises(InputError, match=match):
        publish(tiny_run / "best/kd")
    done = cli("publish", tiny_run / "best/kd", "alice/net", "--license", "mit")
    assert done.code == 2
    assert not token or token not in done.out + done.err


def test_no_network_and_offline(
    hub: FakeHub, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"connection to the Hub failed .*; nothing was changed"):
        publish(tiny_run / "best/kd")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE=1 forbids to publish: unset it"):
        publish(tiny_run / "best/kd")


# ---- the model -----------------------------------------------------------------------------------


def test_an_unfinished_run_says_how_to_publish_what_it_has(
    hub: FakeHub, tiny_run: Path, tmp_path: Path, cli: Cli
) -> None:
    copy = finished_copy(tiny_run, tmp_path)
    (copy / "report.json").unlink()
    done = cli("publish", copy, "alice/net", "--license", "mit")
    assert done.code == 2
    assert "this run is not finished (it has no report.json)" in done.err
    assert f"distill export {copy} FOLDER" in done.err
    assert not hub.log
    assert cli("export", copy, tmp_path / "export", "--student", "kd").code == 0
    assert cli("publish", tmp_path / "export", "alice/net", "--license", "mit").code == 0


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "is not the report of a run"),
        ("[]", r"report\.json: its content is \[\]: Input should be a valid dictionary"),
        ("{}", r"students is \{\}: Field required: delete it, and run the same"),
        ('{"students": {"kd": 1}}', r"students\.kd is 1: Input should be a valid dictionary"),
        ('{"students": {}, "best": null}', "ended without weights to publish"),
        ('{"students": {"kd": {"best": null}}, "best": null}', "ended without weights"),
    ],
)
def test_the_report_of_an_empty_run(
    hub: FakeHub, tiny_run: Path, tmp_path: Path, content: str, match: str
) -> None:
    copy = finished_copy(tiny_run, tmp_path)
    (copy / "report.json").write_text(content)
    with pytest.raises(InputError, match=match):
        publish(copy)
    assert not hub.log


def test_what_is_no_run_and_no_export(hub: FakeHub, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, match in (
        (tmp_path / "absent", "there is no such run, checkpoint, export or file"),
        (tmp_path / "empty", "neither a run .* nor an export"),
        (checkpoint(tiny_run), "is a checkpoint: export it first"),
        (tiny_run / "best/kd/model.safetensors", "is a file, and what is published is a run or"),
        (Path("hf://alice/net"), "is on the Hub already"),
    ):
        with pytest.raises(InputError, match=match):
            publish(source)
    with pytest.raises(InputError, match=r"no student 'kdd' \(did you mean 'kd'\?\)"):
        publish(tiny_run, student="kdd")
    with pytest.raises(InputError, match=r"no weights 'ema-0\.7' of kd"):
        publish(tiny_run, student="kd", weights="ema-0.7")
    assert not hub.log


@pytest.mark.parametrize(
    ("file", "change", "match"),
    [
        ("config.json", lambda c: c["label_names"].pop(), "9 different names for 10 classes"),
        (
            "config.json",
            lambda c: c["label_names"].__setitem__(0, "Bag"),
            "label_names has 9 different names for 10 classes",
        ),
        (
            "config.json",
            lambda c: c.update(architecture="resnet18"),
            "these are not weights of ResNet as",
        ),
        ("config.json", lambda c: c.update(architecture="resnet1"), "has no model 'resnet1'"),
        ("config.json", lambda c: c.pop("architecture"), "not the config.json of"),
        ("config.json", lambda c: c.update(num_classes=11), "head has 10 classes"),
        ("config.json", lambda c: c.update(label_names="kd"), "should be a list of names"),
        ("config.json", lambda c: c.update(label_names=[1] * 10), "should be a list of names"),
        ("config.json", lambda c: c.update(label_names={"a": "b"}), "should be a list of names"),
        ("distill.json", lambda c: c.update(model="resnet50"), "is the record of a resnet50, and"),
        (
            "distill.json",
            lambda c: c.update(top1=831.0),
            r"top1 is 831\.0: Input should be less than",
        ),
        ("distill.json", lambda c: c.update(top1="good"), "top1 is 'good': Input should be a val"),
        ("distill.json", lambda c: c.update(num_samples="x"), "num_samples is 'x': Input should"),
        ("distill.json", lambda c: c.pop("num_samples"), "has top1, and not the num_samples"),
        ("distill.json", lambda c: c.update(teacher="me"), "teacher is 'me': Input should be"),
        ("distill.json", lambda c: c["teacher"].pop("weights"), r"teacher\.weights is .*required"),
        ("distill.json", lambda c: c.update(step="1"), "step is '1': Input should be a valid int"),
        ("distill.json", lambda c: c.pop("weights"), "has step, and not the weights"),
        ("distill.json", lambda c: c.update(loss=float("nan")), "loss is nan: Input should be a f"),
        ("distill.json", lambda c: c.update(mine=[float("inf")]), "a number that is not finite"),
    ],
)
def test_an_export_that_was_edited_by_hand(
    hub: FakeHub,
    tiny_run: Path,
    tmp_path: Path,
    file: str,
    change: Callable[[Any], None],
    match: str,
) -> None:
    export = edited(tiny_run / "best/kd", tmp_path, file, change)
    with pytest.raises(InputError, match=match) as refused:
        publish(export)
    assert str(export) in str(refused.value) or "resnet1" in str(refused.value)
    assert not hub.log


def test_weights_that_are_not_finite_or_not_safetensors(
    hub: FakeHub, tiny_run: Path, tmp_path: Path
) -> None:
    export = tmp_path / "export"
    shutil.copytree(tiny_run / "best/kd", export)
    weights = load_file(export / "model.safetensors")
    torch.save(weights, export / "pytorch_model.bin")
    (export / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors, and models are published"):
        publish(export)
    weights["conv1.weight"][0, 0, 0, 0] = float("nan")
    save_file(weights, export / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="the logits of this model are not finite"):
        publish(export)
    assert not hub.log


def test_weights_that_were_replaced_have_no_score(
    hub: FakeHub, tiny_run: Path, tmp_path: Path
) -> None:
    export = tmp_path / "export"
    export_student(tiny_run, export, student="kd")
    file = export / "model.safetensors"
    weights = load_file(file)
    weights["conv1.weight"] += 0.1
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"these are not the weights of which distill\.json tells"):
        publish(export)
    assert not hub.log
    record = json.loads((export / "distill.json").read_text())
    del record["weights_sha256"]  # as earlier versions wrote it
    (export / "distill.json").write_text(json.dumps(record))
    publish(export, dry_run=True)


# ---- the licence ---------------------------------------------------------------------------------


def test_a_licence_is_never_assumed(hub: FakeHub, tiny_run: Path, cli: Cli) -> None:
    done = cli("publish", tiny_run, "alice/net", "--student", "kd")
    assert done.code == 2
    assert "--license: missing: a licence is chosen, never assumed" in done.err
    assert "training images Fashion-MNIST: mit" in done.err
    wrong = cli("publish", tiny_run, "alice/net", "--student", "kd", "--license", "mitt")
    assert wrong.code == 2
    assert "--license mitt: the Hub does not know this id (did you mean 'mit'" in wrong.err
    other = cli("publish", tiny_run, "alice/net", "--student", "kd", "--license", "other")
    assert other.code == 2
    assert "--license other: give its text with --license-file FILE" in other.err
    assert not hub.log


def test_a_user_at_a_terminal_is_asked(hub: FakeHub, tiny_run: Path) -> None:
    shown: list[str] = []

    def ask(noted: list[Noted]) -> str:
        shown.extend(each.describe() for each in noted)
        return " cc-by-4.0 "

    publish(tiny_run, student="kd", licence=None, ask=ask)
    assert shown == ["training images Fashion-MNIST: mit"]
    assert b"license: cc-by-4.0" in hub["alice/net"].files()["README.md"]
    with unchanged(hub), pytest.raises(InputError, match="never assumed"):
        publish(tiny_run, student="kd", licence=None, ask=lambda noted: " ")


def test_a_non_commercial_teacher_demands_the_licence_itself(
    hub: FakeHub, tiny_run: Path, tmp_path: Path
) -> None:
    def of_convnext(record: dict[str, Any]) -> None:
        record["teacher"]["weights"] = "pretrained convnextv2_base.fcmae_ft_in22k_in1k"
        record["teacher"]["license"] = "cc-by-nc-4.0"

    export = edited(tiny_run / "best/kd", tmp_path, "distill.json", of_convnext)
    with pytest.raises(InputError, match=r"convnextv2_base\S+: cc-by-nc-4\.0"):
        publish(export, licence=None, ask=lambda noted: "mit")
    assert not hub.log
    publish(export, licence="cc-by-nc-4.0")
    card = hub["alice/net"].files()["README.md"].decode()
    assert "Licence of teacher convnextv2\\_base" in card
    assert (
        "https://creativecommons.org/licenses/by-nc/4.0/legalcode"
        in hub["alice/net"].files()["LICENSE"].decode()
    )


@pytest.mark.parametrize(
    ("licence", "needs_choice"),
    [
        ("mit", False),
        ("apache-2.0", False),
        (None, False),
        ("cc-by-nc-4.0", True),
        ("fair-noncommercial-research-license", True),
        ("dinov3-license", True),
        ("gpl-3.0", True),
    ],
)
def test_which_licences_demand_a_choice(licence: str | None, needs_choice: bool) -> None:
    assert Noted("teacher", licence).needs_choice is needs_choice


def test_timms_entry_for_beit_is_corrected() -> None:
    noted = noted_weights("teacher", "beitv2_base_patch16_224.in1k_ft_in22k_in1k", "apache-2.0")
    assert "unilm, which published these weights, is under mit" in noted.describe()
    assert not noted_weights("teacher", "resnet50.a1_in1k", "apache-2.0").note


def test_only_published_weights_are_a_base_model() -> None:
    assert base_model("pretrained resnet50.a1_in1k") == "timm/resnet50.a1_in1k"
    assert base_model("hf://alice/net@" + "a" * 40) == "alice/net"
    for other in ("random weights", "", "/data/net.pth", "pretrained hf_hub:alice/net"):
        assert base_model(other) is None


# ---- the evaluation ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"models__kd__sha256": "0" * 64}, r"of other weights: it has kd \(000000000000\), and"),
        ({"models__kd__sha256": None}, r"of other weights: it has kd \(no SHA-256\)"),
        (
            {"sets__val__models__kd__num_skipped": 12},
            "12 images of ImageNet-1K validation were skipped",
        ),
        ({"format": 2}, "is not a file of `distill evaluate --json`: format"),
        ({"sets__val__models__kd__top1": 812.5}, r"sets\.val\.models\.kd\.top1"),
        ({"sets__val__models__kd__top1": "good"}, r"sets\.val\.models\.kd\.top1"),
        ({"sets__val__models__kd__top1": float("nan")}, r"sets\.val\.models\.kd\.top1"),
        ({"sets": {}}, "is not a file of"),
        ({"sets__val__models": {}, "sets__real__models": {}}, "has no figures of kd"),
        ({"models": []}, "is not a file of `distill evaluate --json`: models"),
    ],
)
def test_an_evaluation_that_is_not_of_these_weights(
    hub: FakeHub, tiny_run: Path, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    export = tiny_run / "best/kd"
    file = scores_of(export, tmp_path / "scores.json", **changes)
    with pytest.raises(InputError, match=match) as refused:
        publish(export, evaluation=file)
    assert str(file) in str(refused.value)
    assert not hub.log


def test_a_file_that_is_no_evaluation(hub: FakeHub, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "text.json").write_text("hello")
    for name, match in (
        ("list.json", "is not a file of `distill evaluate --json`: the file"),
        ("text.json", "cannot be read as JSON"),
        ("absent.json", "cannot be read as JSON"),
    ):
        with pytest.raises(InputError, match=match):
            publish(tiny_run / "best/kd", evaluation=tmp_path / name)
    with pytest.raises(InputError, match="should be a picture"):
        publish(tiny_run / "best/kd", curves=tmp_path / "list.json")
    assert not hub.log
