"""Overrides of single keys of a recipe: "a.b=c", with the value as YAML."""

from collections.abc import Iterable, Mapping
from typing import Any

from distill.errors import InputError, did_you_mean
from distill.recipe.explain import Tree
from distill.recipe.resolve import merge, resolve_stages, resolve_students
from distill.recipe.stages import STAGE_DATA, STAGE_STUDENT
from distill.recipe.text import MAX_DEPTH, TextError, parse

_NAMED = {"students": "student", "teachers": "teacher"}  # sections whose keys are names


def apply_overrides(tree: Tree, overrides: Iterable[str]) -> Tree:
    """Returns the tree with overrides such as "a.b=c" applied, values read as YAML.

    Raises:
        InputError: there is no "=", a key is empty, a value is not YAML, or an override has no
            effect because every stage sets the same key.
    """
    for override in map(_in_utf8, overrides):
        before = tree
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise InputError(
                f"override {override!r}: write key=value with dots between keys, as in"
                " train.batch_size_global=256"
            )
        if key == "extends":
            raise InputError(
                f"override {override!r}: extends belongs in a recipe file; overrides change single"
                " keys"
            )
        if not text.strip():
            raise InputError(
                f"override {override!r}: no value: write {key}=null for none, or {key}='\"\"' for"
                " an empty text"
            )
        try:
            value = parse(text)
        except TextError as error:
            raise InputError(
                f"override {override!r}: the value is not valid YAML: {error}"
            ) from error
        parts = key.split(".")
        refuse_unknown_removals(tree, _nested(parts, value), f"override {override!r}")
        if len(parts) > MAX_DEPTH:
            raise InputError(
                f"override with {len(parts)} nested keys: a recipe has at most {MAX_DEPTH} levels"
            )
        _refuse_unknown_name(tree, override, parts)
        if parts[0] == "stages" and len(parts) > 2:
            tree = {
                **tree,
                "stages": _override_stage(
                    tree.get("stages"), override, parts[1], _nested(parts[2:], value)
                ),
            }
        else:
            tree = merge(tree, _nested(parts, value))
        _refuse_without_effect(before, tree, override, parts, value)
    return tree


def refuse_unknown_removals(tree: Tree, changes: Tree, where: str) -> None:
    """Raises InputError if changes remove a student or a teacher that a tree does not have.

    Args:
        where: the file or override with the changes, for messages.
    """
    for key, what in _NAMED.items():
        members, own = tree.get(key), changes.get(key)
        if not isinstance(own, Mapping):
            continue
        known = list(members) if isinstance(members, Mapping) else []
        for name, value in own.items():
            if value is None and name not in known:
                raise InputError(
                    f"{where}: {key}.{name}: null removes a {what}, and there is none of this"
                    f" name{did_you_mean(str(name), map(str, known))}"
                )


def _refuse_unknown_name(tree: Tree, override: str, parts: list[str]) -> None:
    """Raises InputError for an override of a key of a student or a teacher that a tree does not
    have.
    """
    members = tree.get(parts[0]) if parts[0] in _NAMED and len(parts) > 2 else None
    if not isinstance(members, Mapping):
        return
    known = [name for name, own in members.items() if own is not None]
    if parts[1] not in known:
        raise InputError(
            f"override {override!r}: no {_NAMED[parts[0]]} {parts[1]!r}"
            f"{did_you_mean(parts[1], known)}; {parts[0]}.{parts[1]}={{}} adds one"
        )


def _in_utf8(word: str) -> str:
    """Decodes a word of the command line as UTF-8, if an ASCII locale has not decoded it."""
    try:
        return word.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        return word  # the YAML parser refuses it


def _refuse_without_effect(
    before: Tree, after: Tree, override: str, parts: list[str], value: Any
) -> None:
    """Raises InputError for an override of the run that every stage overrides, so that it changes
    nothing.
    """
    stageable = {
        "data": (1, STAGE_DATA),
        "student": (1, STAGE_STUDENT),
        "students": (2, STAGE_STUDENT),
    }
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
        which = {"data": "data.", "student": "students.NAME."}.get(
            inner[0], f"students.{inner[1]}."
        )
        raise InputError(
            f"override {override!r}: has no effect, since every stage sets this key: write"
            f" stages.NAME.{which}{'.'.join(inner[at:])}=..."
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
    """Returns the stages with an override applied to one, given by its name or its index from 0."""
    known = [str(stage.get("name")) for stage in stages or () if isinstance(stage, Mapping)]
    if not isinstance(stages, list) or len(known) != len(stages):
        raise InputError(f"override {override!r}: this recipe has no list of stages")
    if name not in known and not (name.isdigit() and int(name) < len(known)):
        raise InputError(
            f"override {override!r}: no stage {name!r}{did_you_mean(name, known)}; there are"
            f" {', '.join(known) or 'none'}"
        )
    index = known.index(name) if name in known else int(name)
    return [merge(stage, value) if i == index else stage for i, stage in enumerate(stages)]
