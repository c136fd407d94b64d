"""Finds and reads recipe files: `extends`, overrides, validation."""

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from distill.errors import InputError, did_you_mean
from distill.recipe.defaults import fill_defaults
from distill.recipe.explain import Tree, explain
from distill.recipe.fingerprint import recipe_fingerprint
from distill.recipe.notes import rate_notes
from distill.recipe.overrides import apply_overrides, refuse_unknown_removals
from distill.recipe.resolve import merge, resolve_stages, resolve_students, resolve_teachers
from distill.recipe.schema import Recipe
from distill.recipe.text import TextError, dump, parse, read_text
from distill.recipe.warmups import fit_warmups, mark_shipped

# Folders of recipes/ with files that other recipes extend.
_FRAGMENTS = ("strategies", "parts")
_STUDIES = "studies"  # the folder of recipes/ with study files, which are no recipes
_MAX_EXTENDS = 20


def recipes_dir() -> Path:
    """The folder of the package's recipes: in the package if installed, else in the checkout."""
    inside = Path(str(resources.files("distill"))) / "_recipes"
    return inside if inside.is_dir() else Path(__file__).resolve().parents[2] / "recipes"


def shipped_recipes() -> list[str]:
    """The names of the complete recipes of the package, as `find_recipe` accepts them."""
    return [name for name in shipped_files() if name.partition("/")[0] not in _FRAGMENTS]


def shipped_files() -> list[str]:
    """The names of all recipes and parts of recipes in recipes/, as `extends` accepts them."""
    paths = (path.relative_to(recipes_dir()) for path in recipes_dir().rglob("*.yaml"))
    return sorted(path.with_suffix("").as_posix() for path in paths if path.parts[0] != _STUDIES)


def shipped_studies() -> list[str]:
    """The names of the studies of the package, as `distill study` accepts them."""
    return sorted(path.stem for path in (recipes_dir() / _STUDIES).glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """Finds a recipe by its path, by the folder of a run, or by the name of a recipe of the package
    ("quickstart/students"); .yaml may be left out.

    Raises:
        InputError: there is no such file; the message names the nearest recipe of the package.
    """
    path = _expanded(name)
    for candidate in (
        path,
        Path(f"{path}.yaml"),
        recipes_dir() / name,
        recipes_dir() / f"{name}.yaml",
        path / "recipe.yaml",
    ):
        if _is_file(candidate):
            return candidate
    if _exists(path) and path.is_dir():
        raise InputError(
            f"{name}: is a folder without recipe.yaml, so not a run; a recipe is a YAML file"
        )
    if _exists(path):
        raise InputError(
            f"{name}: is a pipe or a device; a recipe is a file, which a run reads several times"
        )
    raise InputError(
        f"no recipe {name[:200]!r}{did_you_mean(name[:200], shipped_recipes())}; 'distill recipe"
        " list' shows the recipes of the package"
    )


def _expanded(name: str) -> Path:
    """A path with ~ expanded, if that user exists."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (
        OSError,
        ValueError,
    ):  # the name is too long or contains NUL, or the folder is not readable
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


class _Files:
    """Reads a recipe file and the files that it extends, each file once.

    Attributes:
        shipped: the merged content of the files that belong to this package.
    """

    def __init__(self) -> None:
        self.shipped: Tree = {}
        self._read: dict[Path, Tree] = {}

    def tree(self, path: Path, seen: tuple[Path, ...] = ()) -> Tree:
        """Returns a file merged over the files that it extends, of which a later one wins."""
        path = path.resolve()
        if path in seen:
            raise InputError(
                f"{path}: extends itself through {' -> '.join(p.name for p in (*seen, path))}"
            )
        if len(seen) > _MAX_EXTENDS:
            raise InputError(
                f"{seen[0]}: extends files that extend others, more than {_MAX_EXTENDS} levels deep"
            )
        if path in self._read:
            return self._read[path]
        own = _read_file(path)
        bases = own.pop("extends", [])
        bases = [bases] if isinstance(bases, str) else bases
        if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
            raise InputError(f"{path}: extends should be a path or a list of paths, not {bases!r}")
        merged: Tree = {}
        for base in bases:
            merged = merge(merged, self.tree(_find_base(base, path), (*seen, path)))
        if path.is_relative_to(recipes_dir().resolve()):
            origin = path.relative_to(recipes_dir().resolve()).with_suffix("").as_posix()
            own = mark_shipped(own, origin)
            self.shipped = merge(self.shipped, own)
        if not seen:  # another file that this one is merged with may have such a student
            refuse_unknown_removals(merged, own, str(path))
        self._read[path] = merge(merged, own)
        return self._read[path]


def read_tree(path: Path) -> Tree:
    """Returns a file merged over the files that it extends."""
    return _Files().tree(path)


def _read_file(path: Path) -> Tree:
    """The content of one file, including `extends`."""
    try:
        tree = parse(read_text(path))
    except TextError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        kind = "list" if isinstance(tree, list) else type(tree).__name__
        content = "nothing" if tree is None else f"a {kind}"
        raise InputError(f"{path}: a recipe is a mapping of keys, and this file contains {content}")
    return tree


def _find_base(base: str, path: Path) -> Path:
    """The file with the name `base` that `path` extends."""
    own = path.parent / _expanded(base)
    for candidate in (own, recipes_dir() / base, recipes_dir() / f"{base}.yaml"):
        if _is_file(candidate):
            return candidate
    raise InputError(
        f"{path}: extends {base!r}, and {own}"
        f" {'is not a plain file' if _exists(own) else 'does not exist'}; nor is there such a file"
        f" in the package{did_you_mean(base, shipped_files())}"
    )


def read_recipe(name: str | Path, overrides: Iterable[str] = ()) -> tuple[Recipe, list[str]]:
    """Reads a recipe: `load_recipe`, with notes about decisions that its user should know.

    Args:
        name: the path of a YAML file, the folder of a run, or the name of a recipe of the package.
        overrides: changes of single keys, such as "train.budget=2 epochs".

    Returns:
        The recipe, and the notes, one sentence each.

    Raises:
        InputError: the recipe is not valid; the message has a line for each wrong key.
    """
    path = find_recipe(str(name))
    files = _Files()
    tree = {
        "name": path.absolute().resolve().parent.name if path.name == "recipe.yaml" else path.stem,
        **files.tree(path),
    }
    tree = resolve_teachers(resolve_students(apply_overrides(tree, overrides)))
    tree, notes = fill_defaults(tree)
    tree = resolve_stages(tree)
    notes += fit_warmups(tree)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        lines = [explain(detail, tree) for detail in error.errors()]
        raise InputError(
            f"{path}:\n" + "\n".join(f"  {line}" for line in dict.fromkeys(lines))
        ) from error
    return recipe, [*notes, *rate_notes(recipe, files.shipped)]


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Reads a recipe, with the files that it extends, and validates it.

    Args:
        name: the path of a YAML file, the folder of a run, or the name of a recipe of the package.
        overrides: changes of single keys, such as "train.budget=2 epochs".

    Returns:
        The complete recipe.

    Raises:
        InputError: the recipe is not valid; the message has a line for each wrong key.
    """
    return read_recipe(name, overrides)[0]


def dump_recipe(recipe: Recipe, *, ascii_only: bool = False) -> str:
    """Returns the complete recipe as YAML. `load_recipe` reads it back to an equal recipe."""
    return dump(recipe.model_dump(mode="json"), ascii_only=ascii_only)


def fingerprint_today(text: str) -> str:
    """The fingerprint of a recipe that an earlier version saved, with the defaults of this version
    for keys that are new. Empty if this version does not accept the recipe.
    """
    try:
        return recipe_fingerprint(Recipe.model_validate(parse(text)))
    except (ValidationError, TextError):
        return ""
