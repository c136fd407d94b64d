"""What of a recipe makes a run this run; the rest may change between a run and its continuation."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from distill.recipe.schema import Recipe

# Where it is kept, how it is watched, how it is spread over hardware.
NOT_IDENTITY = {
    "name": True,
    "description": True,
    "output": True,
    "resume": True,
    "log": True,
    "evaluate": {"batch_size_process"},
    "checkpoint": True,
    "data": {"root", "num_workers", "prefetch_batches", "shards"},
    "train": {"compile", "zero_stage", "zero_offload", "timeout_s"},
    "teacher": {"placement", "offload"},
    "students": {"__all__": {"grad_checkpointing"}},
}
# Of a stream besides: where the shards lie, and numbers that null leaves to the data. A
# continuation must come to the same shards and the same numbers all the same, which `Plan.inputs`
# tells.
STREAM_NOT_IDENTITY = frozenset({"path", "lanes", "block"})


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 of everything in the recipe that shapes the result, but for what the data are. A
    checkpoint continues only under an equal digest.
    """
    identity = with_streams_anywhere(recipe.model_dump(mode="json", exclude=NOT_IDENTITY))  # type: ignore[arg-type]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def with_streams_anywhere(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved recipe's tree less STREAM_NOT_IDENTITY of its streams: those of the run and of its
    stages.
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
            {key: value for key, value in spec.items() if key not in STREAM_NOT_IDENTITY}
            if _is_stream(spec)
            else spec
        )
        for name, spec in data.items()
    }


def stream_paths(tree: Mapping[str, Any]) -> dict[str, str]:
    """Key -> path of each stream of a resolved recipe's tree."""
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
