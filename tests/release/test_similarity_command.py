"""`distill similarity`: values by hand, the files it writes, and what it refuses."""

import csv
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import timm
import torch
from cka import by_definition
from command import Cli, Outcome
from fake_hub import FakeHub
from PIL import Image
from safetensors.torch import load_file, save_file
from scored import eval_images
from timm.models import save_for_hf
from tiny import NUM_EVAL, checkpoint

import distill
from distill.data.decode import read_image
from distill.data.fashion import EmbeddedFashionMnist, open_fashion_mnist
from distill.data.order.sampled import random_order
from distill.errors import InputError
from distill.models import cifar as cifar  # registers its models
from distill.release.similarity.compare import FILES

Compare = Callable[..., tuple[Outcome, dict[str, Any]]]


@pytest.fixture
def compare(cli: Cli, tmp_path: Path) -> Compare:
    """Run the command and read its JSON."""

    def run(*arguments: object) -> tuple[Outcome, dict[str, Any]]:
        output = tmp_path / "out"
        done = cli("similarity", *arguments, "--num-workers", 0, "-o", output)
        assert done.code == 0, done.err
        assert {each.name for each in output.iterdir()} == {*FILES}
        return done, json.loads((output / "similarity.json").read_text())

    return run


def values(result: dict[str, Any], pair: int = 0) -> np.ndarray:
    return np.array(result["pairs"][pair]["cka"], dtype=float)


def batches_by_hand(model: str, run: Path, size: int) -> list[list[np.ndarray]]:
    """Return for each layer of a timm model the float64 features [n, d] of each minibatch of a
    run's images.
    """
    images, _ = eval_images(run)
    net = timm.create_model(model, pretrained=True).eval()
    mean, std = (torch.tensor(net.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    source = open_fashion_mnist("test", run.parent / "eval", "data")
    order = random_order(source, len(images), 0)
    with torch.no_grad():
        found = [
            net.forward_intermediates((images[part] - mean) / std, intermediates_only=True)
            for part in np.split(order, range(size, len(order), size))
        ]
    return [[maps.flatten(1).double().numpy() for maps in of] for of in zip(*found, strict=True)]


# ---- values and files ----------------------------------------------------------------------------


def test_a_run_and_an_export_by_hand(compare: Compare, tiny_run: Path) -> None:
    """A convnet and a transformer on the run's own 53 images, in minibatches of 20, 20 and 13."""
    a, b = tiny_run / "best/kd", tiny_run / "best/vit"
    done, result = compare(tiny_run, b, "--student-a", "kd", "--batch-size", 20)
    first, second = (batches_by_hand(f"local-dir:{path}", tiny_run, 20) for path in (a, b))
    expected = [[by_definition(one, two) for two in second] for one in first]
    np.testing.assert_allclose(values(result), expected, atol=1e-5)
    assert values(result).shape == (4, 6)
    assert result["num_images"] == NUM_EVAL
    assert list(result["models"]) == ["kd", "vit"]
    names = [layer["name"] for layer in result["models"]["kd"]["layers"]]
    assert names == ["act1", "layer1", "layer2", "layer3"]
    best = int(np.argmax(expected[3]))
    row = next(line for line in done.out.splitlines() if line.startswith("3  layer3"))
    assert row.split()[2:] == [str(best), f"blocks.{best}", f"{expected[3][best]:.3f}"]


def test_the_csv_equals_the_json_and_the_pictures_are_pictures(
    compare: Compare, tiny_run: Path, tmp_path: Path
) -> None:
    _, result = compare(
        *(tiny_run, tiny_run / "best/vit", tiny_run / "best/kd"),
        *("--student-a", "kd", "--layers-a", "layer?.*,act1", "--layers-b", "0,-1"),
    )
    with (tmp_path / "out/similarity.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [
        {
            "a": pair["a"],
            "index_a": str(one["index"]),
            "layer_a": one["name"],
            "b": pair["b"],
            "index_b": str(other["index"]),
            "layer_b": other["name"],
            "cka": repr(pair["cka"][i][j]),
        }
        for pair in result["pairs"]
        for i, one in enumerate(result["models"][pair["a"]]["layers"])
        for j, other in enumerate(result["models"][pair["b"]]["layers"])
    ]
    assert rows == expected
    assert len(rows) == 4 * 2 + 4 * 2
    assert [row["index_b"] for row in rows[:2]] == ["0", "5"]
    with Image.open(tmp_path / "out/similarity.png") as picture:
        assert picture.info["Software"] == "distill similarity"
        assert picture.width > picture.height > 200
    root = ElementTree.parse(tmp_path / "out/similarity.svg").getroot()
    texts = {"".join(each.itertext()).strip() for each in root.iter() if each.tag.endswith("text")}
    assert {"CKA", "vit", "0", "5"} <= texts
    assert any(text.startswith("…") and text.endswith("/best/kd") for text in texts)


def test_a_model_with_itself(compare: Compare, tiny_run: Path) -> None:
    export = tiny_run / "best/vit"
    _, result = compare(export, export, "--data", "fashion_mnist", "--images", 40)
    found = values(result)
    np.testing.assert_allclose(np.diag(found), 1, atol=1e-12)
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    assert list(result["models"]) == ["vit"]


def test_a_model_of_timm_sees_its_own_view(
    compare: Compare, tiny_run: Path, hub: FakeHub, tmp_path: Path
) -> None:
    """Its weights come from the Hub; its images have 160 pixels, and those of the export 16."""
    torch.manual_seed(0)
    net = timm.create_model("test_vit.r160_in1k", pretrained=False)
    save_for_hf(net, str(tmp_path / "weights"), safe_serialization=True)
    files = {path.name: path.read_bytes() for path in (tmp_path / "weights").iterdir()}
    hub.repository("timm/test_vit.r160_in1k", files)
    pair = (tiny_run / "best/kd", "test_vit.r160_in1k", "--data", "fashion_mnist", "--images", 12)
    done, result = compare(*pair)
    assert result["models"]["test_vit.r160_in1k"]["layers"][0]["shape"] == [64, 10, 10]
    assert "test_vit.r160_in1k sees 160x160 px" in done.out
    assert "kd sees 16x16 px" in done.out
    assert values(result).shape == (4, 6)
    _, smaller = compare(*pair, "--image-size-b", 96)
    assert smaller["models"]["test_vit.r160_in1k"]["layers"][0]["shape"] == [64, 6, 6]


def test_weights_of_a_checkpoint_and_of_a_file(
    compare: Compare, tiny_run: Path, tmp_path: Path
) -> None:
    """Two with the same name are called by their paths."""
    raw = tmp_path / "kd.safetensors"
    shutil.copy(checkpoint(tiny_run) / "kd.model.safetensors", raw)
    options = ("--student-a", "kd", "--model-b", "cifar_resnet8", "--image-size-b", 16)
    images = ("--data", "fashion_mnist:test", "--images", 60)
    done, result = compare(checkpoint(tiny_run), raw, *options, *images)
    assert "warning" not in done.out
    assert list(result["models"]) == [str(checkpoint(tiny_run)), str(raw)]
    np.testing.assert_allclose(np.diag(values(result)), 1, atol=0.2)
    done, _ = compare(checkpoint(tiny_run), raw, *options[:4], *images)
    assert "32 px is timm's size of the model: give --image-size-b if it is another" in done.out


@pytest.fixture
def dead_layer(tiny_run: Path, tmp_path: Path) -> Path:
    """An export whose last layer gives 0 for each image."""
    folder = tmp_path / "dead"
    shutil.copytree((tiny_run / "best/kd").resolve(), folder)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if re.fullmatch(r"layer3\..*(bn\d|downsample\.1)\.(weight|bias)", name):
            weights[name] = torch.zeros_like(weights[name])
    save_file(weights, folder / "model.safetensors")
    return folder


def test_a_layer_that_cannot_be_measured(
    compare: Compare, tiny_run: Path, dead_layer: Path, tmp_path: Path
) -> None:
    done, result = compare(
        *(dead_layer, tiny_run / "best/kd", "--data", "fashion_mnist", "--images", 40)
    )
    assert result["pairs"][0]["cka"][3] == [None] * 4
    assert not np.isnan(values(result)[:3]).any()
    assert "not measurable: layer3 of dead: its features are the same for all images" in done.out
    assert re.search(r"^3  layer3 +not measurable$", done.out, re.MULTILINE)
    rows = (tmp_path / "out/similarity.csv").read_text().splitlines()
    assert rows[-1] == "dead,3,layer3,kd,3,layer3,"
    with Image.open(tmp_path / "out/similarity.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int).reshape(-1, 3)
    greys = (np.ptp(pixels, axis=1) == 0) & (abs(pixels[:, 0] - round(0.85 * 255)) < 2)
    assert greys.sum() > 1000, "cells without a value are grey"


def test_a_last_minibatch_below_four_images_is_left_out(compare: Compare, tiny_run: Path) -> None:
    pair = (tiny_run / "best/kd", tiny_run / "best/vit", "--data", "fashion_mnist")
    done, result = compare(*pair, "--images", 43, "--batch-size", 20)
    assert "left out: 3 images of minibatches with fewer than 4" in done.out
    assert (result["num_images"], result["num_left_out"]) == (40, 3)
    done, without = compare(*pair, "--images", 40, "--batch-size", 20)
    assert "left out" not in done.out
    np.testing.assert_array_equal(values(result), values(without))


def test_unreadable_images_stop_or_are_skipped(
    compare: Compare, cli: Cli, tiny_run: Path, tmp_path: Path
) -> None:
    source = EmbeddedFashionMnist("test")
    for i in range(12):
        folder = tmp_path / "photos" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        read_image(source, i).save(folder / f"{i}.png")
    (tmp_path / "photos/a/2.png").write_bytes(b"no image")
    pair = (tiny_run / "best/kd", tiny_run / "best/vit", "--data", tmp_path / "photos")
    refused = cli("similarity", *pair, "-o", tmp_path / "out", "--num-workers", 0)
    assert refused.code == 2
    assert "2.png: unreadable image" in refused.err
    assert "--unreadable skip" in refused.err
    done, result = compare(*pair, "--unreadable", "skip")
    assert (result["num_images"], result["num_skipped"]) == (11, 1)
    assert "1 unreadable images skipped" in done.out


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close(compare: Compare, tiny_run: Path, precision: str) -> None:
    pair = (tiny_run / "best/kd", tiny_run / "best/vit", "--data", "fashion_mnist", "--images", 40)
    _, exact = compare(*pair)
    _, half = compare(*pair, "--precision", precision)
    assert half["precision"] == precision
    assert 0 < np.abs(values(half) - values(exact)).max() < 0.02
    assert math.isfinite(values(half).sum())


def test_from_python(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of several B, each with its own layers; nothing is written without an output."""
    monkeypatch.chdir(tmp_path)
    others = [tiny_run / "best/kd", tiny_run / "best/vit"]
    choice = {"student_a": "kd", "layers_b": ["all", "0,-1"], "num_images": 12, "num_workers": 0}
    found = distill.similarity(tiny_run, others, **choice)
    assert [[len(pair.cka), len(pair.cka[0])] for pair in found.pairs] == [[4, 4], [4, 2]]
    assert [pair.b.label for pair in found.pairs] == [str(others[0]), "vit"]
    assert found.pairs[0].cka[3][3] == pytest.approx(1)
    assert not list(tmp_path.iterdir())
    again = distill.similarity(tiny_run, others, **choice, output="out")
    assert again.as_dict() == json.loads((tmp_path / "out/similarity.json").read_text())
    with pytest.raises(InputError, match=r"--weights-b: given 3 times for 2 models"):
        distill.similarity(tiny_run, others, student_a="kd", weights_b=["best"] * 3)


def test_its_own_files_are_replaced_and_no_others(
    compare: Compare, cli: Cli, tiny_run: Path, tmp_path: Path
) -> None:
    pair = (tiny_run / "best/kd", tiny_run / "best/kd", "--data", "fashion_mnist", "--images", 8)
    _, first = compare(*pair)
    _, second = compare(*pair, "--seed", 1)
    assert values(first).tolist() != values(second).tolist()
    (tmp_path / "out/notes.txt").write_text("mine")
    refused = cli("similarity", *pair, "-o", tmp_path / "out")
    assert refused.code == 2
    assert "holds notes.txt, which is not of distill similarity" in refused.err
    assert (tmp_path / "out/similarity.json").is_file()


# ---- what is refused, before any image is read ---------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("kd", "kd", "--batch-size", 3), "--batch-size 3: .* give at least 4"),
        (("kd", "kd", "--images", 3), "--images 3: .* give at least 4"),
        (("kd", "vit", "--layers-a", "4"), r"--layers-a 4: kd has the layers 0 to 3 \(0: act1"),
        (("kd", "vit", "--layers-b", "0,-7"), "--layers-b -7: vit has the layers 0 to 5"),
        (
            ("kd", "vit", "--layers-b", "block.*"),
            "--layers-b block.*: vit has no module .*blocks.0",
        ),
        (("kd", "gone"), "gone: there is no such run, checkpoint, export or file"),
        (("..", "kd"), r"A \S+: a run of several students .*: choose one with --student-a"),
        (("kd", "..", "--student-b", "kid"), "no student 'kid' .*did you mean 'kd'"),
        (("kd", "vit", "--student-b", "one"), "--student-b one picks among what a run holds"),
        (("kd", "vit", "--model-a", "vit_x"), "--model-a names the architecture of a file"),
        (("kd", "vit", "kd", "alone", "--layers-b", "0", "--layers-b", "1"), "--layers-b: given 2"),
        (("kd", "vit", "--data", "gone"), "--data .*gone: there is no such file or folder"),
        (("kd", "vit", "--data", "few"), "CKA needs at least 4 images, and this has 3"),
        (("kd", "vit", "--data", None), "kd does not say what to evaluate it on: give --data"),
        (("kd", "vit", "--split", "train", "--data", None), "--split names the split of --data"),
        (("kd", "vit", "-o", "file"), "--output file: .*/file is a file: name a folder"),
        (("kd", "vit", "-o", "file/out"), "--output file/out: .*/file is a file: name a folder"),
        (("kd", "vit", "-o", "hf://alice/kd"), "--output hf:/alice/kd: is a name on the Hub"),
    ],
    ids=str,
)
def test_bad_input_is_one_message(
    arguments: tuple[object, ...],
    message: str,
    cli: Cli,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "few/a").mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (20, 20)).save(tmp_path / f"few/a/{i}.png")
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    places = {name: tiny_run / "best" / name for name in ("kd", "vit", "alone")} | {"..": tiny_run}
    command = [places.get(str(word), word) for word in arguments if word is not None]
    if "--data" not in arguments:
        command += ["--data", "fashion_mnist"]
    elif None in arguments:
        command.remove("--data")
    done = cli("similarity", *command)
    assert done.code == 2, done.out
    assert "Traceback" not in done.err
    assert re.search(message, done.err), done.err
    assert not (tmp_path / "similarity").exists()


def test_a_model_that_refuses_a_size(cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
    pair = (tiny_run / "best/kd", tiny_run / "best/vit", "--data", "fashion_mnist")
    done = cli("similarity", *pair, "--image-size-b", 18, "-o", tmp_path / "out")
    assert done.code == 2
    assert "--image-size-b" in done.err
