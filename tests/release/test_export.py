"""Exports: what timm loads from them gives the same logits, they say what they are, and they
replace nothing but themselves.
"""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from tiny import IMAGE_SIZE, checkpoint, run
from torch import nn

import distill.models.export_format
from distill.data.fashion import CLASSES
from distill.errors import InputError
from distill.files import WriteError
from distill.models import cifar as cifar  # registers its models
from distill.models.export_format import class_names
from distill.release.average import average_models
from distill.release.export import export_student, find_models

STUDENTS = {
    "kd": ("cifar_resnet8", {}),
    "vit": ("test_vit", {"patch_size": 4, "img_size": IMAGE_SIZE}),
}
FILES = ["config.json", "distill.json", "model.safetensors"]


def logits(net: nn.Module, size: int = IMAGE_SIZE) -> torch.Tensor:
    torch.manual_seed(0)
    images = torch.rand(8, 3, size, size)
    with torch.no_grad():
        answer: torch.Tensor = net.eval()(images)
    return answer


def trained(run: Path, student: str, weights: str) -> nn.Module:
    """The student by hand: a fresh timm model with the tensors of the newest checkpoint."""
    model, arguments = STUDENTS[student]
    net = timm.create_model(model, num_classes=len(CLASSES), **arguments)
    tensors = load_file(
        checkpoint(run) / f"{student}.{'model' if weights == 'raw' else weights}.safetensors"
    )
    net.load_state_dict(
        {key: value for key, value in tensors.items() if not key.startswith("ema/")}
    )
    return net


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- the same model ------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["raw", "ema-0.5"])
@pytest.mark.parametrize("student", STUDENTS)
def test_timm_loads_the_same_logits(
    student: str, weights: str, tiny_run: Path, tmp_path: Path
) -> None:
    export_student(tiny_run, tmp_path / "out", student=student, weights=weights)
    loaded = timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True)
    torch.testing.assert_close(
        logits(loaded), logits(trained(tiny_run, student, weights)), rtol=0, atol=1e-6
    )
    other = trained(tiny_run, student, "raw" if weights != "raw" else "ema-0.5")
    assert not torch.allclose(logits(loaded), logits(other), rtol=0, atol=1e-6), (
        "both weights give these logits"
    )


@pytest.mark.parametrize("student", STUDENTS)
def test_the_best_weights_are_exported_as_the_run_kept_them(
    student: str, tiny_run: Path, tmp_path: Path
) -> None:
    export_student(tiny_run, tmp_path / "out", student=student)
    loaded = timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True)
    best = load_file(tiny_run / "best" / student / "model.safetensors")
    assert best.keys() == loaded.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, best[name]), name
    assert json.loads((tmp_path / "out/distill.json").read_text()) == json.loads(
        (tiny_run / "best" / student / "distill.json").read_text()
    )


def test_a_checkpoint_and_an_export_can_be_exported(tiny_run: Path, tmp_path: Path) -> None:
    export_student(checkpoint(tiny_run), tmp_path / "one", student="kd")
    export_student(tmp_path / "one", tmp_path / "two")
    expected = logits(trained(tiny_run, "kd", "raw"))
    for name in ("one", "two"):
        assert torch.equal(
            logits(timm.create_model(f"local-dir:{tmp_path}/{name}", pretrained=True)), expected
        )
        assert class_names(tmp_path / name) == CLASSES


def test_another_number_of_classes_gets_a_fresh_head(tiny_run: Path, tmp_path: Path) -> None:
    """What people do with a released model: fine-tune it on their own classes."""
    export_student(tiny_run, tmp_path / "out", student="kd", weights="raw")
    tuned = timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True, num_classes=3)
    assert logits(tuned).shape == (8, 3)
    assert torch.equal(
        tuned.state_dict()["conv1.weight"],
        trained(tiny_run, "kd", "raw").state_dict()["conv1.weight"],
    )


# ---- what it says of itself ----------------------------------------------------------------------


@pytest.mark.parametrize("student", STUDENTS)
def test_the_config_says_how_to_use_it(student: str, tiny_run: Path, tmp_path: Path) -> None:
    export_student(tiny_run, tmp_path / "out", student=student)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architecture"] == STUDENTS[student][0]
    assert config["num_classes"] == len(CLASSES)
    assert config["label_names"] == list(CLASSES)
    view = config["pretrained_cfg"]
    (found,) = find_models(tiny_run, model=None, student=student, weights="raw", image_size=None)
    assert (tuple(view["mean"]), tuple(view["std"])) == (found.pixels.mean, found.pixels.std)
    assert view["crop_pct"] == 1.0  # the recipe's data.eval_view
    assert view["interpolation"] == "bicubic"
    assert view["input_size"] == [3, IMAGE_SIZE, IMAGE_SIZE]
    transform = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path}/out"))
    assert (transform["crop_pct"], transform["input_size"]) == (1.0, (3, IMAGE_SIZE, IMAGE_SIZE))


def test_an_export_is_not_reported_as_timms_weights_and_others_can_read_it(
    tiny_recipe: Any, tmp_path: Path
) -> None:
    student = {"model": "test_resnet", "objective": {"hard": {"loss": "ce"}}}
    changes = {"train": {"budget": "1 iterations"}, "students": {"a": student}}
    assert (
        run(
            tiny_recipe(
                {
                    **changes,
                    "data": {"eval_view": {"crop_mode": "squash", "interpolation": "lanczos"}},
                }
            )
        )
        == 0
    )
    export_student(tmp_path / "run", tmp_path / "out")
    timms = timm.create_model("test_resnet").pretrained_cfg
    assert {"tag", "license"} <= timms.keys(), "timm's own config has what is taken out"
    for folder in (tmp_path / "out", tmp_path / "run/best/a"):
        config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
        provenance = {
            "tag",
            "license",
            "description",
            "origin_url",
            "paper_name",
            "paper_ids",
            "notes",
        }
        assert not provenance & config.keys()
        assert (config["crop_mode"], config["interpolation"]) == ("squash", "lanczos")
        assert json.loads((folder / "distill.json").read_text())["began_with"] == "random weights"
    loaded = timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True)
    assert timm.data.resolve_model_data_config(loaded)["crop_mode"] == "squash"
    own = os.umask(0o022)
    os.umask(own)
    files = [
        path for place in ("out", "run") for path in (tmp_path / place).rglob("*") if path.is_file()
    ]
    assert len(files) > 10
    modes = {str(path): path.stat().st_mode & 0o777 for path in files}
    assert set(modes.values()) == {0o666 & ~own}, modes


def test_the_recipes_own_mean_and_std_are_exported(
    tiny_recipe: Any, cli: Any, tmp_path: Path
) -> None:
    recipe = tiny_recipe(
        {
            "train": {"budget": "1 iterations"},
            "student": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
            "data": {"eval_view": {"crop_fraction": 0.8, "interpolation": "bilinear"}},
        }
    )
    assert cli("train", recipe).code == 0
    export_student(tmp_path / "run", tmp_path / "out")
    view = json.loads((tmp_path / "out/config.json").read_text())["pretrained_cfg"]
    assert (view["mean"], view["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert (view["crop_pct"], view["interpolation"]) == (0.8, "bilinear")


def test_the_best_student_is_exported_where_none_is_named(tiny_run: Path, tmp_path: Path) -> None:
    report = json.loads((tiny_run / "report.json").read_text())
    export_student(tiny_run, tmp_path / "out")
    assert json.loads((tmp_path / "out/distill.json").read_text())["student"] == report["best"]


def test_the_best_of_an_unfinished_run_is_known_by_its_scores(
    tiny_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("recipe.yaml", "best"):
        (run / name).symlink_to(tiny_run / name)
    export_student(run, tmp_path / "out")
    scores = {
        path.parent.name: json.loads(path.read_text())["top1"]
        for path in (tiny_run / "best").glob("*/distill.json")
    }
    chosen = json.loads((tmp_path / "out/distill.json").read_text())["student"]
    assert scores[chosen] == max(scores.values())
    with pytest.raises(
        InputError, match=r"which student\? Name one with --student: alone, kd, vit"
    ):
        export_student(checkpoint(tiny_run), tmp_path / "other")


# ---- what it replaces ----------------------------------------------------------------------------


def test_an_export_replaces_an_earlier_one_whole(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_student(tiny_run, out, student="vit")
    export_student(tiny_run, out, student="kd", weights="raw")
    assert sorted(contents(out)) == FILES
    assert torch.equal(
        logits(timm.create_model(f"local-dir:{out}", pretrained=True)),
        logits(trained(tiny_run, "kd", "raw")),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("what", ["save_file", "save_config_for_hf"])
def test_an_export_that_fails_midway_leaves_the_earlier_one(
    what: str, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export_student(tiny_run, out, student="vit")
    before = contents(out)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(distill.models.export_format, what, full)
    with pytest.raises(WriteError, match="no space left"):
        export_student(tiny_run, out, student="kd")
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_replaces_nothing_else(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.md").write_text("precious")
    export_student(tiny_run, tmp_path / "export", student="kd")
    (tmp_path / "export/README.md").write_text("precious")
    for place, says in (
        ("file", "is a file"),
        ("folder", "'notes.md'"),
        ("export", "'README.md'"),
        ("file/x", "is a file"),
    ):
        with pytest.raises(InputError, match=says):
            export_student(tiny_run, tmp_path / place, student="kd")
    assert (tmp_path / "file").read_text() == "precious"
    assert (tmp_path / "folder/notes.md").read_text() == "precious"
    assert (tmp_path / "export/README.md").read_text() == "precious"
    (tmp_path / "new").mkdir()
    export_student(tiny_run, tmp_path / "new", student="kd")
    export_student(tiny_run, tmp_path / "deep/er", student="kd")
    assert sorted(contents(tmp_path / "new")) == sorted(contents(tmp_path / "deep/er")) == FILES


def test_an_export_never_goes_into_a_run(tiny_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    student = next((other / "best").iterdir()).name
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    places = (other / "best" / student, other / "best" / "new", other / "exported")
    for place in (*places, other / "best" / ".." / "best" / student):
        for source in (tiny_run, other):
            with pytest.raises(InputError, match=rf"is inside the run {other}, whose files"):
                export_student(source, place, student=student)
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before


def test_an_export_may_go_below_a_project_that_looks_like_a_run(
    tiny_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text("name: mine")
    (tmp_path / "checkpoints").mkdir()
    export_student(tiny_run, tmp_path / "exports/kd", student="kd")
    assert sorted(contents(tmp_path / "exports/kd")) == FILES


def test_the_model_of_another_program_is_not_replaced(tiny_run: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("a teacher's")
    with pytest.raises(InputError, match=rf"{tmp_path}: holds a model that distill did not export"):
        export_student(tiny_run, tmp_path, student="kd")
    assert {path.read_text() for path in tmp_path.iterdir()} == {"a teacher's"}


def test_a_name_of_the_hub_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for write in (export_student, average_models):
        with pytest.raises(InputError, match="is a name on the Hub, and an export is a folder"):
            write("run", "hf://alice/net")
    assert not list(tmp_path.iterdir())
