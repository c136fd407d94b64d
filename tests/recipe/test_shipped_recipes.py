"""Every recipe of the package loads, and its comments are correct."""

import re
from pathlib import Path

import pytest
import timm
import yaml
from paper_strategies import SGD
from shipped import (
    FINETUNE,
    FRAGMENTS,
    PAPER,
    RECIPES,
    ROOT,
    STAGED,
    each_paper_recipe,
    each_recipe,
    lineage,
    load,
    name_of,
    opening,
)
from timm.optim import get_optimizer_info, list_optimizers

import distill.models  # noqa: F401  registers the CIFAR ResNets with timm
from distill.recipe import dump_recipe, load_recipe, recipe_fingerprint


@each_recipe
def test_recipe_loads_and_its_dump_is_the_same_recipe(path: Path, tmp_path: Path) -> None:
    recipe = load(path)
    (tmp_path / "dump.yaml").write_text(dump_recipe(recipe))
    again = load_recipe(tmp_path / "dump.yaml")
    assert again == recipe
    assert recipe_fingerprint(again) == recipe_fingerprint(recipe)


def test_names_are_unique() -> None:
    names = [load(path).name for path in RECIPES]
    assert len(set(names)) == len(names)


def test_fragments_say_so_and_are_used() -> None:
    assert {file for path in RECIPES for file in lineage(path)} == {*RECIPES, *FRAGMENTS}
    for path in FRAGMENTS:
        assert "Fragment" in opening(path), path
        assert not {"name", "description"} & yaml.safe_load(path.read_text()).keys(), path


@each_paper_recipe
def test_recipe_opens_with_its_claim(path: Path) -> None:
    recipe, comment = load(path), opening(path)
    assert recipe.name == name_of(path), "a run lands in runs/<the recipe's own path>"
    assert recipe.description
    assert re.match(r"# Table \d+", comment)
    assert re.search(
        rf"^# Command: .* -m distill train recipes/{recipe.name}\.yaml$", comment, re.MULTILINE
    )
    expected, measured = (
        comment.partition("# Hardware: ")[2].partition("# Expected: ")[2].split("# Measured: ")
    )
    assert measured.strip()
    top1 = expected.split("ReaL")[0]
    for student in recipe.students:
        assert re.search(rf"(?<![\w-]){student}\s+\d\d\.\d\d\b", top1), (
            f"no expected top-1 for {student}"
        )


def test_masked_pretraining_is_that_of_its_authors() -> None:
    """The released settings of ConvNeXt V2: rates of 1.5e-4 and 8e-4 for 256 images."""
    before, after = (
        load(ROOT / f"fcmae/convnextv2_t_{name}.yaml") for name in ("800ep", "finetune_300ep")
    )
    for recipe, rate, batch, betas in (
        (before, 1.5e-4, 4096, [0.9, 0.95]),
        (after, 8e-4, 1024, None),
    ):
        assert re.match("# Table 10", opening(ROOT / f"{recipe.name}.yaml"))
        (student,) = recipe.students.values()
        assert recipe.train.batch_size_global == batch
        assert student.optimizer.lr == pytest.approx(rate * batch / 256)
        assert student.optimizer.weight_decay == 0.05
        assert student.optimizer.args.get("betas") == betas
        assert str(student.schedule.warmup) == "40 epochs"
    masked = before.students["fcmae"].objective.masked
    assert masked is not None
    assert masked.num_visible(49) == 19
    assert after.students["tuned"].weights == f"{before.output_dir}/best/fcmae/model.safetensors"


@pytest.mark.parametrize("path", FINETUNE, ids=lambda p: p.stem)
def test_large_models_are_trained_sharded_with_layer_decay(path: Path) -> None:
    recipe, comment = load(path), opening(path)
    assert recipe.name == name_of(path)
    assert re.search(
        rf"^# Command: .* -m distill train recipes/{recipe.name}\.yaml$", comment, re.MULTILINE
    )
    assert "# Measured:  not run" in comment
    assert recipe.train.zero_stage in (1, 2)
    for student in recipe.students.values():
        assert student.optimizer.name == "adamw"
        assert 0 < student.optimizer.args["layer_decay"] < 1
        assert student.grad_checkpointing
        assert student.ema.decays


@each_recipe
def test_launch_files_in_the_comments_are_there(path: Path) -> None:
    for file in re.findall(r"--config_file (\S+)", opening(path)):
        assert (ROOT.parent / file).is_file(), file


@pytest.mark.parametrize("path", PAPER + STAGED, ids=lambda p: p.stem)
def test_overrides_in_the_comments_load(path: Path) -> None:
    for file in lineage(path):
        comments = "\n".join(line for line in file.read_text().splitlines() if line.startswith("#"))
        for override in re.findall(
            r"(?<![\w.])(?:students?|stages|teacher|data|train)\.[\w.-]+=[\w./-]+", comments
        ):
            key, value = override.rstrip(".").split("=")
            if value not in ("LR", "WD", ""):
                assert load_recipe(path, [f"{key}={value}"]) != load(path), override


def test_models_and_optimizers_are_known_to_timm() -> None:
    tags, optimizers = set(timm.list_pretrained()), set(list_optimizers())
    for path in PAPER:
        recipe = load(path)
        for student in recipe.students.values():
            assert timm.is_model(student.model), f"{path}: {student.model}"
            assert student.weights is None, "the paper's students start from scratch"
            assert student.optimizer.name in optimizers
        if recipe.teacher is not None:
            assert recipe.teacher.model is not None
            assert timm.is_model(recipe.teacher.model.partition(".")[0]), (
                f"{path}: {recipe.teacher.model}"
            )
            if recipe.teacher.weights == "pretrained":
                assert recipe.teacher.model in tags, f"{path}: {recipe.teacher.model}"
            else:
                maker = load(recipe.teacher.weights.removeprefix("runs/"))
                assert maker.output_dir == recipe.teacher.weights
                assert [s.model for s in maker.students.values()] == [recipe.teacher.model]
    assert get_optimizer_info(SGD).defaults == {"nesterov": False}
