"""The house, held by reading the source: imports point down, files stay short, no name hides what a
file is about.

A room is a file or package directly under distill/. It imports itself and lower floors, wherever in
a file the import stands.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "distill"

# A new room is entered here first: which floor it stands on is a decision, not a finding.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "processes", "rng"}),
    frozenset({"recipe"}),
    frozenset(
        {"data", "models", "losses", "optim", "ema", "engine", "console", "clock", "output_folder"}
    ),
    frozenset({"checkpoint", "evaluate", "placement", "plan", "verdicts", "header"}),
    frozenset({"dealing", "export", "gate", "rundir", "screen"}),
    frozenset({"evaluation_views", "students"}),
    frozenset({"live"}),
    frozenset({"build", "journal", "saving", "summary"}),
    frozenset({"evaluations"}),
    frozenset({"check", "judge", "prepare", "train"}),
    frozenset({"doctor", "init"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
# Imports on one floor that are allowed: from a room, of a module or what is below it.
ALLOWED = {
    ("losses", "distill.data.targets"),
    ("models", "distill.data.label_sets"),
    ("models", "distill.data.class_names"),
}

MAX_LINES = 400  # about 300 is the aim
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}

FILES = sorted(PACKAGE.rglob("*.py"))


def floor_of(room: str) -> int | None:
    return next((level for level, rooms in enumerate(FLOORS) if room in rooms), None)


def room_of(path: Path) -> str:
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


def import_faults(room: str, source: str, package: str) -> list[str]:
    """What a source in a room imports and may not, a sentence each."""
    level = floor_of(room)
    if level is None:
        return [f"{room} is a new room: decide its floor in FLOORS"]
    faults = []
    for module in imported_modules(source, package):
        target = module.split(".")[1]
        if target == room or target.startswith("__version"):
            continue
        if any(room == who and f"{module}.".startswith(f"{what}.") for who, what in ALLOWED):
            continue
        target_level = floor_of(target)
        if target_level is None:
            faults.append(f"{module}: {target} stands on no floor")
        elif target_level >= level:
            faults.append(
                f"{module}: {room} stands on floor {level} and {target} on floor {target_level}"
            )
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


def test_there_is_something_to_read() -> None:
    assert {"errors", "recipe", "rng"} <= {room_of(path) for path in FILES}
    assert {"batch_size_global", "weight_decay", "students"} <= recipe_keys()


@pytest.mark.parametrize(
    "path", [path for path in FILES if path != PACKAGE / "__init__.py"], ids=relative
)
def test_imports_point_down(path: Path) -> None:
    package = ".".join(("distill", *path.relative_to(PACKAGE).parent.parts))
    assert import_faults(room_of(path), path.read_text(), package) == []


def test_the_package_itself_imports_no_room() -> None:
    assert list(imported_modules((PACKAGE / "__init__.py").read_text(), "distill")) == []


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_is_short_well_named_and_finished(path: Path) -> None:
    source = path.read_text()
    num_lines = len(source.splitlines())
    assert num_lines <= MAX_LINES, f"{num_lines} lines: a room that wants a wall"
    assert not BANNED_NAMES & {
        path.stem,
        *path.relative_to(PACKAGE).parent.parts,
    }, "name the file after what it does"
    assert "TODO" not in source
    assert swallowed_settings(source, recipe_keys()) == []


@pytest.mark.parametrize(
    ("room", "source", "allowed"),
    [
        ("losses", "from distill.recipe.schema import KL", True),
        ("losses", "from distill import rng", True),
        ("losses", "from distill import __version__", True),
        ("losses", "from distill.losses.kl import divergence", True),
        ("losses", "from .kl import divergence", True),
        ("losses", "from distill.data.targets import Targets", True),
        ("losses", "from distill.data import targets", True),
        ("losses", "from distill.data import targets_of", False),
        ("losses", "from distill.data.loader import Batch", False),
        ("losses", "from ..data.loader import Batch", False),
        ("losses", "import distill.engine", False),
        ("losses", "def late():\n    from distill.train import train", False),
        ("errors", "from distill.rng import hash64", False),
        ("recipe", "from distill.data import sources", False),
        ("data", "from distill.data2 import sources", False),
        ("evaluate", "from distill import checkpoint", False),
        ("train", "from distill.checkpoint import save\nimport torch", True),
        ("train", "from distill.__main__ import main", False),
        ("attic", "import torch", False),
    ],
)
def test_the_reader_of_imports_sees(room: str, source: str, allowed: bool) -> None:
    assert (import_faults(room, source, f"distill.{room}") == []) is allowed


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
