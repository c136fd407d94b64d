"""The recipes of the package, and what their files contain."""

from functools import cache
from pathlib import Path

import pytest
import yaml

from distill.recipe import load_recipe
from distill.recipe.load import recipes_dir

ROOT = recipes_dir()


FRAGMENTS = sorted([*(ROOT / "parts").glob("*.yaml"), *(ROOT / "strategies").glob("*.yaml")])


TRAIN_IMAGES = {"imagenet1k": 1_281_167, "cifar100": 50_000}


PAPER = [path for folder in TRAIN_IMAGES for path in sorted((ROOT / folder).glob("*.yaml"))]


QUICKSTART = sorted((ROOT / "quickstart").glob("*.yaml"))


FINETUNE = sorted((ROOT / "finetune").glob("*.yaml"))


FCMAE = sorted((ROOT / "fcmae").glob("*.yaml"))


STAGED = sorted((ROOT / "imagenet21k").glob("*.yaml"))


MINIATURE = sorted((ROOT / "miniature").glob("*.yaml"))


RECIPES = PAPER + QUICKSTART + FINETUNE + FCMAE + STAGED + MINIATURE


load = cache(load_recipe)  # recipes are frozen


each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.relative_to(ROOT).as_posix())


each_staged_recipe = pytest.mark.parametrize("path", STAGED, ids=lambda p: p.stem)


each_paper_recipe = pytest.mark.parametrize("path", PAPER, ids=lambda p: p.stem)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix()


def opening(path: Path) -> str:
    """The comment a recipe opens with."""
    lines = path.read_text().splitlines()
    return "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


def lineage(path: Path) -> list[Path]:
    """A recipe and all that it extends."""
    bases = yaml.safe_load(path.read_text()).get("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    return [path, *(found for base in bases for found in lineage((path.parent / base).resolve()))]
