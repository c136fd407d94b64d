"""What `distill doctor` counts of hints: heads, features, and CRD's bank."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command import Cli

from distill.doctor.measure import Profiles, measure
from distill.doctor.memory import BANK, FEATURES, Memory, Reserve, estimate
from distill.doctor.model import student_sync_bytes, update_bytes
from distill.doctor.profiles import Layout, StudentProfile
from distill.doctor.reach import checkpoint_bytes
from distill.models.build import create
from distill.recipe import Recipe, load_recipe
from distill.training.share import share_of_process

# Pooled features of 64 channels, and images of 16 pixels: maps of 16, 8 and 4.
TREE: dict[str, Any] = {
    "name": "hints",
    "data": {
        "root": "nowhere",
        "train": {"kind": "image_folder", "path": "train"},
        "eval": {"kind": "image_folder", "path": "val"},
        "image_size": 16,
    },
    "teacher": {"model": "cifar_resnet14", "weights": "random", "dtype": "bf16"},
    "student": {
        "model": "cifar_resnet8",
        "objective": {"hard": {"loss": "ce"}},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "ema": {"decays": [0.9]},
    },
    "train": {"budget": "3 epochs", "batch_size_global": 32, "precision": "fp32"},
}
IMAGES, WIDTH, NEGATIVES = 5000, 128, 1000
CRD = {"loss": "crd", "negatives": NEGATIVES}


def recipe_of(folder: Path, *hints: dict[str, Any] | None) -> Recipe:
    students = {
        f"s{i}": {"objective": {"hint": hint}} if hint else {} for i, hint in enumerate(hints)
    }
    path = folder / "hints.yaml"
    path.write_text(yaml.safe_dump({**TREE, "students": students}))
    return load_recipe(path)


def profiles_of(folder: Path, *hints: dict[str, Any] | None, processes: int = 1) -> Profiles:
    return measure(recipe_of(folder, *hints), 10, share_of_process(32, None, processes), [IMAGES])


def memory_of(profiles: Profiles, processes: int = 1) -> Memory:
    return estimate(
        profiles.teacher,
        profiles.students,
        Layout(processes, 32 // processes),
        image_size=16,
        num_classes=10,
        reserve=Reserve(0, 0),
        feature_bytes=profiles.feature_bytes,
    )


@pytest.mark.parametrize("place", ["device", "host"])
def test_crd_by_hand(place: str, tmp_path: Path) -> None:
    found = profiles_of(tmp_path, CRD | {"bank": place}, None)
    hint, plain = found.students[0].hint, found.students[1]
    assert hint
    assert plain.hint is None
    assert hint.parameters == 2 * (64 * WIDTH + WIDTH)
    assert hint.state_bytes == 8 * hint.parameters  # AdamW
    assert hint.bank_bytes == IMAGES * (2 * 4 * WIDTH + 8)
    assert hint.bank_place == place
    # Two maps to the embeddings, and two products with the negatives, each with its backward.
    forward = 2 * 32 * WIDTH * (64 + 64) + 2 * 2 * 32 * WIDTH * NEGATIVES
    assert hint.train.flops(32) == 3 * forward
    # What lies in memory at once, at the least: negatives of both sides and one matrix of scores.
    assert hint.working.at(32) > 4 * (2 * NEGATIVES * WIDTH + 32 * NEGATIVES)

    memory, without = memory_of(found), memory_of(profiles_of(tmp_path, None, None))
    parts = memory.device if place == "device" else memory.host
    assert parts[BANK] == hint.bank_bytes
    assert (BANK in memory.device) == (place == "device")
    assert memory.device["weights"] - without.device["weights"] == pytest.approx(
        hint.weight_bytes + hint.buffer_bytes
    )
    assert memory.device["optimizer"] - without.device["optimizer"] == hint.state_bytes
    assert memory.device["averages"] == without.device["averages"], "heads have no average"
    assert memory.device[FEATURES] == 32 * 64 * 2  # pooled, bf16
    assert FEATURES not in without.device


def test_heads_are_sent_updated_and_saved(tmp_path: Path) -> None:
    def both(profiles: Profiles) -> StudentProfile:
        return profiles.students[0]

    own, plain = both(profiles_of(tmp_path, CRD)), both(profiles_of(tmp_path, None))
    assert own.hint
    layout = Layout(2, 16)
    sent = student_sync_bytes(own, layout) - student_sync_bytes(plain, layout)
    assert sent == own.hint.weight_bytes  # 2 (N - 1) / N
    updated = update_bytes(own, layout) - update_bytes(plain, layout)
    assert updated == 3 * own.hint.weight_bytes + 2 * own.hint.state_bytes
    saved = checkpoint_bytes((own,)) - checkpoint_bytes((plain,))
    hint = own.hint
    heads = hint.weight_bytes + hint.buffer_bytes + hint.state_bytes
    assert saved == heads + hint.bank_bytes


def test_relations_grow_with_the_micro_batch_of_all_processes(tmp_path: Path) -> None:
    """RKD has B x B x B angles: two processes relate the 32 samples of both, on 16 each."""
    (one,), (two,) = (
        profiles_of(tmp_path, {"loss": "rkd"}, processes=number).students for number in (1, 2)
    )
    assert one.hint
    assert two.hint
    assert one.hint.parameters == one.hint.state_bytes == 0
    assert two.hint.working.at(16) == pytest.approx(one.hint.working.at(32), rel=0.05)
    assert one.hint.working.at(32) > 4 * 32**3
    # The maps of CC see the images of their own process alone.
    (one,), (two,) = (
        profiles_of(tmp_path, {"loss": "cc"}, processes=number).students for number in (1, 2)
    )
    assert one.hint
    assert two.hint
    assert two.hint.train.flops(16) == one.hint.train.flops(32) / 2 == 3 * 16 * 2 * 2 * 64 * WIDTH


@pytest.mark.parametrize("loss", ["fitnet", "cc", "reviewkd", "feature"])
def test_each_hint_is_counted(loss: str, tmp_path: Path) -> None:
    (found,) = profiles_of(tmp_path, {"loss": loss}).students
    assert found.hint
    assert found.hint.parameters > 0
    assert found.hint.train.flops(32) > 0
    assert found.hint.bank_place is None


def test_features_that_several_students_read_are_counted_once(tmp_path: Path) -> None:
    cc, fitnet = {"loss": "cc"}, {"loss": "fitnet", "teacher_stage": -1}
    assert profiles_of(tmp_path, cc, cc).feature_bytes == 64 * 2
    assert profiles_of(tmp_path, cc, fitnet).feature_bytes == 64 * 2 + 64 * 4 * 4 * 2


@pytest.mark.slow
def test_the_command_prints_hints_and_the_bank(tmp_path: Path, cli: Cli) -> None:
    recipe_of(tmp_path, CRD, {"loss": "reviewkd"}, CRD | {"weight": 0.8})
    options = ["--gpu", "h100", "--gpus", 1]
    shown = cli("doctor", tmp_path / "hints.yaml", *options, "--images", IMAGES)
    text = " ".join(shown.out.split())
    assert "hint of s0, s2 crd: 0.02 M parameters in heads" in text
    assert "bank 5.16 MB on the device of each process" in text
    assert "hint of s1 reviewkd" in text
    assert "features of teachers" in text
    assert "is not in these numbers" not in text
    numbers = json.loads(
        cli("doctor", tmp_path / "hints.yaml", *options, "--images", IMAGES, "--json").out
    )
    assert numbers["hints"]["s0"]["bank_bytes"] == IMAGES * (2 * 4 * WIDTH + 8)
    assert numbers["memory"][0]["device"][BANK] == 2 * IMAGES * (2 * 4 * WIDTH + 8)
    # Ten classes are those of no known set, so that the number of images is unknown.
    torch.save(create("cifar_resnet14", num_classes=10).state_dict(), tmp_path / "teacher.pth")
    options += [f"teacher.weights={tmp_path / 'teacher.pth'}"]
    unknown = " ".join(cli("doctor", tmp_path / "hints.yaml", *options).out.split())
    assert "CRD's bank is not in these numbers" in unknown
