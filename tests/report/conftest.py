"""Runs that reports are made of."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image

HOSTILE_CLASSES = (
    "<img src=x onerror=alert(1)>",
    '"><script>alert(2)<',
    "{{ 7 * 7 }} {% raw %}",
    r"$\frac{1}{0}$ _^ \x",
    "café 猫 \u202e right to left",
    "a`b|c*d_[e](http:" + "x" * 60,
)
HOSTILE_NAME = "<b>run</b> & {{ name }}"
HOSTILE_DESCRIPTION = "</style><script>alert(3)</script> https://example.com |"
NUM_HOSTILE_IMAGES = 6  # of a class


def write_images(folder: Path, classes: tuple[str, ...], num_images: int) -> Path:
    """A folder of images for each class, whose colours depend on the class; the names of files are
    as hostile as those of classes.
    """
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(num_images):
            random = np.random.default_rng(zlib.crc32(f"{number} {i}".encode()))
            pixels = random.integers(0, 90, (24, 24, 3)) + 25 * number
            file = folder / name / f"<i>{i}&amp; {{{{ {number} }}}}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(file)
    return folder


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
