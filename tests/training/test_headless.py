"""Teachers without classes, and students that learn their features alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from command import Cli
from tiny import (
    assert_equal_tensors,
    assert_same_run,
    best,
    records,
    report,
    run,
    stop_after,
    tensors,
    write_recipe,
)

from distill.errors import InputError
from distill.recipe import load_recipe
from distill.release.evaluate import evaluate_models
from distill.release.export import export_student
from distill.release.find import find_models
from distill.release.publishable import find_publishable
from distill.report.content import Options, make_content
from distill.report.records import read_run
from distill.training.check import check_recipe
from distill.training.loop import DONE, INTERRUPTED

# timm gives this architecture no classifier.
DINO: dict[str, Any] = {
    "model": "vit_small_patch14_dinov2",
    "weights": "random",
    "image_size": 28,
    "model_args": {"depth": 2, "embed_dim": 32, "num_heads": 2},
}
ALONE: dict[str, Any] = {"hard": None, "hint": {"loss": "feature"}}
STUDENTS: dict[str, Any] = {
    "classifier": {"objective": {"hint": {"loss": "feature"}}, "ema": {"decays": [0.5]}},
    "backbone": {"objective": ALONE, "seed": 1},
    "dense": {
        "model": "test_vit",
        "model_args": {"patch_size": 4},
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
        "drop_path": 0.2,
        "objective": {"hard": None, "hint": {"loss": "feature", "level": "dense"}},
    },
    "relations": {"objective": {"hint": {"loss": "rkd"}}},
}
CHANGES: dict[str, Any] = {
    "teacher": DINO,
    "train": {"budget": "6 iterations"},
    "evaluate": {"every": "3 iterations"},
    "checkpoint": {"every": "3 iterations"},
    "log": {"every": "2 iterations"},
    "students": STUDENTS,
}


def unlabelled(foreign: Path) -> dict[str, Any]:
    stream = {"kind": "stream", "path": str(foreign), "labelled": False, "block": 20}
    return {
        **CHANGES,
        "data": {"train": stream, "fraction": 1.0, "mixing": {"mixup": 0.2, "group_size": 8}},
        "students": {"backbone": {**STUDENTS["backbone"], "ema": {"decays": [0.5]}}},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of classifiers and backbones, which tests only read."""
    folder = tmp_path_factory.mktemp("headless")
    assert run(write_recipe(folder, CHANGES)) == DONE
    return folder / "run"


def test_classifiers_are_evaluated_and_backbones_are_not(finished: Path) -> None:
    result = report(finished)
    assert result["teacher"] is None
    assert result["origins"]["teacher"]["model"] == DINO["model"]
    assert result["best"] in ("classifier", "relations")
    evaluated = [line["models"] for line in records(finished) if line["event"] == "evaluate"]
    assert len(evaluated) == 2
    for models in evaluated:
        assert models.keys() == {"classifier", "classifier/ema-0.5", "relations"}
        assert all("agreement" not in each and "top1" in each for each in models.values())
    for name in ("backbone", "dense"):
        assert result["students"][name]["last"] is None
        assert result["students"][name]["best"]["step"] == 6
        assert result["students"][name]["best"]["top1"] is None
    assert result["students"]["backbone"]["parameters_of_heads"] == 64 * 32 + 32
    trained = [line["students"]["dense"] for line in records(finished) if line["event"] == "train"]
    assert trained[-1]["loss_total"] == trained[-1]["loss_hint"] < trained[0]["loss_hint"]


@pytest.mark.slow
def test_students_beside_each_other_learn_as_if_alone(finished: Path, tmp_path: Path) -> None:
    for name in ("backbone", "dense"):
        changes = {**CHANGES, "students": {name: STUDENTS[name]}}
        assert run(write_recipe(tmp_path, changes, name=name)) == DONE
        assert_equal_tensors(tensors(tmp_path / name, name), tensors(finished, name))
        assert_equal_tensors(best(tmp_path / name, name)[0], best(finished, name)[0])


def test_a_backbone_is_exported_for_timm_without_classifier(finished: Path, tmp_path: Path) -> None:
    export_student(finished, tmp_path / "out", student="backbone")
    net = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=0)
    assert net.num_classes == 0
    trained = {
        name.removeprefix("backbone.model/"): each
        for name, each in tensors(finished, "backbone").items()
        if name.startswith("backbone.model/")
    }
    assert_equal_tensors(dict(net.state_dict()), trained)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["num_classes"] == 0
    assert not config.get("label_names")
    export_student(finished, tmp_path / "raw", student="backbone", weights="raw")
    (found,) = find_models(
        tmp_path / "raw", model=None, student=None, weights="best", image_size=None
    )
    assert_equal_tensors(dict(found.net.state_dict()), trained)


@pytest.mark.slow
def test_a_backbone_is_exported_as_a_program(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compared = export_student(
        finished, tmp_path / "program", student="backbone", format="torch-export"
    )
    assert compared is not None
    assert compared.largest < 1e-4
    assert "output: 64 features" in capsys.readouterr().out


@pytest.mark.slow
def test_its_export_begins_a_classifier_and_a_classifier_begins_a_backbone(
    finished: Path, tmp_path: Path
) -> None:
    """The head, which one side lacks, is new or left out."""
    for name, objective, says in (
        ("backbone", {}, "begins at random"),
        ("classifier", ALONE, "was left out"),
    ):
        export_student(finished, tmp_path / name, student=name)
        weights = str(tmp_path / name / "model.safetensors")
        student = {"weights": weights, "objective": objective}
        changes = {
            **CHANGES,
            "train": {"budget": "1 iterations"},
            "student": {"optimizer": {"lr": 1e-12}},
            "students": {"next": student},
        }
        recipe = write_recipe(tmp_path, changes, name=f"{name}-next")
        assert any(says in line for line in check_recipe(load_recipe(recipe)).seen)
        assert run(recipe) == DONE
        began, ended = best(finished, name)[0], best(tmp_path / f"{name}-next", "next")[0]
        assert ended.keys() ^ began.keys() == {"fc.weight", "fc.bias"}
        assert torch.allclose(began["conv1.weight"], ended["conv1.weight"], atol=1e-6)
    export_student(finished, tmp_path / "teacher", student="backbone")
    taught = {**CHANGES, "teacher": {"model": None, "weights": str(tmp_path / "teacher")}}
    taught["teacher"] |= {"image_size": None, "model_args": {}}
    taught["students"] = {"next": {"objective": {"hint": {"loss": "fitnet"}}}}
    assert run(write_recipe(tmp_path, taught, {"train": {"budget": "2 iterations"}})) == DONE


def test_images_without_labels_train_a_backbone(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    """No class is known; a run stopped and resumed ends the same, bit for bit."""
    assert run(write_recipe(tmp_path, unlabelled(foreign), name="whole")) == DONE
    recipe = write_recipe(tmp_path, unlabelled(foreign))
    with monkeypatch.context() as stopped:
        stop_after(4, stopped)
        assert run(recipe) == INTERRUPTED
    outcome = cli("train", recipe)
    assert outcome.code == DONE, outcome.err
    assert "backbone: learns features alone" in outcome.out
    assert "classes" not in outcome.out
    assert "distill evaluate" not in outcome.out
    assert "agrees" not in outcome.out
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert not [line for line in records(tmp_path / "run") if line["event"] == "evaluate"]
    assert report(tmp_path / "run")["best"] == "backbone"


def test_a_teacher_with_classes_teaches_a_backbone_alone(finished: Path, tmp_path: Path) -> None:
    """Without a classifier the run has no classes to compare with the teacher's, and the backbone
    learns what it learns beside one.
    """
    teacher = {"model": None, "weights": str(finished / "best/classifier")}
    changes = {
        **CHANGES,
        "teacher": {**teacher, "image_size": None, "model_args": {}},
        "train": {"budget": "2 iterations"},
    }
    alone = {**changes, "students": {"backbone": STUDENTS["backbone"]}}
    beside = {**changes, "students": {"backbone": STUDENTS["backbone"], "labels": {}}}
    for name, tree in (("alone", alone), ("beside", beside)):
        recipe = write_recipe(tmp_path, tree, name=name)
        check_recipe(load_recipe(recipe))
        assert run(recipe, *(["evaluate.metric=agreement"] if name == "alone" else [])) == DONE
    assert_equal_tensors(
        tensors(tmp_path / "alone", "backbone"), tensors(tmp_path / "beside", "backbone")
    )
    assert report(tmp_path / "alone")["teacher"] is None
    assert report(tmp_path / "beside")["teacher"]["top1"] is not None


def test_a_teacher_of_other_classes_teaches_by_hints(tmp_path: Path) -> None:
    """The student is that of a teacher with the same body and the data's classes."""
    teacher: dict[str, Any] = {"model": "test_resnet", "image_size": None, "model_args": {}}
    model = timm.create_model("test_resnet", num_classes=7)
    for num_classes in (7, 10):
        path = tmp_path / f"of_{num_classes}.pth"
        model.reset_classifier(num_classes)
        torch.save(model.state_dict(), path)
        changes = {
            **CHANGES,
            "teacher": {**teacher, "weights": str(path)},
            "students": {"one": STUDENTS["relations"]},
        }
        recipe = write_recipe(tmp_path, changes, name=path.stem)
        if num_classes == 7:
            for override in ("students.one.objective.soft.loss=kl", "evaluate.metric=agreement"):
                with pytest.raises(InputError, match=r"teacher.* 7 classes"):
                    run(recipe, override)
            assert not (tmp_path / path.stem).exists()
        assert run(recipe) == DONE
    other, same = tmp_path / "of_7", tmp_path / "of_10"
    assert_equal_tensors(tensors(other, "one"), tensors(same, "one"))
    assert report(other)["teacher"] is None
    assert report(same)["teacher"]["top1"] is not None


def test_evaluate_and_report_leave_backbones_out(finished: Path, cli: Cli) -> None:
    outcome = cli("evaluate", finished, "--num-workers", 0)
    assert outcome.code == 0, outcome.err
    assert "without backbone, dense: no classifier" in outcome.err
    assert "classifier" in outcome.out
    assert "agrees" not in outcome.out
    with pytest.raises(InputError, match=r"backbone: a backbone without classifier names no class"):
        evaluate_models(finished, student="backbone")
    with pytest.raises(InputError, match=r"--teacher .*: has no classifier"):
        evaluate_models(
            finished, student="classifier", teacher=finished / "best/backbone", num_workers=0
        )
    content = make_content([read_run(finished)], Options(images=False, num_workers=0))
    assert content.runs[0].rows[0].name == "classifier", "the teacher has no row"
    assert {detail.name for detail in content.details} == {"classifier", "relations"}
    assert all(detail.agreement is None for detail in content.details)
    assert "backbone has no classifier, so it is left out here." in content.details_notes


def test_it_is_published_as_what_it_is(finished: Path, tmp_path: Path) -> None:
    model = find_publishable(finished, student="backbone", weights="raw", folder=tmp_path)
    assert model.found.classes == ()
    (teacher,) = model.teachers
    assert teacher["model"] == DINO["model"]
    assert not json.loads((model.folder / "config.json").read_text()).get("label_names")


def test_the_doctor_counts_it(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("doctor", write_recipe(tmp_path, CHANGES), "--gpus", 1, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["sections"]["Models, counted"]["teacher"]["value"].startswith(f"{DINO['model']}: ")
    shown = {name: each["value"] for name, each in found["sections"]["Models, counted"].items()}
    # Models of one size share a line: a backbone lacks the head, and its momentum.
    models = {"teacher", "classifier, relations", "backbone", "dense"}
    hints = {"hint of classifier, backbone", "hint of relations", "hint of dense"}
    assert shown.keys() == models | hints | {"features of teachers"}
    assert found["hints"].keys() == {"classifier", "relations", "backbone", "dense"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["students.classifier.objective.soft.loss=kl"],
            r"students.classifier.objective.soft: kl reads the logits .*vit_small.* no classifier"
            r": learn from its features \(objective.hint with loss: feature",
        ),
        (["evaluate.metric=agreement"], r"evaluate.metric: agreement compares .* use top1"),
        (["teacher.classes=imagenet-1k"], r"teacher.classes: vit_small.*: remove this key"),
        (
            ["students.backbone.objective.hint.loss=rkd"],
            r"objective.hint alone trains no classifier, and only loss: feature a backbone",
        ),
        (
            ["students.dense.objective.hint.student_stage=2"],
            r"hint.student_stage: without objective.hard .* leave it out",
        ),
    ],
)
def test_what_needs_classes_is_refused_by_check_and_by_train(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, CHANGES)
    for refusing in (
        lambda: check_recipe(load_recipe(recipe, overrides)),
        lambda: run(recipe, *overrides),
    ):
        with pytest.raises(InputError, match=message):
            refusing()
    assert not (tmp_path / "run").exists()


def test_a_backbone_stays_one_in_all_stages(
    tiny_recipe: Callable[..., Path], foreign: Path
) -> None:
    stage = {"budget": "2 iterations"}
    changes = {
        **CHANGES,
        "train": {"budget": None},
        "students": {"next": {}},
        "stages": [
            {"name": "first", **stage, "student": {"objective": ALONE}},
            {"name": "then", **stage},
        ],
    }
    with pytest.raises(InputError, match=r"stages.then.students.next.objective: learns features"):
        load_recipe(tiny_recipe(changes))
