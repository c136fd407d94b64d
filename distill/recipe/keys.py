"""All keys of a recipe with their types, defaults and meanings, read from the schema, for the
terminal and for docs/recipes.md.
"""

import json
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from distill.errors import InputError, did_you_mean
from distill.recipe.duration import DurationValue
from distill.recipe.schema import Recipe
from distill.recipe.stages import StageDataSpec, StageStudentSpec
from distill.recipe.values import Within

# Keys that a resolved recipe must have, with the defaults that are filled in if a file lacks them.
FILLED = {
    "name": "the file's name",
    "students": "one, from `student`",
    "student.objective": "ce + the teacher's kl",
    "student.optimizer": "adamw",
    "student.optimizer.name": "adamw",
    "student.optimizer.lr": "0.001",
}
_REPEATED = (StageDataSpec, StageStudentSpec)  # their keys are listed as keys of the run
_HIGHEST_SHOWN = 1e30  # bounds from here on are those of float32
EXTENDS = (
    "The recipe, or a list of recipes, that this one is based on: recipes of the package by name,"
    " others by path. A later one in the list overrides an earlier one, and this one overrides all."
)


class Key(NamedTuple):
    """A key as it is written in an override. `name` is its last part; `default` is "required" if
    there is none.
    """

    path: str
    type: str
    default: str
    meaning: str

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


class Part(NamedTuple):
    """The keys of one mapping. `kind` says which one, if there are several ("kind: stream")."""

    path: str
    kind: str
    meaning: str
    keys: tuple[Key, ...]

    @property
    def title(self) -> str:
        return f"{self.path or 'recipe'}{f' ({self.kind})' if self.kind else ''}"


def each_part() -> Iterator[Part]:
    """All mappings of a recipe, each before the mappings in it."""
    yield from _parts(Recipe, "")


def each_key() -> Iterator[Key]:
    """All keys. A key that several kinds of a mapping have comes once for each kind."""
    for part in each_part():
        yield from part.keys


def parts_below(prefix: str) -> list[Part]:
    """The mappings with only those keys that are `prefix` or below it. `students.NAME` is the same
    as `student`, and `teachers.NAME` the same as `teacher`.

    Raises:
        InputError: there is no such key; the message names the nearest one.
    """
    wanted = prefix.rstrip(".").split(".")
    if wanted[0] == "students" and len(wanted) > 1:
        wanted = ["student", *wanted[2:]]
    if wanted[0] == "teachers" and len(wanted) > 1:
        wanted = ["teacher", *wanted[2:]]
    if wanted[0] == "stages" and len(wanted) > 2:
        wanted = ["stages", "NAME", *wanted[2:]]
    if wanted == [""]:
        return list(each_part())
    found = [
        part._replace(keys=keys)
        for part in each_part()
        if (keys := tuple(key for key in part.keys if key.path.split(".")[: len(wanted)] == wanted))
    ]
    if not found:
        known = sorted({key.path for key in each_key()} | {key.name for key in each_key()})
        raise InputError(
            f"no key {prefix!r}{did_you_mean('.'.join(wanted), known)}; 'distill recipe keys' lists"
            " all keys"
        )
    return found


def keys_named(name: str) -> list[str]:
    """The paths of all keys whose last part is `name`."""
    return list(dict.fromkeys(key.path for key in each_key() if key.name == name))


def _parts(model: type[BaseModel], path: str, kind: str = "") -> Iterator[Part]:
    keys, below = [], []
    if model is Recipe:
        keys.append(Key("extends", "text, or a list of texts", "null", EXTENDS))
    for name, field in model.model_fields.items():
        own = f"{path}.{name}" if path else name
        keys.append(_key(own, field))
        # The keys of `teacher`, which are listed there.
        models = [] if own == "teachers" else _models_in(field.annotation)
        inner = {"students": "student", "stages": "stages.NAME"}.get(own, own)
        for each in models:
            if each not in _REPEATED:
                tag = next((tag for tag in ("kind", "loss") if tag in each.model_fields), None)
                value = " | ".join(_literals(each.model_fields[tag])) if tag else ""
                below.append((each, inner, f"{tag}: {value}" if tag else ""))
    yield Part(path, kind, _sentence(model.__doc__), tuple(keys))
    for each, inner, which in below:
        yield from _parts(each, inner, which)


def _key(path: str, field: FieldInfo) -> Key:
    default = (
        field.get_default(call_default_factory=True, validated_data={})
        if not field.is_required()
        else PydanticUndefined
    )
    if path in FILLED:
        shown = FILLED[path]
    elif default is PydanticUndefined:
        shown = "required"
    elif isinstance(default, BaseModel):
        shown = "see below"
    else:
        shown = (
            str(default)
            if isinstance(default, DurationValue)
            else json.dumps(default, ensure_ascii=False)
        )
    return Key(path, _type(field.annotation, field.metadata), shown, _sentence(field.description))


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


def _literals(field: FieldInfo) -> list[str]:
    return [str(value) for value in get_args(field.annotation)]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _type(annotation: Any, metadata: Any = ()) -> str:
    """A type, in words for a user."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0], [*arguments[1:], *metadata])
    if origin in (Union, types.UnionType):
        some = [argument for argument in arguments if argument is not type(None)]
        text = (
            "mapping"
            if all(_models_in(each) for each in some)
            else " or ".join(_type(each, metadata) for each in some)
        )
        return f"{text} or null" if len(some) < len(arguments) else text
    if origin is Literal:
        return " | ".join(str(argument) for argument in arguments)
    if annotation is DurationValue:
        return "duration"
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return (
                "list of mappings" if _models_in(arguments[0]) else f"list: {_type(arguments[0])}"
            )
        return f"list of {len(arguments)} numbers"
    if origin is dict or _models_in(annotation):
        return "mapping"
    if annotation is bool:
        return "true | false"
    name = {int: "whole number", float: "number", str: "text"}[annotation]
    return f"{name}{_bounds(metadata)}" if annotation in (int, float) else name


def _bounds(metadata: Any) -> str:
    """Bounds as text, such as ", above 0, at most 1". Those of float32 are left out."""
    flat: list[Any] = []
    for item in metadata:
        flat += item.metadata if isinstance(item, FieldInfo) else [item]
    low, high, more = "", "", ""
    for item in flat:
        match item:
            case annotated_types.Ge(ge=value):
                low = f", at least {value}"
            case annotated_types.Gt(gt=value):
                low = f", above {value}"
            case annotated_types.Le(le=value):
                high = f", at most {value}"
            case annotated_types.Lt(lt=value):
                high = f", below {value}" if value != 2**63 else ", below 2^63"
            case annotated_types.MultipleOf(multiple_of=value):
                more = f", a multiple of {value}"
            case Within(high=most) if most < _HIGHEST_SHOWN:
                high = f", at most {most:g}" if most < 10_000 else f", at most {most:,.0f}"
    return low + high + more


def markdown() -> str:
    """docs/recipes.md."""
    lines = [_PREFACE]
    sources = {part.kind for part in each_part() if part.path == "data.train"}
    for part in each_part():
        if part.path == "data.eval" and part.kind in sources:
            continue  # the kinds of data.train
        lines += [f"## {part.title}", "", part.meaning, ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{key.path}` | {_cell(key.type)} | {_cell(key.default)} | {_cell(key.meaning)} |"
            for key in part.keys
        ]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


_PREFACE = """# Every key of a recipe

`make docs` generates this page from the schema; a test checks that it is current.
`distill recipe keys [PREFIX]` prints the same in a terminal.
`distill recipe keys --json-schema > recipe.schema.json` writes a schema for editors. With the first
line `# yaml-language-server: $schema=recipe.schema.json` in a recipe, an editor completes keys and
marks typos.

- A **duration** is a number and a unit: `300 epochs`, `750k iterations`, `10M samples`.
- `student` contains the settings that all `students` have in common. Each of `students` has the
  same keys, such as `students.NAME.optimizer.lr`, and overrides `student`.
- Each of `stages` overrides the run: `stages.NAME.data` has the keys `train`, `fraction`,
  `keep_classes`, `augment`, `mixing` and `unreadable`; `stages.NAME.student` and
  `stages.NAME.students.NAME` have the keys `objective`, `optimizer` and `schedule`.
- A mapping with the key `kind` or `loss` is one of several kinds, which have different keys. A
  mapping of another kind replaces it; all other mappings are merged key by key.
- The smallest recipe contains training data, a teacher, the model of a student and a budget.
"""
