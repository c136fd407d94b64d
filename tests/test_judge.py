"""Judging finished weights: found wherever they lie, and scored as timm and a few lines of counting
score them.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from command import Cli
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import IMAGE_SIZE, NUM_JUDGED, checkpoint
from torchvision.transforms import v2

from distill.data.fashion import CLASSES, read_idx
from distill.data.guess import guess_source
from distill.errors import InputError
from distill.evaluation.accuracy import Accuracy
from distill.models import cifar as cifar  # registers its models
from distill.models.export_format import read_record
from distill.release import evaluate_models, find_models
from distill.release.find import which_weights

STUDENTS = ("alone", "kd", "vit")


def scores(path: Path, **options: Any) -> dict[str, Accuracy]:
    return evaluate_models(path, **{"num_workers": 0, **options})


def judged_images(run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The evaluation set by hand: pixels [N, 3, S, S] in [0, 1] and labels [N]."""
    folder = run.parent / "judged"
    view = v2.Resize(IMAGE_SIZE, v2.InterpolationMode.BICUBIC)
    images = [
        np.asarray(view(Image.fromarray(i).convert("RGB")))
        for i in read_idx(folder / "t10k-images-idx3-ubyte", 3)
    ]
    labels = torch.from_numpy(read_idx(folder / "t10k-labels-idx1-ubyte", 1).astype(np.int64))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255, labels


def by_hand(net: torch.nn.Module, run: Path) -> tuple[float, float, float]:
    """(top-1 %, top-5 %, cross-entropy) of a timm model, counted image by image."""
    images, labels = judged_images(run)
    config = net.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        logits = [net.eval()(((image - mean) / std)[None])[0].double() for image in images]
    places = [sorted(range(10), key=row.tolist().__getitem__, reverse=True) for row in logits]
    first = sum(place[0] == label for place, label in zip(places, labels, strict=True))
    five = sum(label in place[:5] for place, label in zip(places, labels.tolist(), strict=True))
    loss = sum(-math.log(row.softmax(0)[label]) for row, label in zip(logits, labels, strict=True))
    return 100 * int(first) / len(labels), 100 * five / len(labels), loss / len(labels)


def same(result: Accuracy, expected: tuple[float, float, float]) -> None:
    assert (result.top1, result.top5) == pytest.approx(expected[:2], abs=1e-9)
    assert result.loss == pytest.approx(expected[2], abs=1e-5)
    assert result.num_samples == NUM_JUDGED


# ---- every place that holds weights --------------------------------------------------------------


def test_a_run_is_judged_by_its_best_weights(tiny_run: Path) -> None:
    results = scores(tiny_run)
    assert list(results) == [*STUDENTS, "teacher"]
    for name in STUDENTS:
        same(
            results[name],
            by_hand(
                timm.create_model(f"local-dir:{tiny_run}/best/{name}", pretrained=True), tiny_run
            ),
        )
        record = json.loads((tiny_run / "best" / name / "distill.json").read_text())
        assert results[name].top1 == pytest.approx(record["top1"], abs=1e-9)
        assert results[name].agreement is not None


def test_raw_weights_and_averages_are_those_of_the_newest_checkpoint(tiny_run: Path) -> None:
    report = json.loads((tiny_run / "report.json").read_text())["students"]
    raw, average = scores(tiny_run, weights="raw"), scores(tiny_run, weights="ema-0.5")
    for name in STUDENTS:
        for result, said in (
            (raw, report[name]["last"]),
            (average, report[name]["averages"]["ema-0.5"]),
        ):
            for key, value in said.items():
                assert getattr(result[name], key) == pytest.approx(value, abs=1e-6), (name, key)
    assert raw["kd"].loss != average["kd"].loss
    net = timm.create_model("cifar_resnet8", num_classes=10)
    net.load_state_dict(load_file(checkpoint(tiny_run) / "kd.model.safetensors"))
    same(raw["kd"], by_hand(net, tiny_run))
    shadow = load_file(checkpoint(tiny_run) / "kd.ema-0.5.safetensors")
    net.load_state_dict({key: value for key, value in shadow.items() if not key.startswith("ema/")})
    same(average["kd"], by_hand(net, tiny_run))


def test_the_word_of_earlier_versions_for_raw_weights_is_still_read(
    tiny_run: Path, tmp_path: Path
) -> None:
    assert scores(tiny_run, weights="last", student="kd") == scores(
        tiny_run, weights="raw", student="kd"
    )
    (found,) = find_models(tiny_run, model=None, student="kd", weights="last", image_size=None)
    assert found.record["weights"] == "raw"
    old = tmp_path / "old"
    shutil.copytree((tiny_run / "best/kd").resolve(), old)
    record = json.loads((old / "distill.json").read_text())
    (old / "distill.json").write_text(json.dumps({**record, "weights": "last"}))
    assert read_record(old) == {**record, "weights": "raw"}
    (old / "distill.json").write_text(json.dumps({**record, "weights": "ema-0.5"}))
    assert read_record(old)["weights"] == "ema-0.5"


def test_weights_are_called_best_only_where_a_run_kept_them_as_the_best(tiny_run: Path) -> None:
    report = json.loads((tiny_run / "report.json").read_text())["students"]["kd"]["best"]
    newest = checkpoint(tiny_run)

    def words(path: Path, weights: str) -> str:
        (found,) = find_models(path, model=None, student="kd", weights=weights, image_size=None)
        return which_weights(found)

    assert words(tiny_run, "best") == f"best weights ({report['weights']}, step {report['step']})"
    step = int(newest.name.removeprefix("step-"))
    assert words(tiny_run, "raw") == words(newest, "best") == f"raw weights of step {step}"
    assert words(tiny_run, "ema-0.5") == f"ema-0.5 weights of step {step}"


def test_a_checkpoint_is_judged_by_its_own_weights(tiny_run: Path) -> None:
    older, newest = sorted((tiny_run / "checkpoints").iterdir())
    assert scores(newest) == scores(tiny_run, weights="raw")
    assert scores(older)["alone"].loss != scores(newest)["alone"].loss
    (found,) = find_models(older, model=None, student="kd", weights="ema-0.5", image_size=None)
    assert found.record["step"] == 3
    assert found.record["weights"] == "ema-0.5"


def test_one_student_of_a_run(tiny_run: Path) -> None:
    assert list(scores(tiny_run, student="kd")) == ["kd", "teacher"]
    assert scores(tiny_run, student="kd")["kd"] == scores(tiny_run)["kd"]


@pytest.mark.parametrize("name", STUDENTS)
def test_an_export_is_judged_as_in_its_run(name: str, tiny_run: Path) -> None:
    results = scores(tiny_run / "best" / name, data=str(tiny_run.parent / "judged"))
    assert list(results) == [name]
    expected = scores(tiny_run)[name]
    assert (results[name].top1, results[name].top5, results[name].loss) == (
        expected.top1,
        expected.top5,
        expected.loss,
    )
    assert results[name].agreement is None, "without the run nobody knows its teacher"


def test_an_export_may_hold_a_pickle_as_a_teacher_may(tiny_run: Path, tmp_path: Path) -> None:
    export = tiny_run / "best" / "alone"
    shutil.copy(export / "config.json", tmp_path)
    weights = load_file(export / "model.safetensors")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    (found,) = find_models(tmp_path, model=None, student=None, weights="best", image_size=None)
    assert (
        found.view
        == find_models(export, model=None, student=None, weights="best", image_size=None)[0].view
    )
    assert all(
        torch.equal(found.net.state_dict()[name], tensor) for name, tensor in weights.items()
    )


@pytest.mark.parametrize("kind", ["safetensors", "pth", "averaged"])
def test_a_file_of_weights_is_judged(kind: str, tiny_run: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=1000)
    images, _ = judged_images(tiny_run)
    folder = tmp_path / "photos"
    for index, synset in enumerate(("n01440764", "n01443537", "n01484850")):
        (folder / synset).mkdir(parents=True)
        pixels = (images[index] * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).resize((200, 170)).save(folder / synset / "one.png")
    weights = net.state_dict()
    if kind == "safetensors":
        save_file(weights, tmp_path / "net.safetensors")
    elif kind == "pth":
        torch.save(
            {"state_dict": {f"module.{key}": value for key, value in weights.items()}},
            tmp_path / "net.pth",
        )
    else:
        other = {key: torch.zeros_like(value) for key, value in weights.items()}
        torch.save({"state_dict": other, "state_dict_ema": weights}, tmp_path / "net.pth")
    file = tmp_path / ("net.safetensors" if kind == "safetensors" else "net.pth")
    results = scores(file, model="test_resnet", data=str(folder), classes="imagenet-1k")
    view = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
    pictures = torch.stack(
        [view(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*/*.png"))]
    )
    with torch.no_grad():
        logits = net.eval()(pictures)
    assert results["net"].num_samples == 3
    assert results["net"].loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, torch.arange(3))), abs=1e-4
    )
    assert results["net"].top1 == pytest.approx(
        100 * float((logits.argmax(1) == torch.arange(3)).double().mean())
    )


# ---- what must not change a score ----------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 1}, {"batch_size": 7}, {"batch_size": NUM_JUDGED}, {"num_workers": 2}],
)
def test_batch_size_and_workers_change_no_score(options: dict[str, int], tiny_run: Path) -> None:
    expected, results = scores(tiny_run), scores(tiny_run, **options)
    for name, result in results.items():
        for key, value in expected[name].as_dict().items():
            assert getattr(result, key) == pytest.approx(value, abs=1e-5), (name, key)


def test_precision_and_image_size_are_used(tiny_run: Path) -> None:
    plain = scores(tiny_run, student="kd")["kd"]
    assert scores(tiny_run, student="kd", precision="bf16")["kd"].loss != plain.loss
    larger = scores(tiny_run, student="kd", image_size=24)["kd"]
    assert larger.loss != plain.loss
    assert larger.num_samples == NUM_JUDGED
    raw = scores(tiny_run, student="vit", weights="raw", image_size=24)["vit"]
    assert raw.num_samples == NUM_JUDGED


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
    said = capsys.readouterr().out
    assert (
        "classes of alone: class names are numbers and taken for indices of the logits: 0 = 0,"
        " 1 = 1" in said
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
    )  # no longer numbers: which logits the nine are cannot be told
    with pytest.raises(InputError, match=r"model's head has 10 classes, the data 9"):
        scores(weights, model="cifar_resnet8", data=str(clothes))


def test_a_folder_with_some_of_the_classes_is_judged_by_name(
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
def test_a_run_is_judged_on_shards(
    container: str, tiny_run: Path, tmp_path: Path, cli: Cli
) -> None:
    folder = tiny_run.parent / "judged"
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
