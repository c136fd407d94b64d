"""Runs that reports are made of."""

from pathlib import Path
from typing import Any

import pytest
import tiny
from hostile import (
    HOSTILE_CLASSES,
    HOSTILE_DESCRIPTION,
    HOSTILE_NAME,
    NUM_HOSTILE_IMAGES,
    write_images,
)


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose classes, files and name try to leave the text of a page."""
    folder = tmp_path_factory.mktemp("hostile")
    images = write_images(folder / "images", HOSTILE_CLASSES, NUM_HOSTILE_IMAGES)
    source = {"kind": "image_folder", "path": str(images)}
    changes: dict[str, Any] = {
        "name": HOSTILE_NAME,
        "description": HOSTILE_DESCRIPTION,
        "data": {"train": source, "eval": source, "fraction": 1.0},
        "train": {"budget": "4 iterations"},
        "evaluate": {"every": "2 iterations"},
        "log": {"gradient_norms": True},
        "student": {"ema": {"decays": [0.5]}},
        "students": {
            "alone": {},
            "kd": {"objective": {"hard": {"loss": "ce"}, "soft": {"loss": "kl"}}},
        },
    }
    recipe = tiny.write_recipe(folder, changes)
    assert tiny.run(recipe) == 0
    return folder / "run"
