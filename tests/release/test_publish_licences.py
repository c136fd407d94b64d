"""The licences of a teacher and of first weights reach all that is made of the weights."""

import json
from pathlib import Path

import pytest
from command import Cli
from fake_hub import FakeHub
from publishing import unchanged
from tiny import checkpoint, run, write_recipe

from distill.models.hub.derived import noted_licences
from distill.release.average import average_models
from distill.release.export import export_student
from distill.release.find import find_models

LIMITED = "cc-by-nc-4.0"


def record_of(export: Path) -> dict:
    return json.loads((export / "distill.json").read_text())


@pytest.fixture
def limited(tiny_run: Path, tmp_path: Path) -> Path:
    """An export whose teacher is under a licence that limits its students."""
    export_student(tiny_run, tmp_path / "limited", student="kd")
    file = tmp_path / "limited/distill.json"
    record = json.loads(file.read_text())
    record["teacher"] |= {"license": LIMITED, "weights": "pretrained big.in1k"}
    file.write_text(json.dumps(record))
    return tmp_path / "limited"


def test_a_mean_has_the_licence_of_the_teacher(
    hub: FakeHub, tiny_run: Path, tmp_path: Path, limited: Path, cli: Cli
) -> None:
    average_models([tiny_run / "best/kd", limited], tmp_path / "mean")
    both = [record_of(each)["teacher"] for each in (tiny_run / "best/kd", limited)]
    assert [*record_of(tmp_path / "mean")["teachers"].values()] == both
    with unchanged(hub):
        refused = cli("publish", tmp_path / "mean", "alice/net")
    assert refused.code == 2
    assert f"teacher big.in1k: {LIMITED}" in refused.err


def test_a_mean_of_checkpoints_names_the_teacher(tiny_run: Path, tmp_path: Path) -> None:
    average_models(tiny_run, tmp_path / "mean", student="kd")
    best = json.loads((tiny_run / "best/kd/distill.json").read_text())
    assert record_of(tmp_path / "mean")["teacher"] == best["teacher"]


def test_every_teacher_reaches_exports_and_means(hub: FakeHub, tmp_path: Path, cli: Cli) -> None:
    changes = {
        "teacher": None,
        "teachers": {
            "big": {"model": "cifar_resnet14", "weights": "random", "image_size": 16},
            "small": {"model": "cifar_resnet8", "weights": "random", "image_size": 16},
        },
        "train": {"budget": "2 iterations"},
        "evaluate": {"every": "2 iterations"},
        "checkpoint": {"every": "1 iterations"},
        "student": {"objective": {"soft": {"loss": "kl"}}},
        "students": {"both": {}, "one": {"objective": {"soft_teachers": {"small": 1}}}},
    }
    assert run(write_recipe(tmp_path, changes)) == 0
    for student, names in (("both", {"big", "small"}), ("one", {"small"})):
        best = record_of(tmp_path / "run/best" / student)["teachers"]
        assert best.keys() == names
        for number, place in enumerate((tmp_path / "run", checkpoint(tmp_path / "run"))):
            export = tmp_path / f"{student}-{number}"
            export_student(place, export, student=student, weights="raw")
            assert record_of(export)["teachers"] == best
        average_models(tmp_path / "run", tmp_path / f"{student}-mean", student=student)
        assert record_of(tmp_path / f"{student}-mean")["teachers"] == best
    file = tmp_path / "both-0/distill.json"
    record = json.loads(file.read_text())
    record["teachers"]["small"] |= {"license": LIMITED, "weights": "pretrained big.in1k"}
    file.write_text(json.dumps(record))
    average_models([tmp_path / "one-0", tmp_path / "both-0"], tmp_path / "mean")
    assert len(record_of(tmp_path / "mean")["teachers"]) == 3
    for place in (tmp_path / "both-0", tmp_path / "mean"):
        with unchanged(hub):
            refused = cli("publish", place, "alice/net")
        assert refused.code == 2
        assert f"teacher big.in1k: {LIMITED}" in refused.err


def test_an_export_of_a_published_model_has_its_licence(
    hub: FakeHub, tiny_run: Path, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in (tiny_run / "best/alone").iterdir()}
    card = f"---\nlicense: {LIMITED}\n---\n".encode()
    repository = hub.repository("bob/net", {**files, "README.md": card})
    export_student("hf://bob/net", tmp_path / "copy")
    (noted,) = noted_licences(record_of(tmp_path / "copy"), (), None, ())
    assert noted.describe() == f"first weights hf://bob/net@{repository.head().oid}: {LIMITED}"


def test_weights_of_timm_have_their_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    create = timm.create_model
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, **how: create(name, **{**how, "pretrained": False}),
    )
    how = {"model": None, "student": None, "weights": "best", "image_size": None}
    (found,) = find_models(Path("resnet18.fb_swsl_ig1b_ft_in1k"), **how)
    assert found.record["began_with"] == "pretrained resnet18.fb_swsl_ig1b_ft_in1k"
    assert found.record["began_with_license"] == LIMITED
