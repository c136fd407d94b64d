"""`distill evaluate --sets` against an independent loop with timm's transform and timm's labels."""

import csv
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from command import Cli
from imagenet_sets import (
    MODEL,
    OF_A,
    OF_R,
    PER_SET,
    REAL,
    SIZE,
    SYNSETS,
    Known,
    answers,
    build,
    by_hand,
    export_model,
    label_of,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from shards import add

from distill.evaluation.accuracy import TEACHER
from distill.evaluation.scores import Scores
from distill.release.evaluate import evaluate_models
from distill.release.imagenet import KNOWN, part_synsets
from distill.release.results import Results

SETS = "val,real,v2,a,sketch"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(tmp_path_factory.mktemp("export") / "model")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def made(root: Path, export: Path) -> dict[str, Known]:
    return build(root, export)


@pytest.fixture(scope="module")
def results(
    export: Path, root: Path, made: dict[str, Known], tmp_path_factory: pytest.TempPathFactory
) -> Results:
    out = tmp_path_factory.mktemp("out")
    found = evaluate_models(
        export, sets=SETS, root=root, num_workers=0, json=out / "scores.json", csv=out / "csv"
    )
    shutil.copytree(out, root.parent / "written", dirs_exist_ok=True)
    return found


def same(score: Scores, expected: dict[str, float | int | None]) -> None:
    for key, value in expected.items():
        if value is None:
            assert getattr(score, key) is None, key
        else:
            assert getattr(score, key) == pytest.approx(value, abs=2e-5), key


@pytest.mark.parametrize(
    ("name", "of", "part", "real"),
    [
        ("val", "val", None, False),
        ("real", "val", None, True),
        ("v2", "v2", None, False),
        ("a", "a", OF_A, False),
        ("a-clean", "val", OF_A, False),
        ("sketch", "sketch", None, False),
    ],
)
def test_each_set_is_scored_as_by_hand(
    name: str,
    of: str,
    part: list[int] | None,
    real: bool,
    results: Results,
    made: dict[str, Known],
) -> None:
    (score,) = results.sets[name].scores.values()
    expected = by_hand(made[of], part, real)
    same(score, expected)
    assert 0 < score.top1 < score.top5 < 100
    assert results.sets[name].num_classes == (len(part) if part else 1000)


def test_images_without_a_label_in_real_do_not_count(
    results: Results, made: dict[str, Known]
) -> None:
    without = [
        path for path in made["val"].paths if not REAL[int(path.stem.rpartition("_")[2]) - 1]
    ]
    assert without, "the miniature has some"
    (score,) = results.sets["real"].scores.values()
    assert score.num_samples == PER_SET - len(without)


def test_a_stream_of_tars_is_a_set_too(
    export: Path, made: dict[str, Known], tmp_path: Path, results: Results
) -> None:
    """Members have the names of ImageNet's files, and numbers as labels."""
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        for path in made["val"].paths:
            add(tar, path.name, path.read_bytes())
            add(tar, path.with_suffix(".cls").name, str(label_of(path)).encode())
    place = tmp_path / "val.tar"
    found = evaluate_models(export, sets=f"real={place},val={place}", num_workers=0)
    for name in ("val", "real"):
        same(found.sets[name].scores["model"], by_hand(made["val"], real=name == "real"))


def test_the_parts_are_timms() -> None:
    for name, indices in (("a", OF_A), ("r", OF_R)):
        synsets = part_synsets(KNOWN[name])
        assert synsets is not None
        assert sorted(SYNSETS.index(synset) for synset in synsets) == sorted(indices)


@pytest.mark.parametrize("options", [{"batch_size": 7}, {"batch_size": None}, {"num_workers": 2}])
def test_batch_size_and_workers_change_no_count(
    options: dict[str, int | None], export: Path, root: Path, results: Results
) -> None:
    again = evaluate_models(export, sets="real,a", root=root, **{"num_workers": 0, **options})
    for name, of_set in again.sets.items():
        for model, score in of_set.scores.items():
            before = results.sets[name].scores[model]
            assert (score.top1, score.top5, score.num_samples) == (
                before.top1,
                before.top5,
                before.num_samples,
            )


def test_json_has_every_figure(results: Results, root: Path, export: Path) -> None:
    import hashlib

    written = json.loads((root.parent / "written/scores.json").read_text())
    title = written["sets"]["val"]["title"]
    assert title == "ImageNet-1K validation, 60 of 50,000 images"
    assert list(written["sets"]) == ["val", "real", "v2", "a", "a-clean", "sketch"]
    (name,) = written["models"]
    model = written["models"][name]
    assert model["model"] == MODEL
    assert model["image_size"] == SIZE
    content = (export / "model.safetensors").read_bytes()
    assert model["sha256"] == hashlib.sha256(content).hexdigest()
    for set_name, of_set in written["sets"].items():
        score = results.sets[set_name].scores[name]
        assert of_set["models"][name]["top1"] == score.top1
        assert of_set["models"][name]["top1_error"] == score.top1_error
        assert of_set["models"][name]["images_per_s"] > 0
    assert "loss" not in written["sets"]["real"]["models"][name]


def test_csv_has_timms_columns(results: Results, root: Path) -> None:
    written = root.parent / "written/csv"
    assert sorted(file.name for file in written.iterdir()) == sorted(
        [
            "results-imagenet.csv",
            "results-imagenet-real.csv",
            "results-imagenetv2-matched-frequency.csv",
            "results-imagenet-a.csv",
            "results-imagenet-a-clean.csv",
            "results-sketch.csv",
        ]
    )
    (row,) = csv.DictReader((written / "results-imagenet.csv").open())
    assert list(row) == (
        [
            "model",
            "img_size",
            "top1",
            "top1_err",
            "top5",
            "top5_err",
            "param_count",
            "crop_pct",
            "interpolation",
        ]
    )
    (score,) = results.sets["val"].scores.values()
    assert row["top1"] == f"{score.top1:.3f}"
    assert float(row["top1_err"]) == pytest.approx(100 - score.top1, abs=1e-3)
    assert (row["img_size"], row["crop_pct"], row["interpolation"]) == ("32", "0.875", "bicubic")
    (row,) = csv.DictReader((written / "results-imagenet-a.csv").open())
    (clean,) = results.sets["a-clean"].scores.values()
    (of_a,) = results.sets["a"].scores.values()
    assert float(row["top1_diff"]) == pytest.approx(of_a.top1 - clean.top1, abs=1e-3)
    assert row["rank_diff"] == "0"


def test_a_named_teacher_is_compared_with(
    export: Path, root: Path, made: dict[str, Known], tmp_path: Path
) -> None:
    teacher = export_model(tmp_path / "teacher", seed=1)
    found = evaluate_models(export, sets="val", root=root, teacher=teacher, num_workers=0)
    (name,) = (name for name in found.sets["val"].scores if name != TEACHER)
    score = found["model"]
    own, theirs = made["val"].logits, answers(teacher, made["val"].paths)
    agreed = (own.argmax(1) == theirs.argmax(1)).double().mean()
    kl = (theirs.softmax(1) * (theirs.log_softmax(1) - own.log_softmax(1))).sum(1).mean()
    assert name == "model"
    assert score.agreement == pytest.approx(100 * float(agreed), abs=1e-9)
    assert score.teacher_kl == pytest.approx(float(kl), abs=1e-4)
    same(found["teacher"], by_hand(Known(made["val"].paths, theirs)))
    assert found["teacher"].agreement is None


def test_a_teacher_that_counts_its_classes_otherwise(
    export: Path, root: Path, made: dict[str, Known], reversed_model: Path
) -> None:
    """The same weights with the classes of the head in reverse: they agree on every image."""
    found = evaluate_models(export, sets="a", root=root, teacher=reversed_model, num_workers=0)
    for of_set in found.sets.values():
        assert of_set.scores["model"].agreement == 100
        assert of_set.scores["model"].teacher_kl == pytest.approx(0, abs=1e-9)
        assert of_set.scores["teacher"].top1 == of_set.scores["model"].top1


@pytest.fixture(scope="module")
def reversed_model(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights with the classes of the head, and their names, in reverse."""
    folder = tmp_path_factory.mktemp("reversed") / "teacher"
    shutil.copytree(export, folder)
    (folder / "pytorch_model.bin").unlink(missing_ok=True)
    tensors = load_file(folder / "model.safetensors")
    for key in ("fc.weight", "fc.bias"):
        tensors[key] = tensors[key].flip(0).contiguous()
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["label_names"] = SYNSETS[::-1]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_order_of_the_logits_changes_nothing(
    reversed_model: Path, root: Path, results: Results, tmp_path: Path
) -> None:
    """Numbers as folders are those of ImageNet-1K. The model's folder is called "teacher"."""
    found = evaluate_models(
        reversed_model, sets="val,real,v2,a", root=root, num_workers=0, csv=tmp_path / "csv"
    )
    for name, of_set in found.sets.items():
        ours, theirs = of_set.scores["teacher"], results.sets[name].scores["model"]
        assert (ours.top1, ours.top5) == (theirs.top1, theirs.top5), name
    assert len((tmp_path / "csv/results-imagenet.csv").read_text().splitlines()) == 2


def test_a_model_and_a_teacher_of_one_name(
    export: Path, reversed_model: Path, root: Path, results: Results
) -> None:
    found = evaluate_models(reversed_model, sets="val", root=root, teacher=export, num_workers=0)
    assert list(found) == ["teacher (model)", "teacher"]
    assert found["teacher (model)"].num_samples == PER_SET
    assert found["teacher (model)"].agreement == 100


def test_classes_that_only_the_data_name(
    export: Path, reversed_model: Path, root: Path, tmp_path: Path
) -> None:
    """A file of weights names no classes: the teacher is compared in ImageNet's order."""
    weights = tmp_path / "student.safetensors"
    shutil.copy(export / "model.safetensors", weights)
    found = evaluate_models(
        weights,
        model=MODEL,
        image_size=SIZE,
        sets="val",
        root=root,
        teacher=reversed_model,
        num_workers=0,
    )
    assert found["student"].agreement > 50, "their views differ a little"


def test_the_size_for_tests_is_that_of_validate(tmp_path: Path, root: Path, made: object) -> None:
    export = export_model(tmp_path / "model", test_input_size=(3, 48, 48), test_crop_pct=1.0)
    paths = made["val"].paths  # type: ignore[index]
    from timm import create_model
    from timm.data import create_transform, resolve_model_data_config

    model = create_model(f"local-dir:{export}", pretrained=True).eval()
    view = create_transform(**resolve_model_data_config(model, use_test_size=True))
    with torch.no_grad():
        rows = [model(view(Image.open(path).convert("RGB"))[None])[0] for path in paths]
    larger = evaluate_models(export, sets="val", root=root, num_workers=0)
    same(larger["model"], by_hand(Known(paths, torch.stack(rows).double())))
    usual = evaluate_models(export, sets="val", root=root, num_workers=0, use_train_size=True)
    same(usual["model"], by_hand(Known(paths, answers(export, paths))))
    assert usual["model"].loss != larger["model"].loss


def test_other_images_under_the_name_of_a_set_are_refused(tiny_run: Path, cli: Cli) -> None:
    """A model and images of ten other classes: the name val would call them ImageNet."""
    command = ("evaluate", tiny_run / "best/kd", "--num-workers", 0, "--sets")
    refused = cli(*command, "val=fashion_mnist")
    assert refused.code == 2
    assert "these are not the classes of ImageNet-1K validation" in " ".join(refused.err.split())
    assert cli(*command, "mine=fashion_mnist").code == 0


def test_how_classes_were_matched_is_said(
    cli: Cli, export: Path, root: Path, made: dict[str, Known]
) -> None:
    outcome = cli("evaluate", export, "--sets", "v2,a", "--root", root, "--num-workers", 0)
    assert outcome.code == 0, outcome.err
    assert "v2: classes of model: " in outcome.out
    assert "v2: class names are numbers of ImageNet-1K's classes" in outcome.out
    assert "a: classes of model: " in outcome.out
    assert "matched by WordNet's synsets and words: n0" in outcome.out


def test_a_validation_set_that_nobody_asked_for_stops_nothing(
    export: Path, root: Path, made: dict[str, Known], results: Results, tmp_path: Path, cli: Cli
) -> None:
    """Beside imagenet-a lies a folder called val that is not ImageNet's."""
    (tmp_path / "imagenet-a").symlink_to(root / "imagenet-a")
    for name in ("cat", "dog"):
        folder = tmp_path / "val" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(folder / "1.png")
    file = tmp_path / "scores.json"
    command = ("evaluate", export, "--sets", "a", "--root", tmp_path)
    outcome = cli(*command, "--num-workers", 0, "--json", file)
    assert outcome.code == 0, outcome.err
    assert "without a-clean: " in outcome.out
    (of_a,) = json.loads(file.read_text())["sets"].values()
    assert of_a["models"]["model"]["top1"] == results.sets["a"].scores["model"].top1


def test_bad_input(cli: Cli, export: Path, root: Path, made: object, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        outcome = cli("evaluate", export, *arguments, "--num-workers", 0)
        assert outcome.code == 2, outcome.out
        assert "Traceback" not in outcome.err
        return " ".join(outcome.err.split())

    assert "--sets vall: no set of ImageNet (did you mean 'val'?)" in refused(
        "--sets", "vall", "--root", root
    )
    assert "val: where is it? Give the folder above with --root, or val=PATH" in refused(
        "--sets", "val"
    )
    assert "--sets r: " in (text := refused("--sets", "r", "--root", root))
    assert "imagenet-r" in text
    assert "names val twice" in refused("--sets", "val,val", "--root", root)
    assert "names no set" in refused("--sets", ",", "--root", root)
    assert "write NAME or NAME=PATH" in refused("--sets", "a b=/x")
    assert "leave one out" in refused("--sets", "val", "--data", root / "val")
    assert "give both" in refused("--root", root, "--data", root / "val")
    assert "there is no such folder" in refused("--sets", "val", "--root", tmp_path / "none")
    none = f"val={tmp_path / 'none'}"
    assert f"distill: --sets {none}: there is no such file or folder" in refused("--sets", none)
    assert "give a number from 1 to 65536, or auto" in refused(
        "--sets", "val", "--root", root, "--batch-size", "many"
    )
    other = refused("--sets", f"a={root / 'ImageNet-Sketch'}", "--root", root)
    assert "which is none of the 200 of ImageNet-A: give the folder of ImageNet-A" in other

    names = tmp_path / "names"
    shutil.copytree(root / "val", names)
    for file in list(names.rglob("*.png")):
        file.rename(file.with_name(file.name.replace("ILSVRC2012_val_", "image")))
    assert (
        f"{PER_SET} of {PER_SET} images are not named as in ImageNet's validation set"
        in refused("--sets", f"real={names}")
    )
    twice = tmp_path / "twice"
    shutil.copytree(root / "val", twice)
    first, *_, second = sorted(twice.rglob("*.png"))
    shutil.copy(second, first.with_name(second.name))
    assert "is there twice" in refused("--sets", f"real={twice}")
    birds = tmp_path / "birds"
    for name in ("robin-red", "blackbird-black"):
        (birds / name).mkdir(parents=True)
        shutil.copy(first.with_name(second.name), birds / name / "1.png")
    assert "--sets birds=" in refused("--sets", f"birds={birds}")
    as_val = refused("--sets", f"val={birds}")
    assert "these are not the classes of ImageNet-1K validation" in as_val
    assert "give images of your own another name, such as mine=PATH" in as_val
    assert "names results of another set" in refused("--sets", f"imagenet={birds}")
    assert "names results of another set" in refused("--sets", f"a-clean={birds}")
    assert "is a folder: name a file" in refused("--sets", f"val={birds}", "--json", tmp_path)
    (tmp_path / "file").touch()
    in_file = tmp_path / "file/scores.json"
    assert "cannot be written" in refused("--sets", "val", "--root", root, "--json", in_file)
