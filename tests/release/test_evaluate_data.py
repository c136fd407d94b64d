"""The images that `distill evaluate` takes: class lists, kinds of data, folders of numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from command import Cli
from PIL import Image
from safetensors.torch import save_file
from scored import scores
from tiny import IMAGE_SIZE

from distill.data.fashion import CLASSES
from distill.data.guess import guess_source
from distill.errors import InputError
from distill.models import cifar as cifar  # registers its models
from distill.release.images import title_of

# ---- class lists ---------------------------------------------------------------------------------


@pytest.fixture
def clothes(tmp_path: Path) -> Path:
    """An image folder with Fashion-MNIST's classes, an image each. One class has a slash, so the
    folders are numbered.
    """
    for index in range(len(CLASSES)):
        (tmp_path / "clothes" / f"{index}").mkdir(parents=True)
        Image.new("RGB", (28, 28), (20 * index, 0, 0)).save(
            tmp_path / "clothes" / f"{index}" / "one.png"
        )
    return tmp_path / "clothes"


def test_folders_of_numbers_are_class_numbers_and_others_by_other_names_are_refused(
    clothes: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scores(tiny_run, data=str(clothes))["alone"].num_samples == 10
    text = capsys.readouterr().out
    assert (
        "classes of alone: class names are numbers and taken for indices of the logits: 0 = 0,"
        " 1 = 1" in text
    )
    (clothes / "0").rename(clothes / "shirt")
    with pytest.raises(
        InputError,
        match=r"alone's classes are not the data's: .*class 0 is 'T-shirt/top' for alone and '1'",
    ):
        scores(tiny_run, data=str(clothes))


def test_classes_in_another_order_are_refused(
    clothes: Path, tiny_run: Path, tmp_path: Path
) -> None:
    names = [name.replace("/", "-") for name in CLASSES]
    for index, name in enumerate(names):
        (clothes / f"{index}").rename(clothes / name)
    (tmp_path / "names.txt").write_text("\n".join(names[::-1]))
    with pytest.raises(InputError, match=r"kd's classes are not the data's: .*class 0 is"):
        scores(tiny_run / "best/kd", data=str(clothes), classes=str(tmp_path / "names.txt"))


def test_a_file_knows_its_number_of_classes_and_no_names(
    clothes: Path, tiny_run: Path, tmp_path: Path
) -> None:
    """Fine-tuned weights: ten classes, where timm's cifar_resnet8 has a hundred."""
    weights = tmp_path / "model.safetensors"
    weights.write_bytes((tiny_run / "best/kd/model.safetensors").read_bytes())
    assert (
        scores(weights, model="cifar_resnet8", data=str(clothes), image_size=IMAGE_SIZE)[
            "model"
        ].num_samples
        == 10
    )
    (clothes / "0").rename(clothes / "more")
    (clothes / "more" / "one.png").rename(clothes / "1" / "two.png")
    (clothes / "more").rmdir()
    (clothes / "9").rename(
        clothes / "nine"
    )  # no longer numbers: which logits the nine are is unknown
    with pytest.raises(InputError, match=r"model's head has 10 classes, the data 9"):
        scores(weights, model="cifar_resnet8", data=str(clothes))


def test_a_folder_with_some_of_the_classes_is_evaluated_by_name(
    tmp_path: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "some/Coat").mkdir(parents=True)
    Image.new("RGB", (28, 28)).save(tmp_path / "some/Coat/one.png")
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    by_name = scores(tiny_run, data=str(tmp_path / "some"))
    assert "classes of alone: 1 of 10 classes, matched by name: Coat = 4" in capsys.readouterr().out
    assert by_name == scores(
        tiny_run, data=str(tmp_path / "some"), classes=str(tmp_path / "names.txt")
    )
    (tmp_path / "some/Coat").rename(tmp_path / "some/Gown")
    with pytest.raises(
        InputError,
        match=r"alone's head has 10 classes, the data 1: .*class 'Gown' is none of the model's",
    ):
        scores(tiny_run, data=str(tmp_path / "some"))


# ---- what `--data` may name ----------------------------------------------------------------------


def test_the_kind_of_data_is_seen_from_what_lies_there(tmp_path: Path) -> None:
    for name in (
        "saved/state.json",
        "splits/dataset_dict.json",
        "arrow/a.arrow",
        "tables/a.parquet",
        "one.parquet",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx/t10k-images-idx3-ubyte.gz").touch()
    (tmp_path / "photos").mkdir()
    kinds = {
        name: guess_source(str(tmp_path / name), None).kind
        for name in (
            "saved",
            "splits",
            "arrow",
            "tables",
            "one.parquet",
            "idx",
            "photos",
            "tables/*.parquet",
        )
    }
    assert kinds == {
        "saved": "saved",
        "splits": "saved",
        "arrow": "arrow",
        "tables": "parquet",
        "one.parquet": "parquet",
        "idx": "fashion_mnist",
        "photos": "image_folder",
        "tables/*.parquet": "parquet",
    }
    assert guess_source("fashion_mnist", None).kind == "fashion_mnist"
    assert (
        guess_source(str(tmp_path / "splits"), None).split is None
    )  # which of several is asked when it is opened


@pytest.mark.parametrize("container", ["tar", "parquet"])
def test_a_run_is_evaluated_on_shards(
    container: str, tiny_run: Path, tmp_path: Path, cli: Cli
) -> None:
    folder = tiny_run.parent / "eval"
    ask = ("--container", container, "--samples-per-shard", 20, "--workers", 0, "--split", "test")
    assert cli("data", "shard", folder, tmp_path / "shards", *ask).code == 0
    on_shards, on_files = (
        scores(tiny_run, data=str(tmp_path / "shards")),
        scores(tiny_run, data=str(folder)),
    )
    for name, score in on_files.items():
        assert (on_shards[name].top1, on_shards[name].num_samples) == (
            score.top1,
            score.num_samples,
        )
        assert on_shards[name].loss == pytest.approx(score.loss, rel=1e-5)


# ---- folders named by class numbers --------------------------------------------------------------


@pytest.mark.parametrize("folders", [range(12), (3, 10, 7)], ids=["all", "some"])
def test_folders_of_numbers_score_as_the_numbers_say(
    folders: Any, tmp_path: Path, capsys: Any
) -> None:
    """Images of one colour each, which resizing and cropping leave alone, in the folder of the
    model's own answer or of another class.
    """
    torch.manual_seed(0)
    net = timm.create_model("cifar_resnet8", num_classes=12).eval()
    torch.nn.init.normal_(net.get_classifier().weight, std=30.0)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    mean, std = (torch.tensor(net.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    hits, count = 0, 0
    for number, colour in enumerate(np.random.default_rng(0).integers(0, 256, (60, 3)).tolist()):
        pixels = torch.tensor(colour).view(3, 1, 1).expand(3, 32, 32) / 255
        with torch.no_grad():
            answer = int(net(((pixels - mean) / std)[None]).argmax())
        label = answer if answer in folders and number % 4 else folders[number // 4 % len(folders)]
        (tmp_path / "photos" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), tuple(colour)).save(
            tmp_path / "photos" / str(label) / f"{number}.png"
        )
        hits, count = hits + (answer == label), count + 1
    result = scores(
        tmp_path / "net.safetensors",
        model="cifar_resnet8",
        data=str(tmp_path / "photos"),
        image_size=32,
    )["net"]
    assert len(list((tmp_path / "photos").iterdir())) == len(folders)
    assert 10 < 100 * hits / count < 90
    assert (result.top1, result.num_samples) == (pytest.approx(100 * hits / count), count)
    assert "class names are numbers and taken for indices of the logits" in capsys.readouterr().out


# ---- the name of the images ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "title"),
    [
        ("/home/me/of a customer/val", "val"),
        ("val/", "val"),
        ("https://me:word@host.org/secret/{00..07}.tar?key=abc", "{00..07}.tar"),
        ("hf://datasets/alice/cats", "hf://datasets/alice/cats"),
        ("fashion_mnist", "fashion_mnist"),
        (".", Path.cwd().name),
    ],
)
def test_the_title_of_images_has_no_folders(data: str, title: str) -> None:
    assert title_of(data) == title


def test_the_json_of_a_run_names_its_images_without_folders(tiny_run: Path, tmp_path: Path) -> None:
    scores(tiny_run, student="kd", json=tmp_path / "scores.json")
    (of_set,) = json.loads((tmp_path / "scores.json").read_text())["sets"].values()
    assert of_set["title"] == "evaluation images of the run, again"
    assert of_set["data"] == str(tiny_run)


# ---- the teacher ---------------------------------------------------------------------------------


def test_a_teacher_that_does_not_fit_is_named(cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
    def refused(*options: object) -> str:
        outcome = cli("evaluate", tiny_run, "--student", "kd", *options, "--num-workers", 0)
        assert outcome.code == 2
        return " ".join(outcome.err.split())

    none = tmp_path / "none"
    assert f"distill: --teacher: {none}: there is no such run" in refused("--teacher", none)
    file = tmp_path / "teacher.pth"
    torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), file)
    assert "give --teacher-model and a timm name" in refused("--teacher", file)
    other = refused("--teacher", file, "--teacher-model", "test_resnet")
    assert f"--teacher {file}: has other classes than kd" in other
