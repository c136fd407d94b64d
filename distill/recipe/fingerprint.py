"""The fingerprint of a recipe: a resumed run must have the same one. It covers every key that
changes the result.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from distill.recipe.schema import Recipe

# Keys that may change when a run resumes: where it is saved, logged and computed.
KEYS_LEFT_OUT = {
    "name": True,
    "description": True,
    "output": True,
    "resume": True,
    "targets": True,  # a checkpoint records the store's own fingerprint
    "log": True,
    "evaluate": {"batch_size_process"},
    "checkpoint": True,
    "data": {"root", "num_workers", "prefetch_batches", "shards"},
    "train": {"compile", "zero_stage", "zero_offload", "timeout_s"},
    "teacher": {"placement", "offload"},
    "teachers": {"__all__": {"placement", "offload"}},
    "students": {"__all__": {"grad_checkpointing": True, "objective": {"hint": {"bank"}}}},
    "stages": {"__all__": {"students": {"__all__": {"objective": {"hint": {"bank"}}}}}},
}
# Keys of streams that may change as well: the location of the shards, and numbers whose default
# depends on the data. `Plan.inputs` checks that a resumed run has the same shards and numbers.
STREAM_KEYS_LEFT_OUT = frozenset({"path", "lanes", "block"})


def recipe_fingerprint(recipe: Recipe) -> str:
    """SHA-256 of all keys of the recipe that change the result. A checkpoint is only resumed with
    the same fingerprint. The content of the data is not part of it.
    """
    values = recipe.model_dump(mode="json", exclude=KEYS_LEFT_OUT)  # type: ignore[arg-type]
    tree = _without_unused(with_streams_anywhere(values))
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _without_unused(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns the tree without keys about several teachers and distinct epochs that are not used:
    recipes of earlier versions, whose runs may resume, lack them.
    """
    if tree["data"]["distinct_epochs"] is None:
        data = {key: value for key, value in tree["data"].items() if key != "distinct_epochs"}
        tree = {**tree, "data": data}
    if tree.get("teachers") is not None:
        return tree
    found = {key: value for key, value in tree.items() if key != "teachers"}
    for owner in (found, *found["stages"]):
        for student in owner["students"].values():
            for key in ("soft_teachers", "combine", "hint_teacher"):
                student["objective"].pop(key, None)
    return found


def with_streams_anywhere(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tree of a resolved recipe without STREAM_KEYS_LEFT_OUT of its streams, in
    the run and in its stages.
    """
    found = dict(tree)
    if isinstance(data := tree.get("data"), Mapping):
        found["data"] = _anywhere(data)
    if isinstance(stages := tree.get("stages"), list | tuple):
        found["stages"] = [
            (
                {**stage, "data": _anywhere(stage["data"])}
                if isinstance(stage, Mapping) and isinstance(stage.get("data"), Mapping)
                else stage
            )
            for stage in stages
        ]
    return found


def _anywhere(data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: (
            {key: value for key, value in spec.items() if key not in STREAM_KEYS_LEFT_OUT}
            if _is_stream(spec)
            else spec
        )
        for name, spec in data.items()
    }


def stream_paths(tree: Mapping[str, Any]) -> dict[str, str]:
    """The path of each stream in the tree of a resolved recipe, by its key."""
    named = [
        ("", tree),
        *((f"stages.{stage['name']}.", stage) for stage in tree.get("stages") or ()),
    ]
    return {
        f"{prefix}data.{name}.path": spec["path"]
        for prefix, owner in named
        for name, spec in (owner.get("data") or {}).items()
        if _is_stream(spec)
    }


def _is_stream(spec: object) -> bool:
    return isinstance(spec, Mapping) and spec.get("kind") == "stream"
