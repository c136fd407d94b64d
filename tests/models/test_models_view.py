"""What a model sees is what timm's own pipeline shows it; its size comes from the weights or the
user, never from nowhere.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg

from distill.data.augment import EvalTransform
from distill.errors import InputError
from distill.models.build import config, config_source
from distill.models.student import create_student, student_view
from distill.models.teacher import Loaded, load_teacher
from distill.models.view import view_of_config
from distill.recipe.schema import CESpec, DataSpec, ObjectiveSpec, OptimizerSpec, StudentSpec
from distill.recipe.schema import TeacherSpec as Spec

DATA_SIZE = 96


def load(root: Path, **spec: object) -> Loaded:
    return load_teacher(Spec.model_validate(spec), root, DATA_SIZE, 6, shapes_only=True)


def saved(root: Path, name: str, file: str = "w.pth", **arguments: object) -> None:
    torch.manual_seed(0)
    torch.save(timm.create_model(name, num_classes=6, **arguments).state_dict(), root / file)


# ---- as timm does it -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "interpolation", ["bicubic", "bilinear", "nearest", "lanczos", "box", "hamming"]
)
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_pixels_are_those_of_timms_transform(crop_mode: str, interpolation: str) -> None:
    known = {
        "input_size": (3, 40, 40),
        "crop_pct": 0.9,
        "crop_mode": crop_mode,
        "interpolation": interpolation,
        "mean": (0.2, 0.5, 0.9),
        "std": (0.3, 0.2, 0.1),
    }
    view = view_of_config(known, "a test")
    theirs = create_transform(**resolve_data_config({}, pretrained_cfg=known), is_training=False)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (view.mean, view.std))
    for width, height in ((90, 50), (31, 77), (40, 40)):
        image = Image.fromarray(
            np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
        )
        pixels = (
            torch.from_numpy(EvalTransform(**vars(view.frame))(image).copy()).permute(2, 0, 1) / 255
        )
        torch.testing.assert_close((pixels - mean) / std, theirs(image), rtol=0, atol=1e-5)


def test_every_pretrained_classifier_is_resolved_as_timm_resolves_it() -> None:
    refused = []
    for name in timm.list_pretrained():
        theirs = resolve_data_config({}, pretrained_cfg=get_pretrained_cfg(name).to_dict())
        try:
            view = view_of_config(config(name), name)
        except InputError:
            refused.append(name)
            continue
        ours = (
            view.image_size,
            view.mean,
            view.std,
            view.crop_fraction,
            view.crop_mode,
            view.interpolation,
        )
        expected = tuple(
            theirs[key] for key in ("mean", "std", "crop_pct", "crop_mode", "interpolation")
        )
        assert ours == (theirs["input_size"][-1], *expected), name
        assert theirs["input_size"][1] == theirs["input_size"][2], name
    assert all(
        get_pretrained_cfg(name).input_size[1] != get_pretrained_cfg(name).input_size[2]
        for name in refused
    )


@pytest.mark.parametrize(
    ("known", "says"),
    [
        ({"input_size": (1, 32, 32)}, "wants images of 1 channels"),
        ({"input_size": (3, 32, 48)}, "wants 32x48 images"),
        ({"interpolation": "random"}, "interpolation is 'random'"),
        ({"crop_mode": "corner"}, "crop_mode is 'corner'"),
        ({"mean": (0.1, 0.2)}, "mean has 2 values"),
        ({"mean": ["a", "b", "c"]}, r"mean is \['a', 'b', 'c'\], and should be three numbers"),
        ({"mean": (math.nan, 0.5, 0.5)}, "and should be three finite numbers"),
        ({"std": "x"}, "std is 'x', and should be three numbers"),
        ({"std": (0.2, 0.0, 0.2)}, "and should be positive"),
        ({"crop_pct": -1.0}, r"crop_pct -1\.0 should be positive"),
        ({"crop_pct": math.nan}, "crop_pct nan should be positive"),
        ({"input_size": (3, 0, 0)}, r"input_size \(3, 0, 0\) and"),
    ],
)
def test_what_cannot_be_shown_is_refused(known: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        view_of_config(known, "x")


def test_one_value_stands_for_all_channels_and_every_value_names_its_source() -> None:
    view = view_of_config({"input_size": (3, 32, 32), "mean": [0.4], "std": [0.2]}, "here")
    assert (view.mean, view.std) == ((0.4,) * 3, (0.2,) * 3)
    changed = view.replaced("a key", image_size=48, mean=None)
    assert (
        changed.describe()
        == "48x48 px (a key); center crop 0.875, bicubic, mean 0.4, std 0.2 (here)"
    )
    assert changed.as_dict()["sources"]["image_size"] == "a key"


# ---- the size ------------------------------------------------------------------------------------


def test_a_model_of_any_size_takes_the_datas_by_default(tmp_path: Path) -> None:
    saved(tmp_path, "resnet10t")
    view = load(tmp_path, model="resnet10t", weights="w.pth").view
    assert (view.image_size, view.sources["image_size"]) == (DATA_SIZE, "data.image_size")
    assert view.sources["mean"] == f"assumed from {config_source('resnet10t', config('resnet10t'))}"
    given = load(tmp_path, model="resnet10t", weights="w.pth", image_size=64).view
    assert (given.image_size, given.sources["image_size"]) == (64, "teacher.image_size")
    theirs = load(tmp_path, model="resnet10t", weights="pretrained").view
    assert (theirs.image_size, theirs.sources["image_size"]) == (
        176,
        "timm's config of resnet10t.c3_in1k",
    )


def test_a_vit_is_built_for_the_size_of_its_position_embeddings(tmp_path: Path) -> None:
    saved(tmp_path, "test_vit", img_size=64)
    loaded = load(tmp_path, model="test_vit", weights="w.pth")
    assert loaded.view.image_size == 64
    assert loaded.view.sources["image_size"] == f"the shapes in {tmp_path}/w.pth"
    assert loaded.notes == ()
    adapted = load(tmp_path, model="test_vit", weights="w.pth", image_size=160)
    assert adapted.notes == ("teacher: pos_embed 4x4 -> 10x10: trained at 64, used at 160",)
    with pytest.raises(
        InputError, match=r"teacher\.image_size 64 and teacher\.model_args\.img_size 160 contradict"
    ):
        load(
            tmp_path, model="test_vit", weights="w.pth", image_size=64, model_args={"img_size": 160}
        )
    (note,) = load(
        tmp_path, model="vit_tiny_patch16_384", weights="pretrained", image_size=224
    ).notes
    assert (
        note
        == "teacher: pos_embed 24x24 -> 14x14: trained at 384, used at 224 (teacher.image_size)"
    )
    swin = {"model": "swin_tiny_patch4_window7_224", "weights": "pretrained"}
    assert (
        load(tmp_path, **swin, image_size=448).notes == ()
    )  # the same windows of 7: nothing is resampled


@pytest.mark.parametrize(
    "interpolation", ["lanczos", "nearest", "box", "hamming", "bicubic", "bilinear"]
)
def test_a_resize_that_the_device_lacks_is_reported(tmp_path: Path, interpolation: str) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=6).state_dict(), tmp_path / "model.bin")
    view = {"input_size": [3, 64, 64], "interpolation": interpolation}
    content = {"architecture": "test_resnet", "num_classes": 6, "pretrained_cfg": view}
    (tmp_path / "config.json").write_text(json.dumps(content))
    notes = load(tmp_path, weights="model.bin").notes
    known = interpolation in ("bicubic", "bilinear")
    assert len(notes) == (not known)
    assert (
        known
        or f"{DATA_SIZE} px become 64 px on the device, which has no {interpolation}: bicubic there"
        in notes[0]
    )
    assert load(tmp_path, weights="model.bin", image_size=DATA_SIZE).notes == (), (
        "the size is the same: no resize"
    )


def test_weights_of_other_patches_or_tokens_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, "test_vit", img_size=64, patch_size=8)
    with pytest.raises(InputError, match="its patches are 8x8 pixels, the model's 16x16"):
        load(tmp_path, model="test_vit", weights="w.pth")
    assert (
        load(
            tmp_path, model="test_vit", weights="w.pth", model_args={"patch_size": 8}
        ).view.image_size
        == 64
    )
    saved(tmp_path, "mixer_s32_224", "mixer.pth", img_size=256)
    with pytest.raises(InputError, match="other shapes"):
        load(tmp_path, model="mixer_s32_224", weights="mixer.pth")


def test_windows_that_were_resampled_are_reported(tmp_path: Path) -> None:
    small = {"depths": (1, 1), "embed_dim": 24, "num_heads": (1, 2)}
    saved(tmp_path, "swin_tiny_patch4_window7_224", img_size=96, window_size=12, **small)
    spec = {"model": "swin_tiny_patch4_window7_224", "weights": "w.pth", "model_args": small}
    with pytest.raises(
        InputError, match=r"their shapes do not say the size.*give teacher\.image_size"
    ):
        load(tmp_path, **spec)
    (note,) = load(tmp_path, **spec, image_size=224).notes
    assert (
        note == "teacher: layers.*.blocks.*.attn.relative_position_bias_table window 12x12 -> 7x7"
    )


# ---- a config beside a file ----------------------------------------------------------------------


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A file of weights with a config.json in its folder that differs from timm's own
    config.
    """
    folder = tmp_path / "export"
    folder.mkdir()
    torch.manual_seed(0)
    save_file(
        timm.create_model("resnet10t", num_classes=6).state_dict(), folder / "model.safetensors"
    )
    view = {
        "input_size": [3, 176, 176],
        "mean": [0.1, 0.2, 0.3],
        "std": [1.0, 1.0, 1.0],
        "crop_mode": "squash",
    }
    names = list("fedcba")
    content = {
        "architecture": "resnet10t",
        "num_classes": 6,
        "label_names": names,
        "pretrained_cfg": view,
    }
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("model", [None, "resnet10t", "resnet10t.c3_in1k"])
def test_a_file_is_what_the_config_beside_it_says(export: Path, model: str | None) -> None:
    loaded = load(export, model=model, weights="model.safetensors")
    view = loaded.view
    assert (view.image_size, view.mean, view.crop_mode) == (176, (0.1, 0.2, 0.3), "squash")
    assert set(view.sources.values()) == {f"{export}/config.json"}
    assert loaded.origin.classes == tuple("fedcba")


def test_what_contradicts_the_config_is_refused(export: Path) -> None:
    with pytest.raises(
        InputError, match=r"teacher\.model is resnet18, and .*export holds a resnet10t"
    ):
        load(export, model="resnet18", weights="model.safetensors")
    content = json.loads((export / "config.json").read_text()) | {"num_classes": 7}
    (export / "config.json").write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=r"its head has 6 classes, the config\.json in its folder says 7"
    ):
        load(export, weights="model.safetensors")


def test_a_config_of_another_size_than_the_weights_is_refused_by_default(tmp_path: Path) -> None:
    save_file(
        timm.create_model("test_vit", num_classes=6, img_size=160).state_dict(),
        tmp_path / "model.safetensors",
    )
    view = {"input_size": [3, 64, 64], "fixed_input_size": True, "classifier": "head"}
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "test_vit", "num_classes": 6, "pretrained_cfg": view})
    )
    with pytest.raises(
        InputError, match=r"config\.json says 64 px, the weights do not fit it unchanged"
    ):
        load(tmp_path, weights="model.safetensors")
    assert load(tmp_path, weights="model.safetensors", image_size=160).notes == ()


def test_a_config_of_another_program_is_none(tmp_path: Path) -> None:
    saved(tmp_path, "resnet10t")
    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "lr": 0.1}')
    assert load(tmp_path, model="resnet10t", weights="w.pth").view.image_size == DATA_SIZE


def test_a_student_begins_with_what_lies_beside_its_weights(export: Path) -> None:
    spec = StudentSpec(
        model="resnet10t",
        weights="model.safetensors",
        objective=ObjectiveSpec(hard=CESpec(loss="ce")),
        optimizer=OptimizerSpec(name="sgd", lr=0.1),
    )
    data = DataSpec(train={"kind": "fashion_mnist", "split": "train"}, image_size=DATA_SIZE)
    view = student_view(spec, export, data, "students.a")
    assert (view.image_size, view.crop_mode) == (
        DATA_SIZE,
        "center",
    ), "the run's images are for all"
    assert (view.mean, view.sources["mean"]) == ((0.1, 0.2, 0.3), f"{export}/config.json")
    _, notes = create_student(
        spec, classes=tuple("fedcba"), image_size=DATA_SIZE, seed=0, root=export
    )
    assert notes == ()
    with pytest.raises(InputError, match="have the data's classes in another order"):
        create_student(spec, classes=tuple("abcdef"), image_size=DATA_SIZE, seed=0, root=export)
