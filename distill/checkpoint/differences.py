"""The differences between two recipes, for a run that cannot resume with the other."""

import json
from pathlib import Path
from typing import Any

import yaml

from distill.recipe.fingerprint import KEYS_LEFT_OUT, stream_paths, with_streams_anywhere

_DIFFERENCES_SHOWN = 8


def another_recipe(path: Path | str, wrote: str, old_text: str, new_text: str) -> str:
    """The message for a checkpoint at `path`, written by version `wrote` with the recipe
    `old_text`, that `new_text` cannot resume.
    """
    old, new = (
        flattened(with_streams_anywhere(yaml.safe_load(text)), KEYS_LEFT_OUT)
        for text in (old_text, new_text)
    )
    absent = "(absent)"
    lines = [
        f"  {key}: {old.get(key, absent)} -> {new.get(key, absent)}"
        for key in [*old, *(key for key in new if key not in old)]
        if old.get(key, absent) != new.get(key, absent)
    ]
    if len(lines) > _DIFFERENCES_SHOWN:
        lines[_DIFFERENCES_SHOWN:] = [f"  and {len(lines) - _DIFFERENCES_SHOWN} more"]
    differs = (
        "\n".join(lines)
        or f"  no key differs by name; version {wrote} wrote it and may have had other defaults"
    )
    return (
        f"{path}: is of another recipe and cannot be continued by this one:\n{differs}\n"
        "Set output= to another folder for a new run, or resume=never to start again from step 0"
    )


def moved_streams(old_text: str, new_text: str) -> list[str]:
    """The keys of streams whose paths differ between two recipes of the same identity."""
    old, new = (stream_paths(yaml.safe_load(text)) for text in (old_text, new_text))
    return [key for key in new if old.get(key) != new[key]]


def flattened(node: Any, without: Any = (), prefix: str = "") -> dict[str, str]:
    """Dotted keys and values, without the keys that are no part of a recipe's identity. Items of a
    list with names are keyed by name.
    """
    if (
        isinstance(node, list)
        and node
        and all(isinstance(each, dict) and "name" in each for each in node)
    ):
        node = {each["name"]: each for each in node}
    if not isinstance(node, dict) or not node:
        return {prefix: json.dumps(node)}
    leaves: dict[str, str] = {}
    for key, value in node.items():
        if key in without and not (isinstance(without, dict) and without[key] is not True):
            continue
        inner = without.get(key, without.get("__all__", ())) if isinstance(without, dict) else ()
        leaves |= flattened(value, inner, f"{prefix}.{key}" if prefix else str(key))
    return leaves
