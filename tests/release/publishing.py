"""What the tests of `distill publish` share."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fake_hub import FakeHub

from distill.files import sha256_of
from distill.release.publish import Published, publish_model

LICENCE = ("--license", "mit")


def publish(source: Path, *, repo: str = "alice/net", **how: Any) -> Published:
    return publish_model(source, repo, **{"licence": "mit", **how})


def finished_copy(run: Path, folder: Path) -> Path:
    """A copy of a run, to change."""
    shutil.copytree(run, folder / "copy")
    return folder / "copy"


def state(hub: FakeHub) -> dict[str, Any]:
    """All that a client can see of the Hub's repositories."""
    return {
        name: (each.private, dict(each.branches), dict(each.pulls), list(each.commits))
        for name, each in hub.hub.repositories.items()
    }


@contextmanager
def unchanged(hub: FakeHub) -> Iterator[None]:
    """Checks that what happens in the block changes nothing on the Hub."""
    before = state(hub)
    yield
    assert state(hub) == before


def scores_of(export: Path, file: Path, **changes: Any) -> Path:
    """An evaluation of the weights of an export, as `distill evaluate --json` writes it."""
    figures = {
        "top1": 81.25,
        "top1_error": 0.1746,
        "top5": 95.5,
        "num_samples": 50000,
        "num_skipped": 0,
        "loss": 0.75,
        "ece": 0.03,
        "adaptive_ece": 0.031,
        "images_per_s": 100.0,
    }
    real = {**figures, "top1": 86.0, "top5": None, "num_samples": 46837, "loss": None}
    content = {
        "format": 1,
        "models": {
            "kd": {
                "model": "cifar_resnet8",
                "sha256": sha256_of(export / "model.safetensors"),
                "parameters": 78000,
                "image_size": 224,
                "crop_fraction": 0.95,
                "interpolation": "bicubic",
            }
        },
        "sets": {
            "val": {
                "data": "/data/val",
                "title": "ImageNet-1K validation",
                "num_classes": 1000,
                "models": {"kd": figures},
            },
            "real": {
                "data": "/data/val",
                "title": "ImageNet-ReaL",
                "num_classes": 1000,
                "models": {"kd": real},
            },
        },
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        part: Any = content
        for parent in parents:
            part = part[parent]
        part[last] = value
    file.write_text(json.dumps(content))
    return file
