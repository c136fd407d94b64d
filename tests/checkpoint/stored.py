"""Small checkpoints for the tests, intact and damaged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distill.checkpoint.store import TrainState, latest, save

RECIPE = "name: a\ntrain:\n  budget: 3 epochs\n  compile: false\n"
DIGEST = "d" * 64


def write(root: Path, step: int, value: int | None = None, **keys: Any) -> Path:
    """A checkpoint with `value` in each of its parts."""
    value = step if value is None else value
    tensors = keys.pop(
        "tensors",
        {"model": {"w": torch.full((50,), float(value))}, "optimizer": {"m": torch.tensor(value)}},
    )
    arguments = {
        "values": {"value": value},
        "recipe_text": RECIPE,
        "recipe_digest": DIGEST,
        "world_size": 2,
        **keys,
    }
    return save(root, TrainState(step, step * 8), tensors=tensors, **arguments)


def newest(root: Path, report: Callable[[str], object] = lambda message: None) -> int:
    """The value of the newest intact checkpoint, after checking that all its parts have it."""
    checkpoint = latest(root, DIGEST, RECIPE, report=report)
    assert checkpoint is not None
    value: int = checkpoint.values["value"]
    assert torch.equal(checkpoint.tensors("model")["w"], torch.full((50,), float(value)))
    assert checkpoint.tensors("optimizer")["m"].item() == value
    return value


def flip(file: Path) -> None:
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x01
    file.write_bytes(content)


def shorten(file: Path) -> None:
    """Cut the end off a file."""
    file.write_bytes(file.read_bytes()[:-3])


def names(root: Path) -> list[str]:
    """The names in a folder, sorted."""
    return sorted(path.name for path in root.iterdir())
