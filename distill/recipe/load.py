"""Recipe files: YAML with `extends`, deep merge, dotted overrides, errors that name the key and the mend."""

import re
from collections.abc import Hashable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from distill.errors import InputError, nearest
from distill.recipe.explain import DISCRIMINATORS, explain
from distill.recipe.identity import recipe_digest
from distill.recipe.schema import Recipe
from distill.recipe.stages import STAGE_DATA, STAGE_STUDENT

# Folders of recipes/ that hold what recipes extend: strategies and parts of them.
_FRAGMENTS = ("strategies", "parts")

Tree = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number (YAML 1.1 wants 1.0e-3) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if not isinstance(key, Hashable):
                continue  # refused below
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def recipes_dir() -> Path:
    """The recipes that come with the package: beside it in a checkout, inside it when installed."""
    inside = Path(str(resources.files("distill"))) / "_recipes"
    return inside if inside.is_dir() else Path(__file__).resolve().parents[2] / "recipes"


def shipped_recipes() -> list[str]:
    """Names of the complete recipes that come with the package: what `find_recipe` takes. Fragments are left out."""
    paths = (path.relative_to(recipes_dir()) for path in recipes_dir().rglob("*.yaml"))
    return sorted(path.with_suffix("").as_posix() for path in paths if path.parts[0] not in _FRAGMENTS)


def find_recipe(name: str) -> Path:
    """A recipe by path, or by its name among the shipped ones ("quickstart/students", with or without .yaml).

    Raises:
        InputError: there is no such file; names the nearest shipped recipe.
    """
    for candidate in (
        Path(name),
        Path(f"{name}.yaml"),
        recipes_dir() / name,
        recipes_dir() / f"{name}.yaml",
        Path(name) / "recipe.yaml",
    ):
        if candidate.is_file():
            return candidate
    if Path(name).is_dir():
        raise InputError(f"{name}: a folder without recipe.yaml, so no run; a recipe is a YAML file")
    raise InputError(
        f"no recipe {name!r}{nearest(name, shipped_recipes())}; 'distill recipe list' shows those that come with the package"
    )


def read_tree(path: Path, _seen: tuple[Path, ...] = ()) -> Tree:
    """One file with what it extends merged below it. `extends` is a path relative to the file, or a list of them (later wins)."""
    path = path.resolve()
    if path in _seen:
        raise InputError(f"{path}: extends itself through {' -> '.join(p.name for p in (*_seen, path))}")
    try:
        tree = yaml.load(path.read_text(), Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {_yaml_problem(error)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if not isinstance(tree, dict):
        holds = "nothing" if tree is None else f"a {'list' if isinstance(tree, list) else type(tree).__name__}"
        raise InputError(f"{path}: a recipe is a mapping of keys, and this file holds {holds}")
    bases = tree.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise InputError(f"{path}: extends is a path or a list of paths, not {bases!r}")
    merged: Tree = {}
    for base in bases:
        places = (path.parent / base, recipes_dir() / base, recipes_dir() / f"{base}.yaml")
        base_path = next((place for place in places if place.is_file()), None)
        if base_path is None:
            raise InputError(
                f"{path}: extends {base!r}, and {places[0]} does not exist, nor a shipped recipe of that name"
            )
        merged = merge(merged, read_tree(base_path, (*_seen, path)))
    return merge(merged, tree)


def _yaml_problem(error: yaml.YAMLError) -> str:
    """Where and what, in a line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """`over` laid on `base`: mappings merge key by key, all else replaces; another `kind` or `loss` replaces its mapping whole."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _another_kind(old, value):
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def _another_kind(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return any(key in new and key in old and new[key] != old[key] for key in DISCRIMINATORS)


def apply_overrides(tree: Tree, overrides: Iterable[str]) -> Tree:
    """Lay "a.b=c" on the tree, the value read as YAML.

    Raises:
        InputError: no "=", an empty key, a value that is not YAML, or one that no stage would follow, since each says it for itself.
    """
    for override in overrides:
        before = tree
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise InputError(
                f"override {override!r}: write key=value with dots between keys, as in train.batch_size_global=256"
            )
        if key == "extends":
            raise InputError(f"override {override!r}: extends stands in a recipe file; overrides change single keys")
        try:
            value = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as error:
            raise InputError(f"override {override!r}: the value is not valid YAML: {_yaml_problem(error)}") from error
        parts = key.split(".")
        students = tree.get("students")
        if parts[0] == "students" and len(parts) > 2 and isinstance(students, Mapping) and parts[1] not in students:
            raise InputError(
                f"override {override!r}: no student {parts[1]!r}{nearest(parts[1], map(str, students))}; "
                f"students.{parts[1]}={{}} adds one"
            )
        if parts[0] == "stages" and len(parts) > 2:
            tree = {
                **tree,
                "stages": _override_stage(tree.get("stages"), override, parts[1], _nested(parts[2:], value)),
            }
        else:
            tree = merge(tree, _nested(parts, value))
        _refuse_without_effect(before, tree, override, parts, value)
    return tree


def _refuse_without_effect(before: Tree, after: Tree, override: str, parts: list[str], value: Any) -> None:
    """Of a recipe in stages, what a stage says for itself is laid over what the run says: another value there changes nothing."""
    stageable = {"data": (1, STAGE_DATA), "student": (1, STAGE_STUDENT), "students": (2, STAGE_STUDENT)}
    inner = parts[2:] if parts[0] == "stages" else parts
    at, keys = stageable.get(inner[0] if inner else "", (0, ()))
    if not before.get("stages") or len(inner) <= at or inner[at] not in keys:
        return
    stages = [resolve_stages(resolve_students(tree))["stages"] for tree in (before, after)]
    if stages[0] != stages[1]:
        return
    places = []
    for number, stage in enumerate(stages[1]):
        if parts[0] != "stages" or parts[1] in (stage.get("name"), str(number)):
            students = stage["students"]
            chosen = [students.get(inner[1])] if inner[0] == "students" else list(students.values())
            places += [stage["data"]] if inner[0] == "data" else chosen
    if not any(_at(place, inner[at:]) == value for place in places):
        which = {"data": "data.", "student": "students.NAME."}.get(inner[0], f"students.{inner[1]}.")
        raise InputError(
            f"override {override!r}: no stage follows it, since each says so for itself: write stages.NAME.{which}{'.'.join(inner[at:])}=..."
        )


def _at(node: Any, parts: list[str]) -> Any:
    for part in parts:
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _nested(parts: list[str], value: Any) -> Any:
    for part in reversed(parts):
        value = {part: value}
    return value


def _override_stage(stages: Any, override: str, name: str, value: Tree) -> list[Any]:
    """The stages with a value laid over one, which is named, or numbered from 0."""
    known = [str(stage.get("name")) for stage in stages or () if isinstance(stage, Mapping)]
    if not isinstance(stages, list) or len(known) != len(stages):
        raise InputError(f"override {override!r}: this recipe has no list of stages")
    if name not in known and not (name.isdigit() and int(name) < len(known)):
        raise InputError(
            f"override {override!r}: no stage {name!r}{nearest(name, known)}; there are {', '.join(known) or 'none'}"
        )
    index = known.index(name) if name in known else int(name)
    return [merge(stage, value) if i == index else stage for i, stage in enumerate(stages)]


def resolve_stages(tree: Tree) -> Tree:
    """Lay what a stage says over the run's data and students, so that each stage is complete."""
    stages, students, data = tree.get("stages"), tree.get("students"), tree.get("data")
    if not isinstance(stages, list) or not isinstance(students, Mapping) or not isinstance(data, Mapping):
        return tree
    return {**tree, "stages": [_resolved(stage, students, data) for stage in stages]}


def _resolved(stage: Any, students: Mapping[str, Any], data: Mapping[str, Any]) -> Any:
    if not isinstance(stage, Mapping):
        return stage
    shared, own, own_data = stage.get("student") or {}, stage.get("students") or {}, stage.get("data") or {}
    if not all(isinstance(part, Mapping) for part in (shared, own, own_data)):
        return stage  # refused by the schema
    base = {key: data[key] for key in STAGE_DATA if key in data}
    if isinstance(own_data.get("train"), Mapping) and "kind" in own_data["train"]:
        # Another data set: what the run says of its own, and which part of it to take, says nothing here.
        base = {key: value for key, value in base.items() if key not in ("train", "fraction", "keep_classes")}
    complete = {}
    for name, student in students.items():
        if isinstance(student, Mapping):
            learning = {key: student[key] for key in STAGE_STUDENT if key in student}
            complete[name] = merge(merge(learning, shared), own.get(name) or {})
    for name in own:
        if name not in students:
            raise InputError(
                f"stages.{stage.get('name')}.students.{name}: no such student{nearest(str(name), map(str, students))}; there are {', '.join(map(str, students))}"
            )
    return {
        **{key: value for key, value in stage.items() if key != "student"},
        "data": merge(base, own_data),
        "students": complete,
    }


def resolve_students(tree: Tree) -> Tree:
    """Lay each of `students` over the shared `student`, and drop the shared one."""
    shared = tree.get("student", {})
    students = tree.get("students", {})
    if not isinstance(shared, Mapping) or not isinstance(students, Mapping):
        raise InputError("student and students are mappings: student holds what all share, students one mapping a name")
    resolved = {
        name: merge(shared, own or {}) if isinstance(own, Mapping | None) else own for name, own in students.items()
    }
    return {**{k: v for k, v in tree.items() if k != "student"}, "students": resolved}


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read, extend, override, validate.

    Raises:
        InputError: what is wrong, a line a key, with the nearest known key.
    """
    path = find_recipe(str(name))
    tree = resolve_stages(resolve_students(apply_overrides(read_tree(path), overrides)))
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        lines = [explain(detail, tree) for detail in error.errors()]
        raise InputError(f"{path}:\n" + "\n".join(f"  {line}" for line in dict.fromkeys(lines))) from error


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back to an equal one."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def digest_today(text: str) -> str:
    """The digest of a resolved recipe that an earlier version saved, with this version's defaults for keys it did not know.

    Empty where this version no longer takes it.
    """
    try:
        return recipe_digest(Recipe.model_validate(yaml.load(text, Loader=_Loader)))
    except (ValidationError, yaml.YAMLError):
        return ""
