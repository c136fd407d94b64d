"""The layout, checked by reading the source: imports point down, files stay short, no name hides
what a file is about.

A place is a file or package directly under distill/. It imports itself and lower layers, wherever
in a file the import stands.
"""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "distill"

# A new place is entered here first: its layer is a decision, not a finding.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "processes", "rng"}),
    frozenset({"console", "files", "recipe"}),
    frozenset({"checkpoint", "data", "losses"}),
    frozenset({"engine", "models"}),
    frozenset({"datatools", "evaluation"}),
    frozenset({"student"}),
    frozenset({"training"}),
    frozenset({"cli", "doctor", "init", "release"}),
    frozenset({"__main__"}),
)
# The same within training/.
TRAINING: tuple[frozenset[str], ...] = (
    frozenset({"clock", "inputs", "live_losses", "output_folder", "screen", "share"}),
    frozenset({"plan", "rundir"}),
    frozenset({"header", "logging", "streams"}),
    frozenset({"build", "evaluations", "run_state", "summary"}),
    frozenset({"check", "loop"}),
)
MAX_LOOSE_MODULES = 8
# Pairs of places of which one imports the other.
MAX_ARROWS = 97

MAX_LINES = 400  # about 300 is the aim
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}

FILES = sorted(PACKAGE.rglob("*.py"))


def layer_of(place: str, layers: Sequence[frozenset[str]]) -> int | None:
    return next((level for level, places in enumerate(layers) if place in places), None)


def place_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(source: str, package: str) -> Iterator[str]:
    """The dotted names under distill that a source imports; of `from a import b` it is "a.b", since
    b may be a module.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith("distill."))


def import_faults(
    place: str, modules: Sequence[str], layers: Sequence[frozenset[str]] = LAYERS, root: str = ""
) -> list[str]:
    """What a place imports and may not, a sentence each; `root` is the package that it is in."""
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
    """Calls of getattr with a default, for a key of a recipe, on a recipe or a part of one: they
    swallow a typo.
    """
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


def imports_of(path: Path) -> list[str]:
    package = ".".join(("distill", *path.relative_to(PACKAGE).parent.parts))
    return list(imported_modules(path.read_text(), package))


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
    arrows = {
        (place_of(path), target)
        for path in FILES
        for module in imports_of(path)
        if (target := module.split(".")[1]) != place_of(path) and not target.startswith("__")
    }
    assert len(arrows) <= MAX_ARROWS


def test_the_package_itself_imports_nothing() -> None:
    assert list(imported_modules((PACKAGE / "__init__.py").read_text(), "distill")) == []


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
        ("training", "from distill.checkpoint import save\nimport torch", True),
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
    import tomllib

    listed = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    there = {
        ".".join(path.parent.relative_to(PACKAGE.parent).parts)
        for path in PACKAGE.rglob("__init__.py")
    }
    assert set(listed) == there | {"distill._launchers", "distill._recipes"}
