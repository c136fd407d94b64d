"""Every key of a recipe, read from the schema: its type, default and meaning, for the terminal and
for docs/recipes.md.
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

# Keys that are required in a resolved recipe, and filled in where a file leaves them out.
FILLED = {
    "name": "the file's name",
    "students": "one, from `student`",
    "student.objective": "ce + the teacher's kl",
    "student.optimizer": "adamw",
    "student.optimizer.name": "adamw",
    "student.optimizer.lr": "0.001",
}
_OPEN = (StageDataSpec, StageStudentSpec)  # their keys are listed where they belong to the run
_UNSAID = 1e30
EXTENDS = (
    "A recipe, or a list of them, that this one is laid over, later ones over earlier: shipped ones"
    " by name, others by path."
)


class Key(NamedTuple):
    """A key as it is written in a file or an override. `name` is its last part; `default` is
    "required" where there is none.
    """

    path: str
    type: str
    default: str
    meaning: str

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


class Part(NamedTuple):
    """The keys of one mapping. `kind` tells which of several, such as "kind: stream"; empty where
    there is one.
    """

    path: str
    kind: str
    meaning: str
    keys: tuple[Key, ...]

    @property
    def title(self) -> str:
        return f"{self.path or 'recipe'}{f' ({self.kind})' if self.kind else ''}"


def each_part() -> Iterator[Part]:
    """All mappings of a recipe, each before what it holds."""
    yield from _parts(Recipe, "")


def each_key() -> Iterator[Key]:
    """All keys; one that several kinds of a mapping share comes once for each."""
    for part in each_part():
        yield from part.keys


def parts_below(prefix: str) -> list[Part]:
    """The mappings with those keys that are `prefix` or lie below it; `students.NAME.` is written
    as `student.` too.

    Raises:
        InputError: there is none; names the nearest.
    """
    wanted = prefix.rstrip(".").split(".")
    if wanted[0] == "students" and len(wanted) > 1:
        wanted = ["student", *wanted[2:]]
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
            f"no key {prefix!r}{did_you_mean('.'.join(wanted), known)}; 'distill recipe keys' lists all"
        )
    return found


def keys_named(name: str) -> list[str]:
    """Paths of all keys whose last part this is."""
    return list(dict.fromkeys(key.path for key in each_key() if key.name == name))


def _parts(model: type[BaseModel], path: str, kind: str = "") -> Iterator[Part]:
    keys, below = [], []
    if model is Recipe:
        keys.append(Key("extends", "text, or a list of texts", "null", EXTENDS))
    for name, field in model.model_fields.items():
        own = f"{path}.{name}" if path else name
        keys.append(_key(own, field))
        models = _models_in(field.annotation)
        inner = {"students": "student", "stages": "stages.NAME"}.get(own, own)
        for each in models:
            if each not in _OPEN:
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
    """A type in the words of a recipe file."""
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
    """ ", above 0, at most 1" and the like. Bounds at the end of float32 go without saying."""
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
            case Within(high=most) if most < _UNSAID:
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

Generated from the schema by `make docs`; a test compares. `distill recipe keys [PREFIX]` prints the same in a terminal, and
`distill recipe keys --json-schema > recipe.schema.json` writes a schema for editors: with
`# yaml-language-server: $schema=recipe.schema.json` as first line of a recipe, they complete keys and mark typos.

- A **duration** is a number and a unit: `300 epochs`, `750k iterations`, `10M samples`.
- `student` holds what all `students` share. Each of `students` is laid over it and takes the same keys, as `students.NAME.optimizer.lr`.
- Each of `stages` is laid over the run: `stages.NAME.data`, `stages.NAME.student` and `stages.NAME.students.NAME` take what a stage may have of
  its own: of data `train`, `fraction`, `keep_classes`, `augment`, `mixing` and `unreadable`, of a student `objective`, `optimizer` and `schedule`.
- A mapping with `kind` or `loss` is one of several, with keys of its own; another kind replaces it, all else merges.
- The smallest recipe names training data, a teacher, a student's model and a budget.
"""
