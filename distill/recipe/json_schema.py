"""The JSON schema of recipe files for editors. A file may contain any part of a recipe."""

from typing import Any

from distill.recipe.duration import UNIT_NAMES, DurationValue
from distill.recipe.keys import EXTENDS
from distill.recipe.schema import Recipe

_DURATION = {
    "type": "string",
    "pattern": rf"^\s*(\d+(\.\d*)?|\.\d+)\s*[kmgKMG]?\s*({'|'.join(UNIT_NAMES)})\s*$",
}
_SHARE = r"^\s*\d{1,2}(\.\d*)?\s*%\s*$"


def json_schema() -> dict[str, Any]:
    """Returns a schema that accepts every recipe file, complete or not, and rejects unknown keys
    and wrong types.

    No key is required, since missing keys may come from the files that it extends. The schema has
    `student` and `extends`, which a resolved recipe does not have.
    """
    schema = _as_written(Recipe.model_json_schema())
    parts = schema["$defs"]
    parts["DurationValue"] = _DURATION
    of_schedule = parts["ScheduleSpec"]["properties"]
    for name in ("warmup", "cooldown"):
        of_schedule[name] = {
            "description": of_schedule[name]["description"],
            "anyOf": [{"$ref": "#/$defs/DurationValue"}, {"type": "string", "pattern": _SHARE}],
            "default": of_schedule[name]["default"],
        }
    text = {"type": "string"}
    schema["properties"] = {
        "extends": {"description": EXTENDS, "anyOf": [text, {"type": "array", "items": text}]},
        **schema["properties"],
        "student": {
            "description": "The settings that all students have in common.",
            "$ref": "#/$defs/StudentSpec",
        },
    }
    _accept_removals(schema["properties"]["students"])
    for option in schema["properties"]["teachers"]["anyOf"]:
        if "patternProperties" in option:
            _accept_removals(option)
    parts["StageSpec"]["properties"]["student"] = {
        "description": "Changes to all students in this stage.",
        "$ref": "#/$defs/StageStudentSpec",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _accept_removals(named: dict[str, Any]) -> None:
    """Changes the schema of a mapping by name so that null may stand instead of a member."""
    del named["minProperties"]
    named["additionalProperties"] = False
    named["patternProperties"] = {
        name: {"anyOf": [member, {"type": "null"}]}
        for name, member in named["patternProperties"].items()
    }


def _as_written(node: Any) -> Any:
    """Returns a part of pydantic's schema without the rules for resolved recipes."""
    if isinstance(node, list):
        return [_as_written(each) for each in node]
    if not isinstance(node, dict):
        return node
    # A mapping without its kind matches several kinds: the kind may come from the file it extends.
    named = {"oneOf": "anyOf"}
    written = {
        named.get(key, key): _as_written(value)
        for key, value in node.items()
        if key not in ("required", "discriminator")
        and not (key == "title" and isinstance(value, str))
    }
    if written.get("$ref") == "#/$defs/DurationValue" and isinstance(written.get("default"), list):
        amount, unit = written["default"]
        written["default"] = str(DurationValue(amount, unit))
    return written
