"""Imports point down, files stay short, a name says what its file is about, and the figure of the
layout is current.

tests/layout.py has the layers and reads the imports.
"""

import ast
import re
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from layout import (
    FILES,
    LAYERS,
    PACKAGE,
    PAGE,
    TRAINING,
    arrows,
    imported_modules,
    imports_of,
    layer_of,
    place_of,
    with_figure,
)

MAX_LOOSE_MODULES = 8
# Pairs of places of which one imports the other.
MAX_ARROWS = 127

MAX_LINES = 400  # about 300 is the aim
# Packages whose __init__.py says of each module what it is for.
LISTING = ("checkpoint", "datatools", "release/similarity", "report", "study", "training")
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def import_faults(
    place: str, modules: Sequence[str], layers: Sequence[frozenset[str]] = LAYERS, root: str = ""
) -> list[str]:
    """Returns a sentence for each import that a place may not have.

    Args:
        root: The package that the place is in, relative to distill, with a dot behind it.
    """
    level = layer_of(place, layers)
    if level is None:
        return [f"{place} is new: decide its layer"]
    faults = []
    prefix = f"distill.{root}"
    for module in modules:
        target = module.removeprefix(prefix).split(".")[0]
        if not module.startswith(prefix) or target == place or target.startswith("__version"):
            continue
        target_level = layer_of(target, layers)
        if target_level is None:
            faults.append(f"{module}: {target} is in no layer")
        elif target_level >= level:
            faults.append(f"{module}: {place} is in layer {level} and {target} in {target_level}")
    return faults


def swallowed_settings(source: str, settings: frozenset[str]) -> list[str]:
    """Returns the calls of getattr with a default that read a key of a recipe: they hide a typo."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(
                func=ast.Name(id="getattr"), args=[owner, ast.Constant(value=str(key)), _]
            ):
                if key in settings and {"recipe", "settings", "spec"} & set(
                    ast.unparse(owner).split(".")
                ):
                    found.append(f"line {node.lineno}: {ast.unparse(node)}")
            case _:
                pass
    return found


@cache
def recipe_keys() -> frozenset[str]:
    sections = (ast.parse(part.read_text()) for part in (PACKAGE / "recipe").glob("*.py"))
    return frozenset(
        field.target.id
        for part in sections
        for section in part.body
        if isinstance(section, ast.ClassDef)
        for field in section.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_there_is_something_to_read() -> None:
    assert {"errors", "recipe", "rng"} <= {place_of(path) for path in FILES}
    assert {"batch_size_global", "weight_decay", "students"} <= recipe_keys()


@pytest.mark.parametrize(
    "path", [path for path in FILES if path != PACKAGE / "__init__.py"], ids=relative
)
def test_imports_point_down(path: Path) -> None:
    assert import_faults(place_of(path), imports_of(path)) == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "training").glob("[a-z]*.py")), ids=relative)
def test_imports_point_down_in_training(path: Path) -> None:
    assert import_faults(path.stem, imports_of(path), TRAINING, "training.") == []


def test_the_layout_stays_small() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_LOOSE_MODULES
    assert sum(map(len, arrows().values())) <= MAX_ARROWS


def test_the_figure_is_current() -> None:
    page = PAGE.read_text()
    assert with_figure(page) == page, "refresh it: make docs"


def test_the_page_describes_each_place() -> None:
    described = re.findall(
        r"^\| `(\w+)/?` \| \S", PAGE.read_text().split("Beside the package:")[0], re.MULTILINE
    )
    assert sorted(described) == sorted(
        place_of(path) for path in PACKAGE.iterdir() if is_place(path)
    )


def is_place(path: Path) -> bool:
    return path.suffix == ".py" or (path / "__init__.py").exists()


def test_the_package_itself_imports_nothing_when_it_is_imported() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    run = [node for node in tree.body if ast.unparse(node).split(":")[0] != "if TYPE_CHECKING"]
    assert list(imported_modules(ast.unparse(ast.Module(run, [])), "distill")) == []


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_is_short_well_named_and_finished(path: Path) -> None:
    source = path.read_text()
    num_lines = len(source.splitlines())
    assert num_lines <= MAX_LINES, f"{num_lines} lines: split it"
    assert not BANNED_NAMES & {
        path.stem,
        *path.relative_to(PACKAGE).parent.parts,
    }, "name the file after what it does"
    assert "TODO" not in source
    assert swallowed_settings(source, recipe_keys()) == []


@pytest.mark.parametrize("package", LISTING)
def test_a_package_lists_its_modules(package: str) -> None:
    """A newcomer looks there for the file to open."""
    docstring = ast.get_docstring(ast.parse((PACKAGE / package / "__init__.py").read_text()))
    listed = re.findall(r"^(\w+) +\S", (docstring or "").split("\n\n")[1], re.MULTILINE)
    modules = [path.stem for path in (PACKAGE / package).glob("[a-z]*.py")]
    assert sorted(listed) == sorted(modules)


def test_the_files_of_tests_are_short() -> None:
    num_lines = {
        path: len(path.read_text().splitlines())
        for path in (PACKAGE.parent / "tests").rglob("*.py")
    }
    assert [str(path) for path, number in num_lines.items() if number > MAX_LINES] == []


@pytest.mark.parametrize(
    ("place", "source", "allowed"),
    [
        ("losses", "from distill.recipe.schema import KL", True),
        ("losses", "from distill import rng", True),
        ("losses", "from distill import __version__", True),
        ("losses", "from distill.losses.kl import divergence", True),
        ("losses", "from .kl import divergence", True),
        ("losses", "from distill.data.loading.loader import Batch", False),
        ("losses", "from ..data.loading.loader import Batch", False),
        ("losses", "import distill.engine", False),
        ("losses", "def late():\n    from distill.training.loop import train", False),
        ("errors", "from distill.rng import hash64", False),
        ("recipe", "from distill.data import sources", False),
        ("data", "from distill.data2 import sources", False),
        ("checkpoint", "from distill import data", False),
        ("training", "from distill.checkpoint.store import save\nimport torch", True),
        ("training", "from distill.__main__ import main", False),
        ("attic", "import torch", False),
    ],
)
def test_the_reader_of_imports_sees(place: str, source: str, allowed: bool) -> None:
    modules = list(imported_modules(source, f"distill.{place}"))
    assert (import_faults(place, modules) == []) is allowed


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("getattr(recipe, 'seed', 0)", True),
        ("getattr(recipe.train, 'batch_size_global', 256)", True),
        ("getattr(self.recipe.train, 'compile', False)", True),
        ("getattr(recipe, 'seed')", False),
        ("getattr(module, 'weight', None)", False),
        ("getattr(recipe, 'colour', None)", False),
    ],
)
def test_the_reader_of_settings_sees(source: str, found: bool) -> None:
    assert bool(swallowed_settings(source, recipe_keys())) is found


def test_every_package_is_in_the_wheel() -> None:
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {
        ".".join(path.parent.relative_to(PACKAGE.parent).parts)
        for path in PACKAGE.rglob("__init__.py")
    }
    assert set(settings["packages"]) == there | {"distill._launchers", "distill._recipes"}
