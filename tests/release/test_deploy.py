"""`distill export --format onnx|torch-export`: the program gives the model's answers, by itself."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from command import Cli
from scored import eval_images
from torch import nn

from distill.errors import InputError
from distill.models.pixels import Network, Pixels
from distill.release import deploy
from distill.release.deploy import compare, write_program
from distill.release.export import export_student

FORMATS = ("onnx", "torch-export")


def logits_of_timm(export: Path, images: torch.Tensor) -> torch.Tensor:
    net = timm.create_model(f"local-dir:{export}", pretrained=True).eval()
    mean, std = (torch.tensor(net.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        found: torch.Tensor = net((images - mean) / std)
    return found


@pytest.mark.parametrize("student", ["kd", "vit"])
def test_onnx_gives_the_answers_of_timm(
    student: str, tiny_run: Path, tmp_path: Path, cli: Cli
) -> None:
    out = tmp_path / "onnx"
    outcome = cli("export", tiny_run, out, "--student", student, "--format", "onnx")
    assert outcome.code == 0, outcome.err
    assert "same top-1 as the model on 64 images; largest difference of a logit " in outcome.out
    images, _ = eval_images(tiny_run)
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    expected = logits_of_timm(tiny_run / "best" / student, images)
    for part in (images[:1], images):  # any number of images
        (found,) = session.run(["logits"], {"images": part.numpy()})
        assert np.abs(found - expected[: len(part)].numpy()).max() < 1e-4
    assert sorted(file.name for file in out.iterdir()) == [
        "config.json",
        "distill.json",
        "model.onnx",
    ]
    config = json.loads((out / "config.json").read_text())
    assert len(config["label_names"]) == 10


@pytest.mark.slow
def test_a_program_of_torch_needs_neither_timm_nor_us(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "program"
    compared = export_student(tiny_run, out, student="kd", format="torch-export")
    assert compared is not None
    assert (compared.num_images, compared.same_top1) == (64, 64)
    assert compared.largest < 1e-4
    images, _ = eval_images(tiny_run)
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch\n"
        "program = torch.export.load(sys.argv[1] + '/program/model.pt2').module()\n"
        "images = torch.load(sys.argv[1] + '/images.pt')\n"
        "torch.save(program(images).detach(), sys.argv[1] + '/logits.pt')\n"
        "assert not {'timm', 'distill'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=300)
    found = torch.load(tmp_path / "logits.pt")
    assert torch.allclose(found, logits_of_timm(tiny_run / "best/kd", images), atol=1e-4)


def test_a_program_with_other_answers_is_not_written(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that is written is not the one that is compared with."""

    def write_another(network: Network, *arguments: object) -> None:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.neg_()
        write_program(network, *arguments)  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.neg_()

    monkeypatch.setattr("distill.release.export.write_program", write_another)
    with pytest.raises(InputError, match="the program names another class than the model for"):
        export_student(tiny_run, tmp_path / "out", student="kd", format="torch-export")
    assert not (tmp_path / "out").exists()


class Odd(nn.Module):
    """A model whose answer depends on the number of images: no exporter can follow it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) * float(images.sum().item() > 0)


@pytest.mark.parametrize("format", FORMATS)
def test_a_model_that_cannot_be_written(format: deploy.DeployFormat, tmp_path: Path) -> None:
    network = Network(Odd(), Pixels((0.5,) * 3, (0.5,) * 3)).eval()
    with pytest.raises(InputError, match=r"this model cannot be written so .*: use --format timm"):
        write_program(network, torch.rand(4, 3, 8, 8), tmp_path, format)


def test_the_model_itself_is_not_replaced(tiny_run: Path, tmp_path: Path, cli: Cli) -> None:
    copy = tmp_path / "copy"
    shutil.copytree((tiny_run / "best/kd").resolve(), copy)
    for format in ("timm", *FORMATS):
        refused = cli("export", copy, copy, "--format", format)
        assert refused.code == 2
        assert "is what is exported: choose another folder" in refused.err
    assert (copy / "model.safetensors").is_file()


def test_a_missing_library_is_named(
    tiny_run: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "find_spec", lambda name: None if name == "onnxruntime" else name)
    outcome = cli("export", tiny_run, tmp_path / "out", "--student", "kd", "--format", "onnx")
    assert outcome.code == 2
    assert "--format onnx: needs onnxruntime: pip install 'vanillakd[onnx]'" in outcome.err


def test_it_compares_what_is_in_the_file(tmp_path: Path) -> None:
    """The file of one model against another one: the difference is counted."""
    torch.manual_seed(0)
    one, other = (
        Network(nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), Pixels((0.5,) * 3, (0.5,) * 3))
        for _ in range(2)
    )
    images = torch.rand(11, 3, 4, 4)
    write_program(one, images, tmp_path, "torch-export")
    assert compare(one, images, tmp_path, "torch-export").largest < 1e-6
    found = compare(other, images, tmp_path, "torch-export")
    with torch.no_grad():
        apart = (one(images) - other(images)).abs().max()
        same = int((one(images).argmax(1) == other(images).argmax(1)).sum())
    assert found.largest == pytest.approx(float(apart), rel=1e-4)
    assert (found.num_images, found.same_top1) == (11, same)
    assert same < 11
