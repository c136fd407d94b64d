"""Runs whose evaluation set has no labels, or those of other classes: compared with the teacher."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import assert_same_run, best, records, report, run, stop_after, tensors, write_recipe

from distill.data.augment import EvalTransform
from distill.data.decode import read_image
from distill.data.sources import open_source
from distill.errors import InputError
from distill.evaluation.accuracy import Accuracy
from distill.models.build import create
from distill.models.pixels import Pixels
from distill.models.student import student_view
from distill.models.teacher import build_teacher
from distill.recipe import load_recipe
from distill.recipe.schema import StreamSpec
from distill.release.evaluate import evaluate_models
from distill.release.find import find_models, which_weights
from distill.training.loop import DONE, INTERRUPTED


def unlabelled(foreign: Path, metric: str = "teacher_kl", **train: Any) -> dict[str, Any]:
    stream = {"kind": "stream", "path": str(foreign), "labelled": False}
    return {
        "data": {"eval": stream, **train},
        "evaluate": {"every": "2 iterations", "metric": metric},
        "students": {
            "kd": {
                "objective": {"hard": None, "soft": {"loss": "kl"}},
                "ema": {"decays": [0.5]},
            }
        },
    }


@pytest.mark.parametrize("metric", ["teacher_kl", "agreement"])
def test_the_best_is_nearest_to_the_teacher(metric: str, foreign: Path, tmp_path: Path) -> None:
    assert run(write_recipe(tmp_path, unlabelled(foreign, metric))) == DONE
    evaluated = [line for line in records(tmp_path / "run") if line["event"] == "evaluate"]
    assert len(evaluated) == 4
    for line in evaluated:
        for model, figures in line["models"].items():
            own = set() if model == "teacher" else {"agreement", "teacher_kl"}
            assert figures.keys() == {"num_samples", "num_skipped"} | own
            assert figures["num_samples"] == 300
    choose = min if metric == "teacher_kl" else max
    found = [line["models"][model][metric] for line in evaluated for model in ("kd", "kd/ema-0.5")]
    result = report(tmp_path / "run")
    assert result["students"]["kd"]["best"][metric] == choose(found)
    assert best(tmp_path / "run", "kd")[1][metric] == choose(found)
    assert result["best"] == "kd"
    assert "top1" not in result["students"]["kd"]["last"]
    (model,) = find_models(
        tmp_path / "run", model=None, student="kd", weights="best", image_size=None
    )
    assert which_weights(model).startswith("best weights ("), "chosen without an accuracy"


def test_figures_equal_those_of_one_image_at_a_time(foreign: Path, tmp_path: Path) -> None:

    changes = unlabelled(foreign)
    changes["students"]["kd"].pop("ema")
    assert run(write_recipe(tmp_path, changes)) == DONE
    students = report(tmp_path / "run")["students"]["kd"]
    net = create("cifar_resnet8", num_classes=10).eval()
    saved = tensors(tmp_path / "run", "kd")
    net.load_state_dict(
        {k.removeprefix("kd.model/"): v for k, v in saved.items() if k.startswith("kd.model/")}
    )

    recipe = load_recipe(tmp_path / "run.yaml")
    assert recipe.teacher
    teacher = build_teacher(
        recipe.teacher,
        classes=[str(i) for i in range(10)],
        root=Path(),
        device="cpu",
        data_image_size=16,
    )
    spec = StreamSpec(kind="stream", path=str(foreign), labelled=False)
    source = open_source(spec, Path())
    transform = EvalTransform(image_size=16, crop_fraction=1.0, interpolation="bicubic")

    view = student_view(recipe.students["kd"], Path(), recipe.data)
    pixels = Pixels(view.mean, view.std)
    agreed, kl = 0, 0.0
    for index in range(len(source)):
        image = torch.tensor(transform(read_image(source, index))).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            ours, theirs = net(pixels(image)).double()[0], teacher(image).double()[0]
        agreed += int(ours.argmax() == theirs.argmax())
        p = theirs.softmax(0)
        kl += float((p * (theirs.log_softmax(0) - ours.log_softmax(0))).sum())
    assert students["last"]["agreement"] == pytest.approx(100 * agreed / 300)
    assert students["last"]["teacher_kl"] == pytest.approx(kl / 300, rel=1e-4)


def test_images_without_labels_for_training_and_evaluation(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the teacher's class list says what the logits are; a stopped run ends the same."""
    names = tmp_path / "classes.txt"
    names.write_text("".join(f"thing {i}\n" for i in range(10)))
    stream = {"kind": "stream", "path": str(foreign), "labelled": False, "block": 20}
    changes = (
        unlabelled(foreign, train=stream, fraction=1.0),
        {"teacher": {"classes": str(names)}},
    )
    assert run(write_recipe(tmp_path, *changes, name="whole")) == DONE
    recipe = write_recipe(tmp_path, *changes)
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        assert run(recipe) == INTERRUPTED
    assert run(recipe) == DONE
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    folder = tmp_path / "run" / "best" / "kd"
    assert '"thing 9"' in (folder / "config.json").read_text()


def test_labels_of_the_runs_classes_are_still_read(tmp_path: Path) -> None:
    changes = unlabelled(tmp_path)
    del changes["data"]
    assert run(write_recipe(tmp_path, changes)) == DONE
    assert {"top1", "top5", "loss"} <= report(tmp_path / "run")["students"]["kd"]["last"].keys()


def test_labelled_images_name_the_classes_though_nothing_reads_their_labels(
    foreign: Path, tmp_path: Path
) -> None:
    """Training images without labels, and evaluation images of the run's classes."""
    stream = {"kind": "stream", "path": str(foreign), "labelled": False, "block": 20}
    changes = unlabelled(foreign, train=stream, fraction=1.0)
    del changes["data"]["eval"]
    assert run(write_recipe(tmp_path, changes)) == DONE
    result = report(tmp_path / "run")["students"]["kd"]
    assert {"top1", "agreement"} <= result["last"].keys()
    assert result["best"]["metric"] == "teacher_kl"


def test_evaluation_images_of_other_classes(tmp_path: Path) -> None:
    """Their labels are not read: the teacher's list decides what the logits are."""
    folder = tmp_path / "others"
    for number in range(12):
        (folder / f"thing{number}").mkdir(parents=True)
        pixels = torch.randint(255, (20, 20, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"thing{number}" / "1.png")
    changes = unlabelled(tmp_path)
    changes["data"] = {"eval": {"kind": "image_folder", "path": str(folder)}}
    names = tmp_path / "classes.txt"
    names.write_text("".join(f"{i}\n" for i in range(10)))
    recipe = write_recipe(tmp_path, changes, {"teacher": {"classes": str(names)}})
    assert run(recipe) == DONE
    last = report(tmp_path / "run")["students"]["kd"]["last"]
    assert last.keys() == {"num_samples", "num_skipped", "agreement", "teacher_kl"}
    assert last["num_samples"] == 12


def test_a_metric_of_labels_refuses_images_without(foreign: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, unlabelled(foreign))
    with pytest.raises(InputError, match=r"data.eval: has no labels, and evaluate.metric reads"):
        run(recipe, "evaluate.metric=top1")
    with pytest.raises(InputError, match=r"a source with labels, or teacher.classes"):
        run(recipe, f"data.train={{kind: stream, path: {foreign}, labelled: false}}")


def test_figures_without_labels_survive_a_checkpoint() -> None:
    figures = Accuracy(None, None, None, 300, agreement=50.0, teacher_kl=0.1)
    assert Accuracy.from_dict(figures.as_dict()) == figures
    assert figures.finite
    assert not Accuracy(None, None, None, 300, agreement=50.0, teacher_kl=float("nan")).finite


def test_evaluating_such_a_run_asks_for_labelled_images(foreign: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, unlabelled(foreign), {"train": {"budget": "1 iterations"}})
    assert run(recipe) == DONE
    with pytest.raises(InputError, match=r"no labels.*--data"):
        evaluate_models(tmp_path / "run")
