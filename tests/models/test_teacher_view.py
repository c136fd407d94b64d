"""The teacher's printed accuracy is that of timm's own pipeline, whatever the students see; and
doubts about it are said.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import tiny
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config

from distill.evaluation.sets import EvaluationSet
from distill.models.plausible import Promise, doubts, near_chance, read_promise
from distill.release.evaluate import evaluate_models

SIZE = 48
CLASSES = 4
COUNT = 60


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A ResNet as plain timm code saves it, and images of many shapes that it names right in about
    three of four cases.
    """
    root = tmp_path_factory.mktemp("own_view")
    torch.manual_seed(3)
    model = timm.create_model("resnet10t", num_classes=CLASSES).train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(16, 3, SIZE, SIZE))
    torch.save(model.state_dict(), root / "teacher.pth")
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        (root / "images" / f"c{label}").mkdir(parents=True)
    for number in range(COUNT):
        shape = tuple(map(int, rng.integers(40, 150, 2)))
        image = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
            shape, Image.Resampling.BICUBIC
        )
        label = answer(model.eval(), image) if number % 4 else number // 4 % CLASSES
        image.save(root / "images" / f"c{label}" / f"{number}.png")
    return root / "teacher.pth", root / "images"


def answer(model: torch.nn.Module, image: Image.Image) -> int:
    view = create_transform(
        **resolve_data_config({"input_size": (3, SIZE, SIZE)}, model=model), is_training=False
    )
    with torch.no_grad():
        return int(model(view(image.convert("RGB"))[None]).argmax())


def by_timm(weights: Path, images: Path) -> float:
    """Top-1 in percent: an independent loop of plain timm code."""
    model = timm.create_model("resnet10t", num_classes=CLASSES).eval()
    model.load_state_dict(torch.load(weights))
    hits = [
        answer(model, Image.open(file)) == int(file.parent.name[1:])
        for file in sorted(images.glob("*/*.png"))
    ]
    assert len(hits) == COUNT
    return 100 * float(np.mean(hits))


def recipe(folder: Path, case: tuple[Path, Path], **changes: Any) -> Path:
    source = {"kind": "image_folder", "path": str(case[1])}
    tree = {
        "teacher": {"model": "resnet10t", "weights": str(case[0]), "image_size": None},
        "data": {"train": source, "eval": source, "fraction": 1.0, "image_size": SIZE},
        "train": {"budget": "4 iterations"},
        "evaluate": {"every": "2 iterations"},
        "checkpoint": {"every": "2 iterations"},
        "students": {"kd": {"objective": {"soft": {"loss": "kl"}}}},
    }
    return tiny.write_recipe(folder, tree, changes)


def test_the_printed_accuracy_is_timms_and_measured_once(
    case: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    passes = []
    original = EvaluationSet._of_teacher
    monkeypatch.setattr(
        EvaluationSet, "_of_teacher", lambda *args: passes.append(1) or original(*args)
    )
    path = recipe(tmp_path, case)
    assert tiny.run(path) == 0
    right = by_timm(*case)
    assert 50 < right < 95
    report = tiny.report(tmp_path / "run")
    assert report["teacher"]["top1"] == pytest.approx(right, abs=1e-9)
    assert len(passes) == 1
    assert (
        f"teacher sees {SIZE}x{SIZE} px (data.image_size); center crop" in capsys.readouterr().out
    )
    seen = report["views"]["teacher"]
    assert (seen["image_size"], seen["sources"]["image_size"]) == (SIZE, "data.image_size")
    assert report["warnings"] == []
    accuracies = evaluate_models(tmp_path / "run", num_workers=0)
    assert accuracies["teacher"].top1 == pytest.approx(right, abs=1e-9)

    with monkeypatch.context() as stopped:
        tiny.stop_after(3, stopped)
        assert tiny.run(path, f"output={tmp_path / 'parts'}") == 75
    assert tiny.run(path, f"output={tmp_path / 'parts'}") == 0
    assert len(passes) == 2, "what the first session measured is in its checkpoint"
    assert tiny.report(tmp_path / "parts")["teacher"] == report["teacher"]
    assert tiny.records(tmp_path / "parts") == tiny.records(tmp_path / "run")


def test_a_view_that_is_the_students_takes_no_pass_more(
    case: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EvaluationSet, "_of_teacher", lambda *_: pytest.fail("a pass of its own"))
    path = recipe(
        tmp_path, case, data={"eval_view": {"crop_fraction": 0.875, "interpolation": "bicubic"}}
    )
    assert tiny.run(path, "train.budget=2 iterations") == 0
    assert tiny.report(tmp_path / "run")["teacher"]["top1"] == pytest.approx(
        by_timm(*case), abs=1e-9
    )


def test_a_teacher_that_guesses_is_a_warning_in_the_report_and_on_the_screen(
    case: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turned = torch.load(case[0])
    order = [1, 2, 3, 0]
    turned["fc.weight"], turned["fc.bias"] = turned["fc.weight"][order], turned["fc.bias"][order]
    torch.save(turned, tmp_path / "turned.pth")
    path = recipe(tmp_path, case, teacher={"weights": str(tmp_path / "turned.pth")})
    assert tiny.run(path, "train.budget=2 iterations") == 0
    (warning,) = tiny.report(tmp_path / "run")["warnings"]
    assert "is no better than guessing among 4 classes" in warning
    assert "the order of the classes" in warning
    assert "warning: teacher: top-1" in capsys.readouterr().out


# ---- the rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top1", "num_samples", "num_classes", "expected"),
    [
        (33.33, 60, 3, True),
        (50.0, 600, 6, False),
        (10.0, 1000, 10, True),
        (12.8, 1000, 10, True),  # three standard errors are 2.85 points
        (12.9, 1000, 10, False),
        (2.9, 1000, 12, True),  # below guessing: the classes stand in another order
        (50.0, 4, 2, False),  # so few images tell nothing
        (0.0, 0, 10, False),
    ],
)
def test_near_chance(top1: float, num_samples: int, num_classes: int, expected: bool) -> None:
    assert near_chance(top1, num_samples, num_classes) is expected


def test_a_shortfall_counts_beyond_the_noise_of_both_measurements() -> None:
    promise = Promise(80.0, 10_000, "distill.json")
    assert not doubts("t", 77.5, 10_000, 10, sees="", promise=promise)
    (line,) = doubts("t", 70.0, 10_000, 10, sees="96 px", promise=promise)
    assert "where distill.json says 80.00 %" in line
    assert line.endswith("It sees 96 px")
    assert not doubts("t", 70.0, 50, 10, sees="", promise=promise), (
        "50 images cannot tell 70 from 80 %"
    )
    assert not doubts("t", 85.0, 10_000, 10, sees="", promise=promise)


def test_an_evaluation_says_what_a_model_sees_and_that_it_guesses(
    case: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_text("\n".join(f"c{i}" for i in range(CLASSES)))
    options: dict[str, Any] = {
        "data": str(case[1]),
        "classes": str(tmp_path / "names.txt"),
        "num_workers": 0,
    }
    right = evaluate_models(case[0], model="resnet10t", image_size=SIZE, **options)["teacher"].top1
    said = capsys.readouterr().out
    assert right == pytest.approx(by_timm(*case), abs=1e-9)
    assert f"teacher sees {SIZE}x{SIZE} px (--image-size); center crop 0.875" in said
    assert "warning" not in said
    (tmp_path / "names.txt").write_text("\n".join(f"c{(i + 1) % CLASSES}" for i in range(CLASSES)))
    evaluate_models(case[0], model="resnet10t", **options)
    said = capsys.readouterr().out
    assert "176x176 px, center crop 0.875" in said
    assert "(assumed from timm's config of resnet10t.c3_in1k)" in said
    assert "warning: teacher: top-1" in said


def test_a_record_that_promises_more_is_doubted(case: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    record = tmp_path / "x" / "distill.json"
    record.write_text(json.dumps({"top1": 99.0, "num_samples": 1000}))
    assert read_promise(tmp_path / "x" / "model.safetensors") == Promise(99.0, 1000, str(record))
    assert read_promise(tmp_path / "x" / "other.pth") is None


@pytest.mark.parametrize("crop_mode", ["squash", "border"])
def test_an_export_and_its_file_are_evaluated_as_their_config_says(
    crop_mode: str, case: tuple[Path, Path], tmp_path: Path
) -> None:
    save_file(torch.load(case[0]), tmp_path / "model.safetensors")
    view = {
        "input_size": [3, 40, 40],
        "crop_pct": 1.0,
        "crop_mode": crop_mode,
        "mean": [0.3] * 3,
        "std": [0.3] * 3,
    }
    names = [f"c{index}" for index in range(CLASSES)]
    content = {
        "architecture": "resnet10t",
        "num_classes": CLASSES,
        "label_names": names,
        "pretrained_cfg": view,
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=model), is_training=False)
    files = sorted(case[1].glob("*/*.png"))
    with torch.no_grad():
        logits = torch.cat(
            [model(transform(Image.open(file).convert("RGB"))[None]) for file in files]
        )
    labels = torch.tensor([int(file.parent.name[1:]) for file in files])
    for place in (tmp_path, tmp_path / "model.safetensors"):
        (score,) = evaluate_models(place, data=str(case[1]), num_workers=0).scores.values()
        assert score.top1 == pytest.approx(
            100 * float((logits.argmax(1) == labels).double().mean()), abs=1e-9
        )
        assert score.loss == pytest.approx(
            float(torch.nn.functional.cross_entropy(logits, labels)), abs=1e-5
        )
