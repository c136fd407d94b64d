"""Descriptions of keys: every key has one, docs/recipes.md is generated from them, and editors get
a schema of the files people write.
"""

import re
from pathlib import Path
from typing import Any

import pytest

from distill.errors import InputError
from distill.recipe import recipes_dir, shipped_files
from distill.recipe.json_schema import json_schema
from distill.recipe.keys import each_key, each_part, keys_named, markdown, parts_below
from distill.recipe.text import parse, read_text

ROOT = Path(__file__).resolve().parents[2]
FILES = [recipes_dir() / f"{name}.yaml" for name in shipped_files()]


def test_every_key_and_every_mapping_is_described() -> None:
    assert [key.path for key in each_key() if not key.meaning.endswith(".")] == []
    assert [part.title for part in each_part() if not part.meaning.endswith(".")] == []


def test_the_page_is_the_schemas() -> None:
    assert (ROOT / "docs/recipes.md").read_text() == markdown(), "refresh it: make docs"


def test_types_and_defaults_are_those_of_the_schema() -> None:
    keys = {key.path: key for key in each_key()}
    assert keys["student.optimizer.lr"].type == "number, above 0"
    assert keys["student.optimizer.momentum"].type == "number, at least 0, below 1"
    assert keys["train.batch_size_global"][1:3] == (
        "whole number, at least 2, at most 1,048,576, a multiple of 2",
        "256",
    )
    assert keys["train.precision"][1:3] == ("fp32 | bf16 | fp16", '"fp32"')
    assert keys["student.schedule.warmup"][1:3] == ("duration", "0 iterations")
    assert keys["data.augment.scale"][1:3] == ("list of 2 numbers", "[0.08, 1.0]")
    assert keys["student.model"].default == "required"
    assert keys["log.trackers"].type == "list: text"
    assert keys["stages"].type == "list of mappings"


def test_a_prefix_chooses() -> None:
    (part,) = parts_below("students.kd.optimizer.lr")
    assert [key.path for key in part.keys] == ["student.optimizer.lr"]
    assert [part.title for part in parts_below("student.objective.hard")][1:] == [
        "student.objective.hard (loss: ce)",
        "student.objective.hard (loss: bce)",
    ]
    assert keys_named("batch_size_process") == ["evaluate.batch_size_process"]
    with pytest.raises(InputError, match=r"no key 'optimiser'.*'optimizer'"):
        parts_below("optimiser")


# ---- the schema for editors ----------------------------------------------------------------------


def faults(value: Any, schema: Any, whole: Any, at: str = "") -> list[str]:
    """What of a value breaks a schema: the words of JSON schema that ours uses, and no others."""
    known = {
        "$ref",
        "$defs",
        "$schema",
        "anyOf",
        "type",
        "properties",
        "additionalProperties",
        "patternProperties",
    }
    known |= {
        "propertyNames",
        "items",
        "prefixItems",
        "enum",
        "const",
        "pattern",
        "minimum",
        "maximum",
        "multipleOf",
    }
    known |= {
        "exclusiveMinimum",
        "exclusiveMaximum",
        "minItems",
        "maxItems",
        "minLength",
        "maxLength",
        "maxProperties",
    }
    assert schema.keys() <= known | {"description", "default"}, schema.keys() - known
    if "$ref" in schema:
        return faults(value, whole["$defs"][schema["$ref"].rpartition("/")[2]], whole, at)
    if "anyOf" in schema:
        tried = [faults(value, each, whole, at) for each in schema["anyOf"]]
        return [] if [] in tried else min(tried, key=len)
    if "const" in schema or "enum" in schema:
        return [] if value in schema.get("enum", [schema.get("const")]) else [at]
    types = {
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
    }
    types |= {"object": dict, "array": list}
    if "type" in schema and (
        not isinstance(value, types[schema["type"]])
        or (isinstance(value, bool) and schema["type"] != "boolean")
    ):
        return [at]
    if isinstance(value, str):
        return [] if re.search(schema.get("pattern", ""), value) else [at]
    if isinstance(value, dict):
        found = []
        for key, inner in value.items():
            below = schema.get("properties", {}).get(key)
            for pattern, each in schema.get("patternProperties", {}).items():
                below = each if re.search(pattern, key) else below
            below = schema.get("additionalProperties", {}) if below is None else below
            found += (
                [f"{at}.{key}"]
                if below is False
                else faults(inner, {} if below is True else below, whole, f"{at}.{key}")
            )
        return found
    if isinstance(value, list):
        each = schema.get("prefixItems") or [schema.get("items", {})] * len(value)
        return [
            fault
            for inner, below in zip(value, each, strict=True)
            for fault in faults(inner, below, whole, at)
        ]
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        inside = low <= value <= high and value > schema.get("exclusiveMinimum", float("-inf"))
        return [] if inside else [at]
    return []


SCHEMA = json_schema()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(recipes_dir()).as_posix())
def test_shipped_files_are_valid(path: Path) -> None:
    assert faults(parse(read_text(path)), SCHEMA, SCHEMA) == []


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("train: {buget: 3 epochs}", ".train.buget"),
        ("train: {budget: 300}", ".train.budget"),
        ("student: {schedule: {warmup: 100%}}", ".student.schedule.warmup"),
        ("student: {schedule: {cooldown: 20}}", ".student.schedule.cooldown"),
        ("student: {optimizer: {lr: -1}}", ".student.optimizer.lr"),
        (
            "students: {kd: {objective: {soft: {loss: kl, temprature: 2}}}}",
            ".students.kd.objective.soft.temprature",
        ),
        ("students: {a b: {}}", ".students.a b"),
        ("teachers: {a b: {}}", ".teachers.a b"),
        ("data: {train: {kind: streem}}", ".data.train.kind"),
        ("stages: [{name: a, student: {modle: x}}]", ".stages.student.modle"),
        ("extends: 3", ".extends"),
    ],
)
def test_a_typo_is_not(text: str, at: str) -> None:
    assert at in faults(parse(text), SCHEMA, SCHEMA)


def test_what_a_file_may_leave_out_or_set_to_null() -> None:
    assert faults(parse("student: {schedule: {warmup: 5%}}"), SCHEMA, SCHEMA) == []
    text = (
        "students: {kd: null, dkd: {}}\ntrain: {budget: null}\nstages: [{students: {dkd:"
        " {objective: {hard: null}}}}]\nteacher: null\nteachers: {big: null, small: {}}"
    )
    assert faults(parse(text), SCHEMA, SCHEMA) == []
