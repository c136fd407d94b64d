"""`distill recipe check`: every problem of a recipe at once, without data, memory or a device; all
shipped recipes are sound.
"""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.errors import InputError
from distill.models import weights
from distill.models.build import create
from distill.recipe import load_recipe, shipped_recipes
from distill.training import known_data
from distill.training.check import check_recipe

# One of each kind: model family, strategy, teacher. The rest are under the mark `slow`.
SAMPLE = (
    "cifar100/res20_res56_c_2400ep",
    "cifar100/teacher_res32x4",
    "imagenet1k/convnextv2_t_beitv2b_a1_600ep",
    "imagenet1k/deit_s_beitv2l_a2_300ep",
    "imagenet1k/mobilenetv1_res50_previous_90ep",
    "imagenet1k/res18_res34_b_300ep",
    "imagenet1k/res50_res152_a1_600ep",
    "imagenet1k/vit_t_beitv2b_a1_1200ep",
    "quickstart/students",
    "quickstart/teacher",
)


@pytest.mark.parametrize("name", SAMPLE)
def test_shipped_recipes_are_sound(name: str) -> None:
    for note in check_recipe(load_recipe(name), num_processes=1).not_here:
        assert note.endswith("is not here")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(shipped_recipes()) - set(SAMPLE)))
def test_all_shipped_recipes_are_sound(name: str) -> None:
    for note in check_recipe(load_recipe(name), num_processes=1).not_here:
        assert note.endswith("is not here")


def problems(recipe: Path, *overrides: str, num_processes: int | None = None) -> list[str]:
    with pytest.raises(InputError) as info:
        check_recipe(load_recipe(recipe, overrides), num_processes)
    return str(info.value).splitlines()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("student.model=cifar_resnet9", "students.alone: timm"),
        ("student.model_args={depht: 8}", "students.alone: model_args of cifar_resnet8"),
        (
            "student.model_args={num_classes: 8}",
            "students.alone: model_args.num_classes of cifar_resnet8: it follows from the data",
        ),
        (
            "student={model: vgg11, drop_path: 0.1}",
            "students.alone: drop_path: vgg11 has no stochastic depth",
        ),
        (
            "student.optimizer.name=adamv",
            "students.alone.optimizer.name: timm has no optimizer 'adamv'",
        ),
        (
            "student.optimizer.args={nesterof: true}",
            "students.alone.optimizer.args.nesterof: momentum takes no such argument",
        ),
        (
            "student.optimizer.args={dampening: high}",
            "students.alone.optimizer.args: momentum refuses",
        ),
        (
            "student.schedule.warmup=8 iterations",
            "students.alone.schedule.warmup: 8 iterations is not shorter than train.budget",
        ),
        (
            "student.schedule={name: step, milestones: [9 iterations]}",
            "students.alone.schedule.milestones: 9 iterations",
        ),
        (
            "student={model: vgg11}",
            "students.alone.model vgg11 does not take images of data.image_size 16",
        ),
        (
            "student={model: test_vit, model_args: {patch_size: 5}}",
            "students.alone.model test_vit does not take images",
        ),
        ("teacher.model=cifar_resnet15", "teacher: timm"),
        ("teacher.model_args={depht: 8}", "teacher: model_args of cifar_resnet14"),
        (
            "teacher.weights=pretrained",
            "teacher.weights: timm has no pretrained weights of cifar_resnet14",
        ),
        ("log.trackers=[wandbb]", "log.trackers: no tracker 'wandbb'"),
        ("data.augment.auto_augment=rnd-m9", "data.augment.auto_augment"),
    ],
)
def test_problems_are_found_without_data(override: str, says: str, tiny_recipe: Any) -> None:
    (problem,) = problems(tiny_recipe(), override)
    assert problem.startswith(says)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        # 7 steps an epoch.
        (["student.schedule.warmup=2 epochs"], "students.alone.schedule.warmup: 2 epochs is 14"),
        (["train.budget=1 epochs", "student.schedule.warmup=112 samples"], "is 7 steps and the"),
        (
            ["student.schedule.warmup=128 samples", "data.train.path=nowhere"],
            "students.alone.schedule.warmup: 128 samples, 8 steps, is not shorter than"
            " train.budget, 8 iterations, 8 steps",
        ),
        (["train.batch_size_global=128"], "data"),
        (
            ["students.alone.objective={hard: {loss: ce}, hint: {loss: crd, reference: original}}"],
            "students.alone.objective.hint.negatives: 16,384 are drawn without replacement",
        ),
    ],
)
def test_problems_that_the_data_show(overrides: list[str], says: str, tiny_recipe: Any) -> None:
    (problem,) = problems(tiny_recipe(), *overrides)
    assert says in problem


@pytest.mark.parametrize("data", [[], ["data.train.path=nowhere"]])
def test_classes_of_the_teacher_are_compared_without_a_download(
    data: list[str], tiny_recipe: Any
) -> None:
    """Fashion-MNIST has ten classes, here or not."""
    recipe = tiny_recipe()
    teacher = "teacher={model: resnet10t, weights: pretrained}"
    soft = "student.objective.soft={loss: kl}"
    (problem,) = problems(recipe, *data, teacher, soft)
    assert "the teacher's head has 1000 classes (as imagenet-1k has), the data 10" in problem
    hint = "student.objective.hint={loss: fitnet}"  # reads features alone
    assert check_recipe(load_recipe(recipe, [*data, teacher, hint]))


def test_data_that_are_slow_to_open_are_not_compared(
    tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_data, "OPEN_S", 0.0)
    monkeypatch.setattr(known_data, "open_sources", lambda recipe: time.sleep(1))
    checked = check_recipe(load_recipe(tiny_recipe(), ["student.schedule.warmup=1 epochs"]))
    assert checked.not_here[-1].startswith("data: not open after")
    assert checked.not_compared[0].startswith("students.alone.schedule.warmup: 1 epochs, and")


def test_all_problems_come_at_once(tiny_recipe: Any) -> None:
    recipe = tiny_recipe(
        {"students": {"a": {"model": "resnet51"}, "b": {"optimizer": {"name": "adamv", "lr": 1.0}}}}
    )
    found = problems(recipe, "log.trackers=[wandbb]", "teacher.model=resnet35", num_processes=3)
    assert [line.split(" ")[0].rstrip(":") for line in found] == [
        "log.trackers",
        "train.batch_size_global",
        "students.a",
        "students.b.optimizer.name",
        "teacher",
    ]


def test_what_is_not_here_is_noted(
    tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe()
    overrides = [
        "teacher.weights=runs/teacher",
        "student.weights=start.safetensors",
        "data.root=nowhere",
        "data.train={kind: image_folder, path: train}",
        "data.eval={kind: parquet, path: val/*.parquet}",
    ]
    notes = check_recipe(load_recipe(recipe, overrides)).not_here
    assert notes == [
        "students.alone.weights: start.safetensors is not here",
        "teacher.weights: runs/teacher is not here",
        "data.train: nowhere/train is not here",
        "data.eval: nowhere/val/*.parquet is not here",
    ]
    (tmp_path / "runs/teacher").mkdir(parents=True)
    (tmp_path / "nowhere/val").mkdir(parents=True)
    (tmp_path / "nowhere/val/1.parquet").touch()
    left = check_recipe(load_recipe(recipe, overrides)).not_here
    assert [note.split(":")[0] for note in left] == ["students.alone.weights", "data.train"]


def test_a_check_takes_no_memory_and_draws_nothing(tiny_recipe: Any) -> None:
    """BEiT-L has 300 million parameters: 1.2 GB if they were made."""
    recipe = load_recipe(
        tiny_recipe(), ["teacher={model: beitv2_large_patch16_224, image_size: null}"]
    )
    state, before = torch.get_rng_state(), resident_bytes()
    check_recipe(recipe)
    assert torch.equal(torch.get_rng_state(), state)
    assert resident_bytes() - before < 3e8


def resident_bytes() -> float:
    return float(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_each_model_s_view_is_reported_and_weights_are_read_once(
    tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / "teacher.pth", tmp_path / "student.pth"]
    for file in files:
        torch.save(create("cifar_resnet8", num_classes=10).state_dict(), file)
    read: list[Path] = []
    read_torch = weights._read_torch
    monkeypatch.setattr(weights, "_read_torch", lambda path: read.append(path) or read_torch(path))
    teacher = f"teacher={{model: cifar_resnet8, weights: {files[0]}, image_size: 24}}"
    found = check_recipe(load_recipe(tiny_recipe(), [teacher, f"student.weights={files[1]}"]))
    assert sorted(read) == sorted(files)
    starts = [line.partition(",")[0] for line in found.seen]
    assert starts == [
        "teacher sees 24x24 px (teacher.image_size); center crop 1",
        "alone sees 16x16 px (data.image_size); center crop 1",
    ]
