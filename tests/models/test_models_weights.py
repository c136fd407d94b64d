"""Weight files: nothing in them runs, averages come first, and what does not fit is named."""

import argparse
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from distill.errors import InputError
from distill.models.fitting import apply_weights
from distill.models.weights import load_state_dict


class Payload:
    """Unpickled by anything that runs pickles, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def state(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((2, 3), value), "bias": torch.full((2,), value)}


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, kind: str) -> None:
    proof, file = tmp_path / "proof", tmp_path / "evil.pth"
    content = {"state_dict": state(), "args": Payload(proof)}
    if kind == "plain pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(
        InputError,
        match=r"evil\.pth would run code when loaded .*: refused; convert it to safetensors",
    ):
        load_state_dict(file)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Payload(proof)))
    assert proof.exists(), "the payload itself must work, or this test shows nothing"


def test_whole_modules_and_torchscript_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 2), tmp_path / "module.pth")
    torch.jit.save(torch.jit.script(nn.Linear(3, 2)), str(tmp_path / "script.pt"))
    for name in ("module.pth", "script.pt"):
        with pytest.raises(InputError, match="would run code"):
            load_state_dict(tmp_path / name)


def test_timm_checkpoint_with_namespace_loads_its_average(tmp_path: Path) -> None:
    content = {
        "epoch": 3,
        "arch": "resnet50",
        "state_dict": state(1.0),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "version": 2,
        "args": argparse.Namespace(
            model="resnet50", aa=None, opt_betas=(0.9, 0.999), mean=[0.5], amp=True
        ),
        "state_dict_ema": state(2.0),
        "metric": 71.5,
    }
    torch.save(content, tmp_path / "model_best.pth.tar")
    found, note = load_state_dict(tmp_path / "model_best.pth.tar")
    assert found["weight"].unique().tolist() == [2.0]
    assert "state_dict_ema" in note
    del content["state_dict_ema"]
    torch.save(content, tmp_path / "last.pth.tar")
    found, note = load_state_dict(tmp_path / "last.pth.tar")
    assert found["weight"].unique().tolist() == [1.0]
    assert note == "weights (state_dict)"


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema"])
def test_averages_win_over_weights(tmp_path: Path, key: str) -> None:
    torch.save({"model": state(1.0), "state_dict": state(1.0), key: state(2.0)}, tmp_path / "a.pt")
    found, note = load_state_dict(tmp_path / "a.pt")
    assert found["bias"].tolist() == [2.0, 2.0]
    assert key in note


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_wrapper_prefixes_come_off(tmp_path: Path, prefix: str) -> None:
    torch.save({"model": {prefix + k: v for k, v in state().items()}}, tmp_path / "a.bin")
    assert set(load_state_dict(tmp_path / "a.bin")[0]) == {"weight", "bias"}


def test_a_part_compiled_alone_and_a_module_called_module(tmp_path: Path) -> None:
    names = {"blocks.0._orig_mod.weight": "blocks.0.weight", "module.weight": "module.weight"}
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "a.safetensors")
    assert set(load_state_dict(tmp_path / "a.safetensors")[0]) == set(names.values())


def test_safetensors_and_legacy_files_load(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "a.safetensors")
    torch.save(state(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "a.pth"):
        found, _ = load_state_dict(tmp_path / name)
        assert torch.equal(found["weight"], state()["weight"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".tar", ".ckpt"])
@pytest.mark.parametrize("size", [0, 50, 400, -8])
def test_truncated_files_are_named(tmp_path: Path, suffix: str, size: int) -> None:
    file = tmp_path / f"cut{suffix}"
    if suffix == ".safetensors":
        save_file(state(), file)
    else:
        torch.save(state(), file, _use_new_zipfile_serialization=suffix == ".pth")
    file.write_bytes(file.read_bytes()[:size])
    if suffix == ".safetensors" and size == 400:
        file.write_bytes(b"<html>not found</html>")
    with pytest.raises(
        InputError, match=rf"cut{suffix}: damaged, truncated|cut{suffix}: damaged or truncated"
    ):
        load_state_dict(file)


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    torch.save({}, tmp_path / "empty.pt")
    for name in ("list.pt", "epoch.pt", "empty.pt"):
        with pytest.raises(InputError, match=rf"{name}: holds no state dict"):
            load_state_dict(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        load_state_dict(tmp_path / "absent.pth")
    (tmp_path / "a.npz").write_bytes(b"x")
    with pytest.raises(InputError, match=r"read from \.safetensors"):
        load_state_dict(tmp_path / "a.npz")


def test_weights_that_fit_are_taken_bit_for_bit() -> None:
    source, model = timm.create_model("cifar_resnet8"), timm.create_model("cifar_resnet8")
    assert not torch.equal(source.conv1.weight, model.conv1.weight)
    apply_weights(model, source.state_dict(), "x")
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


def test_another_head_is_named_first_and_nothing_is_loaded() -> None:
    source, model = (
        timm.create_model("cifar_resnet8", num_classes=1000),
        timm.create_model("cifar_resnet8", num_classes=10),
    )
    before = model.conv1.weight.clone()
    with pytest.raises(
        InputError,
        match=r"student\.weights a\.pth: its head has 1000 classes, the recipe's data 10",
    ):
        apply_weights(model, source.state_dict(), "student.weights a.pth")
    assert torch.equal(model.conv1.weight, before)


def test_mismatches_are_listed_up_to_five() -> None:
    model = timm.create_model("cifar_resnet14")
    wrong = dict(timm.create_model("cifar_resnet8").state_dict(), surprise=torch.zeros(1))
    wrong["conv1.weight"] = torch.zeros(16, 1, 3, 3)
    with pytest.raises(InputError) as caught:
        apply_weights(model, wrong, "x")
    message = str(caught.value)
    missing = {
        key
        for key in set(model.state_dict()) - set(wrong)
        if not key.endswith("num_batches_tracked")
    }
    listed = message.split("missing: ")[1].split("; ")[0]
    assert listed.count(",") == 4
    assert f"and {len(missing) - 5} more" in listed
    assert "unexpected: surprise;" in message
    assert "other shapes: conv1.weight (16, 1, 3, 3) for (16, 3, 3, 3)" in message


def test_timms_converter_is_tried() -> None:
    source = timm.create_model("test_vit", num_classes=5, img_size=32)
    model = timm.create_model("test_vit", num_classes=5, img_size=64)
    assert source.pos_embed.shape != model.pos_embed.shape
    apply_weights(model, source.state_dict(), "x")
    assert torch.equal(model.patch_embed.proj.weight, source.patch_embed.proj.weight)
    with pytest.raises(InputError, match="missing"):
        apply_weights(model, timm.create_model("cifar_resnet8", num_classes=5).state_dict(), "x")
