"""One image as it is stored: its bytes unchanged, or shrunk."""

import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from distill.data.decode import decode, open_image

# Formats that every reader of webdataset shards takes for an image; MPO is a JPEG followed by
# further pictures.
_KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}


class Stored(NamedTuple):
    """`extension` without its dot."""

    content: bytes
    extension: str


@dataclass(frozen=True)
class Conversion:
    """`resize`: pixels of the shorter side, or None. An image is only ever shrunk, and then stored
    as JPEG of `quality`.

    Other images keep their bytes if they are JPEG, PNG or WebP; other formats become PNG of the
    pixels that `decode` returns. Every image is decoded, so that a broken one is found now and not
    during a run.
    """

    resize: int | None = None
    quality: int = 95

    def __call__(self, record: bytes | np.ndarray) -> Stored:
        """Raises whatever a decoder raises for a broken image."""
        image = decode(record)
        if self.resize is not None and min(image.size) > self.resize:
            return Stored(
                _encoded(_shrunk(image, self.resize), "JPEG", quality=self.quality), "jpg"
            )
        if isinstance(record, np.ndarray):
            return Stored(_encoded(Image.fromarray(record), "PNG"), "png")
        with open_image(record) as header:
            extension = _KEPT.get(header.format or "")
        if extension is not None:
            return Stored(record, extension)
        return Stored(_encoded(image, "PNG"), "png")


def _shrunk(image: Image.Image, pixels: int) -> Image.Image:
    """Shrink the shorter side to `pixels`, with antialiasing."""
    width, height = image.size
    short = min(width, height)
    size = (round(width * pixels / short), round(height * pixels / short))
    return image.resize(size, Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
