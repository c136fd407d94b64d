"""Names that try to leave the text of a page, and images under them."""

import zlib
from pathlib import Path

import numpy as np
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
