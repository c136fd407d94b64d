"""Several teachers of one run: each student reads those that its objective names."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from command import Cli
from safetensors.torch import save_file
from tiny import (
    assert_equal_tensors,
    assert_same_run,
    best,
    checkpoint,
    records,
    report,
    run,
    stop_after,
    tensors,
    write_recipe,
)

import distill.training.loop
from distill.data.augment import EvalTransform
from distill.data.decode import read_image
from distill.data.sources import open_source
from distill.errors import InputError
from distill.models.hub.card import CardFacts, model_card
from distill.models.hub.derived import noted_licences
from distill.models.hub.record import check_record
from distill.models.hub.words import describe_recipe
from distill.models.teacher import build_teacher
from distill.recipe import load_recipe
from distill.release.find import find_models
from distill.report.content import Options, make_content
from distill.report.records import read_run
from distill.training.check import check_recipe
from distill.training.loop import DONE, INTERRUPTED
from distill.training.teachers import with_key

TEACHERS: dict[str, Any] = {
    "big": {"model": "cifar_resnet14", "weights": "random", "image_size": 16},
    "wide": {
        "model": "test_vit",
        "weights": "random",
        "image_size": 32,
        "model_args": {"patch_size": 8},
    },
    "dino": {  # without classes
        "model": "vit_small_patch14_dinov2",
        "weights": "random",
        "image_size": 28,
        "model_args": {"depth": 2, "embed_dim": 32, "num_heads": 2},
    },
}
KL = {"loss": "kl", "temperature": 2.0}
TWO = {"big": 3, "wide": 1}
STUDENTS: dict[str, Any] = {
    "alone": {},
    "mean": {"objective": {"soft": KL, "soft_teachers": TWO}, "ema": {"decays": [0.5]}},
    "logits": {"objective": {"soft": KL, "soft_teachers": TWO, "combine": "logits"}},
    "losses": {
        "seed": 1,
        "objective": {"soft": {"loss": "dist"}, "soft_teachers": TWO, "combine": "losses"},
    },
    "features": {
        "drop_path": 0.2,
        "objective": {
            "soft": KL,
            "soft_teachers": {"wide": 1},
            "hint": {"loss": "feature"},
            "hint_teacher": "dino",
        },
    },
}
CHANGES: dict[str, Any] = {
    "teacher": None,
    "teachers": TEACHERS,
    "train": {"budget": "4 iterations"},
    "evaluate": {"every": "2 iterations"},
    "checkpoint": {"every": "2 iterations"},
    "students": STUDENTS,
}


def only(student: str, *teachers: str) -> dict[str, Any]:
    """A run of one student with some of the teachers."""
    return {
        **CHANGES,
        "teachers": {name: TEACHERS[name] for name in teachers},
        "students": {student: STUDENTS[student]},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all students and teachers, which tests only read."""
    folder = tmp_path_factory.mktemp("several")
    assert run(write_recipe(folder, CHANGES)) == DONE
    return folder / "run"


def test_each_teacher_has_a_row_and_a_record(finished: Path, cli: Cli) -> None:
    result = report(finished)
    assert result["teacher"] is None
    assert result["teachers"].keys() == {"teacher/big", "teacher/wide"}
    for models in (line["models"] for line in records(finished) if line["event"] == "evaluate"):
        assert models["teacher/big"] == result["teachers"]["teacher/big"]
    assert result["origins"].keys() == {f"teacher/{name}" for name in TEACHERS} | STUDENTS.keys()
    inputs = json.loads((checkpoint(finished) / "state.json").read_text())["inputs"]
    assert len({inputs[f"teacher/{name} (SHA-256)"] for name in TEACHERS}) == 3
    assert "teacher/wide sees" in inputs
    shown = cli("train", finished.parent / "run.yaml").out
    assert "teacher  big: cifar_resnet14" in " ".join(shown.split("  "))
    assert "teacher/big" in shown
    content = make_content([read_run(finished)], Options(predictions=False))
    rows = {row.name: row for row in content.runs[0].rows}
    assert rows["teacher/wide"].model == "test_vit"
    assert rows["features"].learns_from == "1 ce + 1 kl of wide + 1 feature of dino"
    (accuracy,) = (panel for panel in content.panels if panel.title == "Top-1")
    assert {"teacher/big", "teacher/wide"} <= {curve.label for curve in accuracy.curves}


def test_students_are_compared_with_what_they_learn_from(finished: Path) -> None:
    """Figures of one image at a time, in float64."""
    recipe = load_recipe(finished / "recipe.yaml")
    assert recipe.data.eval is not None
    source = open_source(recipe.data.eval, Path(), "data.eval")
    teachers = {
        name: build_teacher(
            recipe.teacher_rows[f"teacher/{name}"],
            classes=source.classes,
            root=Path(),
            device="cpu",
            data_image_size=16,
        )
        for name in TWO
    }
    found = find_models(finished, model=None, student=None, weights="raw", image_size=None)
    transform = EvalTransform(image_size=16, crop_fraction=1.0, interpolation="bicubic")
    images = torch.stack(
        [
            torch.tensor(transform(read_image(source, i))).permute(2, 0, 1) / 255
            for i in range(len(source))
        ]
    )
    with torch.no_grad():
        z = {name: teacher(images).double() for name, teacher in teachers.items()}
        answers = {each.name: each.net.eval()(each.pixels(images)).double() for each in found}
    probs = {name: logits.softmax(1) for name, logits in z.items()}
    weighted = 0.75 * probs["big"] + 0.25 * probs["wide"]
    against = {
        "alone": (probs["big"] + probs["wide"]) / 2,
        "mean": weighted,
        "logits": (0.75 * z["big"] + 0.25 * z["wide"]).softmax(1),
        "losses": weighted,
        "features": probs["wide"],
    }
    last = report(finished)["students"]
    for name, p in against.items():
        kl = (p * (p.log() - answers[name].log_softmax(1))).sum(1).mean()
        same = 100 * (answers[name].argmax(1) == p.argmax(1)).double().mean()
        assert last[name]["last"]["teacher_kl"] == pytest.approx(float(kl), rel=1e-4)
        assert last[name]["last"]["agreement"] == pytest.approx(float(same))


@pytest.mark.slow
def test_other_teachers_and_students_change_nothing(finished: Path, tmp_path: Path) -> None:
    for name, teachers in (
        ("alone", ("dino",)),
        ("mean", ("wide", "big")),
        ("losses", ("big", "wide")),
        ("features", ("wide", "dino")),
    ):
        assert run(write_recipe(tmp_path, only(name, *teachers), name=name)) == DONE
        assert_equal_tensors(tensors(tmp_path / name, name), tensors(finished, name))


def test_one_of_teachers_is_the_teacher(tmp_path: Path) -> None:
    """Bit for bit, with a trained head."""
    student = {"objective": {"soft": KL, "hint": {"loss": "feature"}}, "drop_path": 0.2}
    changes = {**CHANGES, "students": {"kd": student}, "train": {"budget": "2 iterations"}}
    several = {**changes, "teachers": {"big": TEACHERS["big"]}}
    single = {**changes, "teachers": None, "teacher": TEACHERS["big"]}
    assert run(write_recipe(tmp_path, several, name="several")) == DONE
    assert run(write_recipe(tmp_path, single, name="single")) == DONE
    assert_equal_tensors(tensors(tmp_path / "several"), tensors(tmp_path / "single"))
    one, other = (best(tmp_path / name, "kd") for name in ("several", "single"))
    assert one[1]["teachers"] == {"big": other[1].pop("teacher")}
    del one[1]["teachers"]
    assert one[1] == other[1]
    assert_equal_tensors(one[0], other[0])


def test_a_run_resumes_bit_for_bit(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, CHANGES)
    with monkeypatch.context() as stopped:
        stop_after(3, stopped)
        assert run(recipe) == INTERRUPTED
    assert run(recipe) == DONE
    assert_same_run(tmp_path / "run", finished)
    changed = {**CHANGES, "teachers": {**TEACHERS, "big": TEACHERS["wide"]}}
    with pytest.raises(InputError, match=r"teachers\.big\.model"):
        run(write_recipe(tmp_path, changed))


def test_a_teacher_runs_once_for_all_and_only_where_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second stage nothing reads `big`, and a new head reads another teacher."""
    asked: list[list[str]] = []
    ask = distill.training.loop.ask_teachers

    def recorded(*arguments: Any) -> Any:
        lessons = ask(*arguments)
        asked.append(list(lessons.outputs))
        return lessons

    monkeypatch.setattr(distill.training.loop, "ask_teachers", recorded)
    hint = {"hint": {"loss": "feature"}}
    changes = {
        **CHANGES,
        "train": {"budget": None, "micro_batch_size": None},
        "students": {
            "kd": {"objective": {"soft": KL, "soft_teachers": {"big": 1}}},
            "hint": {"objective": {**hint, "hint_teacher": "big"}},
        },
        "stages": [
            {"name": "first", "budget": "2 iterations"},
            {
                "name": "then",
                "budget": "1 iterations",
                "students": {
                    "kd": {"objective": {"soft_teachers": {"big": 0, "wide": 1}}},
                    "hint": {"objective": {"hint_teacher": "dino"}},
                },
            },
        ],
    }
    assert run(write_recipe(tmp_path, changes)) == DONE
    assert asked == [["teacher/big"], ["teacher/big"], ["teacher/wide", "teacher/dino"]]
    heads = {
        name: each.shape for name, each in tensors(tmp_path / "run").items() if "heads/" in name
    }
    assert heads["hint.heads/projection.weight"] == (32, 64, 1, 1), "of the second stage"
    assert best(tmp_path / "run", "kd")[1]["teachers"].keys() == {"big", "wide"}
    recipe = load_recipe(tmp_path / "run/recipe.yaml")
    assert recipe.stages[1].students["kd"].objective.in_words == "1 ce + 1 kl of wide"
    (*_, said) = (text for text in describe_recipe(recipe, "kd") if text.startswith("Objective"))
    assert "the probabilities of teachers wide 1 " in said, "no weight of 0"


def test_the_metric_may_be_the_divergence_to_them(tmp_path: Path) -> None:
    changes = {**CHANGES, "evaluate": {"every": "2 iterations", "metric": "teacher_kl"}}
    assert run(write_recipe(tmp_path, {**changes, "students": {"mean": STUDENTS["mean"]}})) == DONE
    evaluated = [
        line["models"] for line in records(tmp_path / "run") if line["event"] == "evaluate"
    ]
    values = [each[name]["teacher_kl"] for each in evaluated for name in ("mean", "mean/ema-0.5")]
    assert report(tmp_path / "run")["students"]["mean"]["best"]["teacher_kl"] == min(values)


def test_the_card_and_the_licences_name_all(finished: Path) -> None:
    recipe = load_recipe(finished / "recipe.yaml")
    record = best(finished, "features")[1]
    check_record(record, finished)
    facts = CardFacts(
        repo="alice/net",
        architecture="cifar_resnet8",
        parameters=1,
        classes=(),
        num_classes=10,
        view={"input_size": [3, 16, 16], "mean": [0.5], "std": [0.5], "crop_pct": 1.0}
        | {"interpolation": "bicubic"},
        record=record,
        weights_sha256="0",
        licence=None,
        recipe=recipe,
        student="features",
        report=report(finished),
    )
    card = model_card(facts)
    assert "distilled from `test_vit` and `vit_small_patch14_dinov2`" in card
    assert "- distilled-from:test_vit\n" in card
    assert card.count("- Teacher: ") == 2
    assert "1 x kl on the probabilities of teachers wide 1 (temperature 2.0)" in card
    assert "Errors and biases of its teachers" in card
    bound = {
        "a": {"model": "x", "weights": "pretrained resnet50.a1_in1k", "license": "apache-2.0"},
        "b": {"model": "y", "weights": "hf://alice/y", "license": "cc-by-nc-4.0"},
    }
    noted = noted_licences({}, list(bound.values()), None, ())
    assert [each.licence for each in noted] == ["apache-2.0", "cc-by-nc-4.0"]
    check_record({"teachers": {"a": {**bound["a"], "sha256": "0"}}}, finished)
    with pytest.raises(InputError, match=r"teachers\.a\.sha256"):
        check_record({"teachers": bound}, finished)


def test_the_doctor_and_the_check_know_all(tmp_path: Path, cli: Cli) -> None:
    recipe = write_recipe(tmp_path, CHANGES)
    seen = check_recipe(load_recipe(recipe)).seen
    assert any(line.startswith("teacher/wide sees 32x32 px (teachers.wide.im") for line in seen)
    assert {line.partition(" sees ")[0] for line in seen if line.startswith("teacher/")} == {
        f"teacher/{name}" for name in TEACHERS
    }
    outcome = cli("doctor", recipe, "teachers.wide.dtype=bf16", "--gpus", 1, "--json")
    assert outcome.code == 0, outcome.err
    counted = json.loads(outcome.out)["sections"]["Models, counted"]["teacher"]["value"]
    assert counted.startswith("cifar_resnet14 + test_vit + vit_small_patch14_dinov2: 0.5 M")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher.model=cifar_resnet14"], r"teacher and teachers: give one of them"),
        (
            ["students.mean.objective.soft_teachers={bgi: 1}"],
            r"students.mean.objective.soft_teachers: no teacher 'bgi' \(did you mean 'big'\?\)",
        ),
        (
            ["students.features.objective.hint_teacher=dyno"],
            r"students.features.objective.hint_teacher: no teacher 'dyno' \(did you mean 'dino'",
        ),
        (
            ["students.features.objective.hint_teacher=null"],
            r"features.objective.hint_teacher: missing, .* name one of big, wide, dino",
        ),
        (
            [
                "students.mean.objective.soft_teachers.big=0",
                "students.mean.objective.soft_teachers.wide=0",
            ],
            r"students.mean.objective.soft_teachers: no teacher has a weight above 0",
        ),
        (
            ["students.mean.objective.soft_teachers=null"],
            r"mean.objective.soft: kl reads the logits of teachers.dino .* no classifier: .*soft_",
        ),
        (["teachers.wide.model=test_vitt"], r"teachers.wide: .*did you mean 'test_vit"),
        (["teachers.wide.modle=x"], r"teachers.wide.modle: unknown key \(did you mean 'model'"),
        (
            ["teachers.wide.model_args.img_size=24"],
            r"teachers.wide.image_size 32 and teachers.wide",
        ),
    ],
)
def test_bad_input_names_the_key(overrides: list[str], message: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, CHANGES)
    with pytest.raises(InputError, match=message):
        check_recipe(load_recipe(recipe, overrides))
    with pytest.raises(InputError, match=message):
        run(recipe, *overrides)
    assert not (tmp_path / "run").exists()


def test_names_of_teachers_need_teachers(tmp_path: Path) -> None:
    student = {"objective": {"soft": KL, "soft_teachers": {"big": 1}}}
    with pytest.raises(InputError, match=r"soft_teachers: chooses among `teachers`, and this"):
        load_recipe(write_recipe(tmp_path, {"students": {"kd": student}}))


def test_a_teacher_is_named_by_its_key_and_a_file_by_its_name(tmp_path: Path) -> None:
    overrides = ["teachers.wide.weights=nowhere/teacher.pth"]
    recipe = write_recipe(tmp_path, CHANGES)
    assert (
        "teachers.wide.weights: nowhere/teacher.pth is not here"
        in check_recipe(load_recipe(recipe, overrides)).not_here
    )
    says = r"^teachers\.wide\.weights: nowhere/teacher.pth does not exist"
    with pytest.raises(InputError, match=says):
        run(recipe, *overrides)
    row = "teacher/wide"
    assert with_key("teacher: head.weight resampled", row) == "teachers.wide: head.weight resampled"
    for text in ("runs/teacher: gone", "teacher.pth: gone", "teacher.weights/x", "head_teacher: x"):
        assert with_key(text, row) == text


def test_what_is_assumed_of_a_teacher_names_it(tmp_path: Path, cli: Cli) -> None:
    net = timm.create_model("cifar_resnet8", num_classes=10)
    save_file(net.state_dict(), tmp_path / "ten.safetensors")
    ten = {"model": "cifar_resnet8", "weights": str(tmp_path / "ten.safetensors")}
    changes = {**only("alone", "big"), "train": {"budget": "1 iterations"}}
    changes["teachers"] = {"big": TEACHERS["big"], "ten": ten}
    outcome = cli("train", write_recipe(tmp_path, changes))
    assert outcome.code == DONE, outcome.err
    assert "classes of teachers.ten: nothing names the classes of the logits" in outcome.out
