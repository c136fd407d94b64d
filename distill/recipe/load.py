"""Recipe files: `extends`, overrides, validation; errors name the key and the fix."""

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from distill.errors import InputError, did_you_mean
from distill.recipe.defaults import fill_defaults
from distill.recipe.explain import explain
from distill.recipe.identity import recipe_digest
from distill.recipe.notes import rate_notes
from distill.recipe.overrides import apply_overrides
from distill.recipe.resolve import (
    Tree,
    fit_warmups,
    mark_shipped,
    merge,
    resolve_stages,
    resolve_students,
)
from distill.recipe.schema import Recipe
from distill.recipe.text import TextError, dump, parse, read_text

# Folders of recipes/ that hold what recipes extend: strategies and parts of them.
_FRAGMENTS = ("strategies", "parts")
_MAX_EXTENDS = 20


def recipes_dir() -> Path:
    """The recipes that come with the package: beside it in a checkout, inside it when installed."""
    inside = Path(str(resources.files("distill"))) / "_recipes"
    return inside if inside.is_dir() else Path(__file__).resolve().parents[2] / "recipes"


def shipped_recipes() -> list[str]:
    """Names of the complete recipes that come with the package: what `find_recipe` takes. Fragments
    are left out.
    """
    paths = (path.relative_to(recipes_dir()) for path in recipes_dir().rglob("*.yaml"))
    return sorted(
        path.with_suffix("").as_posix() for path in paths if path.parts[0] not in _FRAGMENTS
    )


def shipped_files() -> list[str]:
    """Names of all files under recipes/: what `extends` takes."""
    return sorted(
        path.relative_to(recipes_dir()).with_suffix("").as_posix()
        for path in recipes_dir().rglob("*.yaml")
    )


def find_recipe(name: str) -> Path:
    """A recipe by path, or by its name among the shipped ones ("quickstart/students", with or
    without .yaml).

    Raises:
        InputError: there is no such file; names the nearest shipped recipe.
    """
    path = _at_home(name)
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
            f"{name}: a folder without recipe.yaml, so no run; a recipe is a YAML file"
        )
    if _exists(path):
        raise InputError(
            f"{name}: a pipe or a device; a recipe is a YAML file, which a run reads more than once"
        )
    raise InputError(
        f"no recipe {name[:200]!r}{did_you_mean(name[:200], shipped_recipes())}; 'distill recipe list'"
        " shows those that come with the package"
    )


def _at_home(name: str) -> Path:
    """A path, its ~ expanded where there is such a home."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long or with a NUL, a folder that may not be entered
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


class _Files:
    """A recipe file with what it extends, each file read once.

    Attributes:
        shipped: what the shipped files among them say, merged; a user's own words are not in it.
    """

    def __init__(self) -> None:
        self.shipped: Tree = {}
        self._read: dict[Path, Tree] = {}

    def tree(self, path: Path, seen: tuple[Path, ...] = ()) -> Tree:
        """One file with what it extends merged below it: a path relative to the file, or a list of
        them (later wins).
        """
        path = path.resolve()
        if path in seen:
            raise InputError(
                f"{path}: extends itself through {' -> '.join(p.name for p in (*seen, path))}"
            )
        if len(seen) > _MAX_EXTENDS:
            raise InputError(
                f"{seen[0]}: extends files that extend others, more than {_MAX_EXTENDS} deep"
            )
        if path in self._read:
            return self._read[path]
        own = _read_file(path)
        bases = own.pop("extends", [])
        bases = [bases] if isinstance(bases, str) else bases
        if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
            raise InputError(f"{path}: extends is a path or a list of paths, not {bases!r}")
        merged: Tree = {}
        for base in bases:
            merged = merge(merged, self.tree(_find_base(base, path), (*seen, path)))
        if path.is_relative_to(recipes_dir().resolve()):
            origin = path.relative_to(recipes_dir().resolve()).with_suffix("").as_posix()
            own = mark_shipped(own, origin)
            self.shipped = merge(self.shipped, own)
        self._read[path] = merge(merged, own)
        return self._read[path]


def read_tree(path: Path) -> Tree:
    """One file with what it extends merged below it."""
    return _Files().tree(path)


def _read_file(path: Path) -> Tree:
    """What one file says, `extends` included."""
    try:
        tree = parse(read_text(path))
    except TextError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        holds = (
            "nothing"
            if tree is None
            else f"a {'list' if isinstance(tree, list) else type(tree).__name__}"
        )
        raise InputError(f"{path}: a recipe is a mapping of keys, and this file holds {holds}")
    return tree


def _find_base(base: str, path: Path) -> Path:
    """The file that `path` extends under this name."""
    own = path.parent / _at_home(base)
    for place in (own, recipes_dir() / base, recipes_dir() / f"{base}.yaml"):
        if _is_file(place):
            return place
    raise InputError(
        f"{path}: extends {base!r}, and {own}"
        f" {'is no plain file' if _exists(own) else 'does not exist'}, nor a shipped recipe of that"
        f" name{did_you_mean(base, shipped_files())}"
    )


def read_recipe(name: str | Path, overrides: Iterable[str] = ()) -> tuple[Recipe, list[str]]:
    """Read, extend, override, validate; and what was decided on the way that its user should know,
    a sentence each.

    Raises:
        InputError: what is wrong, a line a key, with the nearest known key.
    """
    path = find_recipe(str(name))
    files = _Files()
    tree = {
        "name": path.parent.name if path.name == "recipe.yaml" else path.stem,
        **files.tree(path),
    }
    tree, notes = fill_defaults(resolve_students(apply_overrides(tree, overrides)))
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
    """`read_recipe` without the notes."""
    return read_recipe(name, overrides)[0]


def dump_recipe(recipe: Recipe, *, ascii_only: bool = False) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back to an equal one."""
    return dump(recipe.model_dump(mode="json"), ascii_only=ascii_only)


def digest_today(text: str) -> str:
    """The digest of a resolved recipe that an earlier version saved, with this version's defaults
    for keys it did not know.

    Empty where this version no longer takes it.
    """
    try:
        return recipe_digest(Recipe.model_validate(parse(text)))
    except (ValidationError, TextError):
        return ""
