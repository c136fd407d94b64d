"""Runs that reconstruct removed patches: exact, without labels or teacher, exported for timm."""

import json
from pathlib import Path

import pytest
import timm
import torch
from command import Cli
from tiny import (
    MASKED,
    assert_equal_tensors,
    best,
    records,
    relative_difference,
    run,
    stop_after,
    tensors,
    write_recipe,
)

from distill.errors import InputError
from distill.recipe import load_recipe
from distill.training.check import check_recipe
from distill.training.loop import DONE, INTERRUPTED

NO_ARGUMENTS = tuple(f"students.pre.model_args.{name}=null" for name in ("dims", "depths"))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    recipe = write_recipe(tmp_path_factory.mktemp("masked"), MASKED)
    assert run(recipe) == DONE
    return recipe.with_suffix("")


def test_it_learns_to_reconstruct(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, MASKED, {"train": {"budget": "40 iterations"}})
    assert run(recipe, "checkpoint.every=40 iterations") == DONE
    lines = [line for line in records(tmp_path / "run") if line["event"] == "train"]
    losses = [line["students"]["pre"]["loss_masked"] for line in lines]
    assert losses[0] == pytest.approx(1, abs=0.15)  # normalised patches, and a decoder near zero
    assert sum(losses[-5:]) / 5 < losses[0] - 0.03
    assert all(
        line["students"]["pre"].keys().isdisjoint({"loss_hard", "loss_soft"}) for line in lines
    )


def test_a_stopped_run_ends_with_the_same_weights(
    ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, MASKED)
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        assert run(recipe) == INTERRUPTED
    assert run(recipe) == DONE
    before, after = tensors(ended), tensors(tmp_path / "run")
    assert any(name.startswith("pre.heads/") for name in before)
    assert_equal_tensors(before, after)


def test_micro_batches_change_nothing(ended: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, MASKED)
    assert run(recipe, "train.micro_batch_size=4") == DONE
    ours, theirs = tensors(ended, "pre"), tensors(tmp_path / "run", "pre")
    for name in ours:
        if name.startswith("pre.model/"):
            torch.testing.assert_close(ours[name], theirs[name], rtol=2e-3, atol=2e-4)


def test_the_export_is_a_backbone_of_timm(ended: Path, tmp_path: Path) -> None:
    weights, record = best(ended, "pre")
    assert not any(name.startswith(("head.fc", "decoder", "token")) for name in weights)
    net = timm.create_model(
        "convnextv2_atto", num_classes=0, **MASKED["students"]["pre"]["model_args"]
    )
    net.load_state_dict(weights)
    assert record["step"] == 6
    report = json.loads((ended / "report.json").read_text())
    assert report["students"]["pre"]["objective"]["masked"]["loss"] == "fcmae"


def test_it_is_fine_tuned_from_its_export(ended: Path, tmp_path: Path) -> None:
    student = {key: MASKED["students"]["pre"][key] for key in ("model", "model_args", "optimizer")}
    student |= {
        "weights": str(ended / "best/pre/model.safetensors"),
        "objective": {"hard": {"loss": "ce"}},
    }
    recipe = write_recipe(
        tmp_path, MASKED, {"students": {"tuned": student}, "train": {"budget": "1 iterations"}}
    )
    assert run(recipe, "students.tuned.optimizer.lr=1e-12") == DONE
    found, _ = best(tmp_path / "run", "tuned")
    weights, _ = best(ended, "pre")
    for name, tensor in weights.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
    assert found["head.fc.weight"].shape == (10, 32)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("students.pre.model=resnet18", *NO_ARGUMENTS), "masked: fcmae removes"),
        (("data.image_size=80",), "data.image_size: 80.*such as 64"),
        (("students.pre.objective.masked.mask_ratio=0.9",), "mask_ratio: 0.9 leaves 0 of the 4"),
        (("students.pre.objective.masked.mask_ratio=1.5",), "mask_ratio"),
        (("students.pre.objective.hard.loss=ce",), "masked: .* hard would need whole ones"),
        (("students.pre.objective.masked.loss=mae",), "masked.loss"),
    ],
)
def test_bad_input_is_refused_before_training(
    tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    recipe = write_recipe(tmp_path, MASKED)
    with pytest.raises(InputError, match=message):
        check_recipe(load_recipe(recipe, overrides))
    with pytest.raises(InputError, match=message):
        run(recipe, *overrides)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_images_need_no_labels(foreign: Path, tmp_path: Path, cli: Cli) -> None:
    """A stream without labels: no class is known, and nothing is evaluated."""
    stream = {"kind": "stream", "path": str(foreign), "labelled": False, "block": 20}
    changes = {"data": {"train": stream, "fraction": 1.0}, "train": {"budget": "2 iterations"}}
    recipe = write_recipe(tmp_path, MASKED, changes)
    assert "pre sees 64x64 px" in cli("recipe", "check", recipe).out
    assert run(recipe) == DONE
    assert records(tmp_path / "run")[-1]["event"] != "evaluate"
    assert best(tmp_path / "run", "pre")[1]["step"] == 2


def test_a_stage_with_another_mask_ratio_trains_the_decoder_further(tmp_path: Path) -> None:
    """Other settings of the decoder begin a new one."""
    length = {"train": {"budget": "3 iterations"}, "checkpoint": {"every": "3 iterations"}}
    assert run(write_recipe(tmp_path, MASKED, length, name="first")) == DONE
    before = tensors(tmp_path / "first", "pre.heads")
    same = {}
    for name, masked in (("ratio", {"mask_ratio": 0.5}), ("pixels", {"normalise_patches": False})):
        still = {"objective": {"masked": masked}, "optimizer": {"lr": 1e-12}}
        stages = [
            {"name": "one", "budget": "3 iterations"},
            {"name": "two", "budget": "1 iterations", "student": still},
        ]
        changes = {**length, "train": {"budget": None}, "stages": stages}
        assert run(write_recipe(tmp_path, MASKED, changes, name=name)) == DONE
        after = tensors(tmp_path / name, "pre.heads")
        token = "pre.heads/token"
        same[name] = torch.allclose(after[token], before[token], rtol=0, atol=1e-6)
    assert same == {"ratio": True, "pixels": False}


def test_a_message_about_stages_names_the_masked_term(tmp_path: Path) -> None:
    stages = [
        {"name": name, "budget": "1 iterations", "student": {"objective": {"masked": masked}}}
        for name, masked in (("one", {}), ("two", {"decoder_width": 8}))
    ]
    changes = {"train": {"budget": None, "zero_stage": 2}, "stages": stages}
    with pytest.raises(InputError, match=r"two.students.pre.objective.masked: trains other parts"):
        load_recipe(write_recipe(tmp_path, MASKED, changes))
    label = {"objective": {"hard": {"loss": "ce"}, "masked": None}}
    stages = [{**stages[0]}, {"name": "tuned", "budget": "1 iterations", "student": label}]
    changes = {"train": {"budget": None}, "stages": stages}
    with pytest.raises(InputError, match=r"in a run of its own, whose export student\.weights"):
        load_recipe(write_recipe(tmp_path, MASKED, changes))


@pytest.mark.slow
def test_compiled_steps_learn_the_same(ended: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, MASKED)
    assert run(recipe, "train.compile=true") == DONE
    ours, theirs = (
        {name: tensor for name, tensor in tensors(folder, "pre").items() if "model/" in name}
        for folder in (ended, tmp_path / "run")
    )
    assert relative_difference(theirs, ours) < 1e-2  # AdamW amplifies what rounds near zero
