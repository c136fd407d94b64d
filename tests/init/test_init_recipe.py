"""What distill init writes: for each layout, with and without a teacher, and what it refuses."""

import io
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import Cli
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm_loop import CLASSES, MODEL, SIZE

from distill.init.advice import advise, batch_size, num_epochs
from distill.init.page import Line, page
from distill.recipe import load_recipe
from distill.recipe.text import parse
from distill.training.plan import make_plan


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tiny_photos(root: Path, *names: str, count: int = 3) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (70, 50), (number, 9, 9)).save(root / name / f"{number}.png")
    return root


def written(cli: Cli, *arguments: Any) -> dict[str, Any]:
    outcome = cli("init", *arguments, "--student", "test_efficientnet", "--yes")
    assert outcome.code == 0, outcome.err
    file = Path(shlex.split(outcome.out.splitlines()[-2])[-1])
    return dict(yaml.safe_load(file.read_text()))


def test_a_root_with_splits_trains_on_one_and_evaluates_on_the_other(
    cli: Cli, tmp_path: Path
) -> None:
    root = tmp_path / "pets"
    for split in ("Train", "valid", "test"):
        tiny_photos(root / split, "cat", "dog", count=8)
    outcome = cli("init", root, "--yes", "--student", "test_efficientnet")
    recipe = load_recipe("pets.yaml")
    assert (recipe.data.train.path, recipe.data.eval.path, recipe.data.image_size) == (
        "Train",
        "valid",
        64,
    )  # type: ignore[union-attr]
    assert recipe.teacher is None
    assert "no teacher: the student learns only from labels" in outcome.out
    assert (
        f"test is not used in training: distill evaluate RUN --data {root / 'test'}" in outcome.out
    )
    plan = make_plan(recipe)
    assert (len(plan.stages[0].source), plan.classes) == (16, ("cat", "dog"))


def test_a_class_called_train_is_a_class(cli: Cli, tmp_path: Path) -> None:
    tree = written(cli, tiny_photos(tmp_path / "signs", "train", "tram", "bus", count=9))
    assert tree["data"]["train"] == {"kind": "image_folder", "path": "."}
    assert tree["data"]["eval"]["kind"] == "holdout"
    assert make_plan(load_recipe("signs.yaml")).classes == ("bus", "train", "tram")


def test_what_it_writes_fits_a_budget_of_an_epoch(cli: Cli, tmp_path: Path) -> None:
    written(cli, tiny_photos(tmp_path / "pets", "cat", "dog", count=8))
    for budget, warmup in (("1 epochs", "0.05 epochs"), ("150 epochs", "7.5 epochs")):
        recipe = load_recipe("pets.yaml", [f"train.budget={budget}"])
        assert str(recipe.students["student"].schedule.warmup) == warmup
        make_plan(recipe)


def test_a_recipe_that_cannot_be_written_is_an_error(cli: Cli, tmp_path: Path) -> None:
    folder = tiny_photos(tmp_path / "pets", "cat", "dog", count=8)
    flags = ("--yes", "--student", "test_efficientnet")
    outcome = cli("init", folder, *flags, "-o", "/proc/pets.yaml")
    assert outcome.code == 2
    assert "--output /proc/pets.yaml: cannot be written: No such file or dir" in outcome.err


def test_what_is_not_read_is_said(cli: Cli, tmp_path: Path) -> None:
    folder = tiny_photos(tmp_path / "pets", "cat", "dog", count=8)
    for name in ("cat/a.AVIF", "cat/b.avif", "dog/sub.heic", "dog/.hidden.heic", "loose.png"):
        (folder / name).write_bytes(b"x")
    (folder / "cat/broken.png").write_bytes(b"x")
    said = cli("init", folder, "--yes", "--student", "test_efficientnet").out
    assert "17 images in 2 classes" in said
    assert "not read as images: 2 .avif, 1 .heic, 1 outside the class folders" in said.replace(
        "1 outside the class folders, 1 .heic", "1 .heic, 1 outside the class folders"
    )
    assert f"{folder / 'cat/broken.png'}: no image of a kind that Pillow knows" in said


def test_a_train_folder_alone_holds_out_of_it(cli: Cli, tmp_path: Path) -> None:
    tiny_photos(tmp_path / "pets/train", "cat", "dog", count=8)
    tree = written(cli, tmp_path / "pets", "--holdout", 0.25)
    assert tree["data"]["train"]["path"] == "train"
    assert tree["data"]["eval"] == {"kind": "holdout", "fraction": 0.25}


def cats_and_dogs(count: int) -> Any:
    """Rows of a table, of a `datasets.Dataset`."""
    import datasets

    buffer = io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, "PNG")
    image = {"bytes": buffer.getvalue(), "path": "x.png"}
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    return datasets.Dataset.from_dict(
        {"image": [image] * count, "label": [0, 1] * (count // 2)}, features=features
    )


def test_a_table_is_read_as_one(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    cats_and_dogs(20).to_parquet(tmp_path / "table/all.parquet")
    tree = written(cli, tmp_path / "table")
    assert tree["data"]["train"] == {"kind": "parquet", "path": "."}
    assert make_plan(load_recipe("table.yaml")).classes == ("cat", "dog")


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_splits_of_tables_train_and_evaluate(kind: str, cli: Cli, tmp_path: Path) -> None:
    import datasets

    tables = {"train": cats_and_dogs(20), "validation": cats_and_dogs(6), "test": cats_and_dogs(8)}
    root = tmp_path / "pets"
    if kind == "saved":
        datasets.DatasetDict(tables).save_to_disk(root)
    else:
        root.mkdir()
        for split, table in tables.items():
            table.to_parquet(root / f"{split}-00000-of-00001.parquet")
    outcome = cli("init", root, "--student", "test_efficientnet", "--yes")
    assert outcome.code == 0, outcome.err
    assert (
        f"test is not used in training: distill evaluate RUN --data {root} --split test"
        in outcome.out
    )
    tree = yaml.safe_load(Path("pets.yaml").read_text())
    assert tree["data"]["train"] == {"kind": kind, "path": ".", "split": "train"}
    assert tree["data"]["eval"] == {"kind": kind, "path": ".", "split": "validation"}
    assert len(make_plan(load_recipe("pets.yaml")).stages[0].source) == 20


def test_all_models_get_the_image_size_of_the_teacher(
    cli: Cli, photos: Path, teacher: Path
) -> None:
    flags = ("--teacher", teacher, "--teacher-model", MODEL, "--teacher-image-size", SIZE)
    tree = written(cli, photos, *flags)
    assert tree["teacher"] == {"model": MODEL, "weights": str(teacher), "image_size": SIZE}
    assert tree["data"]["image_size"] == SIZE
    assert tree["data"]["eval_view"] == {
        "crop_fraction": 0.95,
        "crop_mode": "center",
        "interpolation": "bilinear",
    }
    assert tree["student"]["objective"].keys() == {"hard", "soft"}


def test_a_config_beside_the_weights_says_model_and_size(
    cli: Cli, photos: Path, teacher: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "export/weights.pth"
    weights.parent.mkdir()
    weights.symlink_to(teacher)
    pretrained = {
        "input_size": [3, 80, 80],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    config = {
        "architecture": MODEL,
        "num_classes": 6,
        "label_names": list(CLASSES),
        "pretrained_cfg": pretrained,
    }
    (tmp_path / "export/config.json").write_text(json.dumps(config))
    outcome = cli("init", photos, "--teacher", weights, "--student", "test_efficientnet", "--yes")
    assert outcome.code == 0, outcome.err
    assert "ASSUMED" not in outcome.out
    recipe = load_recipe("photos.yaml")
    assert (recipe.data.image_size, recipe.data.eval_view.crop_mode) == (80, "squash")


def test_a_class_list_gives_the_order_of_the_teacher(
    cli: Cli, tmp_path: Path, teacher: Path
) -> None:
    """Six folders with two usual orders; the teacher's is neither of them."""
    names = ("a10", "a2", "B", "c", "d", "e")
    photos, classes = tiny_photos(tmp_path / "photos", *names), tmp_path / "classes.txt"
    flags = ("--teacher", teacher, "--teacher-model", MODEL, "--teacher-image-size", SIZE, "--yes")
    refused = cli("init", photos, *flags)
    assert refused.code == 2
    assert "--teacher-classes" in refused.err
    classes.write_text("\n".join(reversed(names)))
    tree = written(cli, photos, *flags[:-1], "--teacher-classes", "classes.txt")
    assert tree["teacher"]["classes"] == tree["data"]["train"]["classes"] == str(classes)
    recipe = load_recipe(tmp_path / "photos.yaml")
    assert make_plan(recipe).classes == tuple(reversed(names))


def test_nothing_is_overwritten_and_a_run_is_not_joined(cli: Cli, tmp_path: Path) -> None:
    folder = tiny_photos(tmp_path / "pets", "cat", "dog", count=8)
    assert written(cli, folder)["name"] == "pets"
    (tmp_path / "runs/pets").mkdir(parents=True)
    before = Path("pets.yaml").read_text()
    refused = cli("init", folder, "--yes", "--student", "test_efficientnet")
    assert (refused.code, "exists already" in refused.err) == (2, True)
    assert Path("pets.yaml").read_text() == before
    assert written(cli, folder, "--force")["name"] == "pets-2"


def test_it_asks_on_a_terminal(
    cli: Cli, photos: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers = io.StringIO(
        f"{photos}\n{teacher}\n{MODEL}\n{SIZE}\n80\ntest_efficientnet\nmine.yaml\n"
    )
    monkeypatch.setattr(answers, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", answers)
    outcome = cli("init")
    assert outcome.code == 0, outcome.err
    recipe = load_recipe("mine.yaml")
    assert recipe.teacher is not None
    assert (recipe.teacher.image_size, recipe.data.image_size) == (SIZE, 80)
    assert recipe.students["student"].model == "test_efficientnet"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "give --teacher-model"),
        (("--teacher-model", MODEL), "give --teacher-image-size"),
        (("--teacher-model", "resnett18", "--teacher-image-size", SIZE), "did you mean 'resnet18'"),
        (("--teacher-model", "test_vit", "--teacher-image-size", SIZE), "not weights of"),
    ],
)
def test_a_file_of_weights_needs_model_and_size(
    cli: Cli, photos: Path, teacher: Path, flags: tuple[Any, ...], message: str
) -> None:
    outcome = cli("init", photos, "--teacher", teacher, *flags, "--yes")
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())
    assert not Path("photos.yaml").exists()


def test_what_cannot_be_trained_on_is_refused(cli: Cli, tmp_path: Path, photos: Path) -> None:
    (tmp_path / "empty").mkdir()
    single = tiny_photos(tmp_path / "single", "cat")
    for folder, message in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "empty", "no class folders"),
        (single, "class"),
        (single / "cat/0.png", "is a file"),
    ):
        outcome = cli("init", folder, "--yes")
        assert (outcome.code, message in outcome.err) == (2, True), outcome.err
    outcome = cli("init", photos, "--teacher", "resnet81", "--yes")
    assert (outcome.code, "did you mean 'resnet18'" in " ".join(outcome.err.split())) == (2, True)
    outcome = cli("init", photos, "--student", "test_efficientnet", "--holdout", 1.5, "--yes")
    assert (outcome.code, "--holdout" in outcome.err) == (2, True)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    num_images=st.integers(2, 2_000_000),
    pretrained=st.booleans(),
    epochs=st.none() | st.integers(1, 400),
    has_teacher=st.booleans(),
)
def test_advice_fits_any_number_of_images(
    num_images: int, pretrained: bool, epochs: int | None, has_teacher: bool
) -> None:
    advice = advise(
        num_images=num_images,
        image_size=96,
        has_teacher=has_teacher,
        pretrained=pretrained,
        epochs=epochs,
        has_gpu=False,
        has_bf16=False,
    )
    batch = advice.values["train.batch_size_global"]
    assert 2 <= batch <= num_images
    assert batch % 2 == 0
    lines = [Line(key, value, advice.reasons.get(key, "")) for key, value in advice.values.items()]
    text = page(["head"], lines)
    assert max(map(len, text.splitlines())) <= 100
    student = yaml.safe_load(text)["student"]
    assert ("soft" in student["objective"]) is has_teacher


def test_more_images_mean_larger_batches_and_fewer_epochs() -> None:
    sizes = [100, 500, 5_000, 50_000, 1_281_167]
    batches, epochs = [batch_size(n) for n in sizes], [num_epochs(n, False) for n in sizes]
    assert batches == sorted(batches)
    assert epochs == sorted(epochs, reverse=True)


_PRINTED = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=40)


@settings(max_examples=60, deadline=None, derandomize=True)
@example(value="1e3", why="")
@example(value="None", why="")
@example(value="010", why="# a: b")
@given(
    value=_PRINTED | st.floats(allow_nan=False, allow_infinity=False) | st.none(),
    why=st.text(max_size=150),
)
def test_a_page_reads_back_whatever_names_it_holds(value: Any, why: str) -> None:
    assert parse(page([why], [Line("a.b", value, why), Line("a.c", 1)])) == {
        "a": {"b": value, "c": 1}
    }


@pytest.mark.parametrize("name", ["1e3", "None", "0o7", "2024-01-01", "[a] {b}", "über uns"])
def test_a_folder_of_any_name(name: str, cli: Cli, tmp_path: Path) -> None:
    tree = written(cli, tiny_photos(tmp_path / name, "cat", "dog"), "-o", f"{name}.yaml")
    recipe = load_recipe(f"{name}.yaml")
    assert recipe.name == tree["name"]
    assert recipe.data.root == str(tmp_path / name)
    assert len(make_plan(recipe).stages[0].source) == 4


def test_class_names_of_the_fixture(photos: Path) -> None:
    assert sorted(path.name for path in photos.iterdir()) == list(CLASSES)
