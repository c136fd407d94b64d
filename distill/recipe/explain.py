"""Pydantic's errors as messages for the author of a recipe: the dotted key, the problem, the
fix.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from distill.errors import did_you_mean
from distill.recipe.schema import Recipe

# A mapping with one of these keys is one of several kinds. A mapping of another kind replaces it
# instead of being merged with it.
DISCRIMINATORS = ("kind", "loss")

Tree = dict[str, Any]


def explain(detail: Any, tree: Tree) -> str:
    """One pydantic error as a sentence: the dotted key, the problem, the nearest known key."""
    path = detail["loc"]
    location = tuple(
        p for i, p in enumerate(path) if p != "[key]" and not _is_union_tag(p, path[:i], tree)
    )
    key = ".".join(str(part) for part in location)
    if detail["type"] == "extra_forbidden":
        known = _known_keys(location[:-1], tree)
        close = did_you_mean(str(location[-1]), known)
        return f"{key}: unknown key{close or '; known here: ' + ', '.join(sorted(known))}"
    if detail["type"] == "missing":
        return f"{key}: missing, and it has no default"
    if detail["type"].startswith("union_tag"):
        key = f"{key}.{detail['ctx']['discriminator'].strip(chr(39))}"
    message = _message(detail)
    given = (
        ""
        if isinstance(detail["input"], dict) or detail["type"] in _WITHOUT_VALUE
        else f", not {detail['input']!r}"
    )
    return f"{key}: {message}{given}{_how_to_write(detail)}" if key else message


def _how_to_write(detail: Any) -> str:
    """How to write a value that YAML read as another type."""
    value = detail["input"]
    if detail["type"] == "string_type" and isinstance(value, bool):
        return ": YAML reads yes, no, on and off as true or false: put the text in quotes"
    if detail["type"] == "string_type" and isinstance(value, int | float):
        return ": put the text in quotes"
    if (
        detail["type"] in ("int_type", "int_from_float")
        and isinstance(value, float)
        and value == int(value)
    ):
        return f": write {int(value)}"
    return ""


# Messages of pydantic that are about Python types, in words about recipes; and the types of errors
# whose message does not need the value.
_PLAIN = {
    "model_type": "should be a mapping of keys",
    "model_attributes_type": "should be a mapping of keys",
    "dict_type": "should be a mapping of keys",
    "tuple_type": "should be a list",
}
_WITHOUT_VALUE = (
    "value_error",
    "union_tag_invalid",
    "union_tag_not_found",
    "too_short",
    "too_long",
)


def _message(detail: Any) -> str:
    """The problem, without the key."""
    context = detail.get("ctx", {})
    match detail["type"]:
        case "union_tag_invalid":
            known = context["expected_tags"].replace("'", "").split(", ")
            return (
                f"no {context['tag']!r} here{did_you_mean(context['tag'], known)}; it is one of"
                f" {', '.join(known)}"
            )
        case "union_tag_not_found":
            return "missing: it selects the kind of this mapping"
        case "too_short":
            return (
                f"should have at least {context['min_length']}, and has {context['actual_length']}"
            )
        case "too_long":
            return (
                f"should have at most {context['max_length']}, and has {context['actual_length']}"
            )
        case "string_pattern_mismatch":
            start = "a letter" if detail["loc"][0] == "stages" else "a letter or digit"
            return f"a name is letters, digits, - and _, and starts with {start}"
    if detail["type"] in _PLAIN:
        return _PLAIN[detail["type"]]
    message: str = detail["msg"].removeprefix("Value error, ")
    return message.replace("Input should be ", "should be ").replace(
        "String should have", "should have"
    )


def _is_union_tag(part: Any, above: tuple[Any, ...], tree: Tree) -> bool:
    """Whether a part of an error's location is the tag of a union ("kl", "image_folder"), which
    pydantic adds and which is not a key of the file.
    """
    node: Any = tree
    for step in above:
        node = _below(node, step)
    return (
        isinstance(node, Mapping)
        and part not in node
        and any(node.get(d) == part for d in DISCRIMINATORS)
    )


def _below(node: Any, step: Any) -> Any:
    if isinstance(node, list) and isinstance(step, int):
        return node[step]
    return node.get(step, node) if isinstance(node, Mapping) else node


def _known_keys(location: tuple[Any, ...], tree: Tree) -> list[str]:
    """The keys of the schema at a location in the recipe."""
    models: list[type[BaseModel]] = [Recipe]
    node: Any = tree
    for part in location:
        node = node[part]
        found: list[type[BaseModel]] = []
        for model in models:
            if part in model.model_fields:
                found += _models_in(model.model_fields[part].annotation)
        models = found or models  # the name of a student: stay at StudentSpec
    tagged = [
        m
        for m in models
        if all(
            m.model_fields[d].annotation and node.get(d) in _literals(m, d)
            for d in DISCRIMINATORS
            if d in m.model_fields
        )
    ]
    keys = [key for model in tagged or models for key in model.model_fields]
    if not location:
        return [*keys, "student", "extends"]
    return [*keys, "student"] if location[0] == "stages" and len(location) == 2 else keys


def _literals(model: type[BaseModel], key: str) -> tuple[Any, ...]:
    return getattr(model.model_fields[key].annotation, "__args__", ())


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [
        model for argument in getattr(annotation, "__args__", ()) for model in _models_in(argument)
    ]
