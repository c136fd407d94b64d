"""Bytes -> RGB pixels: ordinary JPEGs by simplejpeg, everything else by Pillow."""

import numpy as np
import simplejpeg

from distill.data.decode import LARGE_PIXELS, decode

_JPEG = b"\xff\xd8\xff"  # how Pillow recognises the format
# Others (CMYK, YCCK, RGB) are converted by Pillow.
_COLOURS = ("YCbCr", "Gray")


def decode_pixels(record: bytes | np.ndarray) -> np.ndarray:
    """Decode a record to the pixels that `decode` gives, bit for bit.

    simplejpeg and Pillow both use libjpeg-turbo, with the same settings. simplejpeg is strict: it
    refuses a file at which libjpeg only warns, and Pillow then decides whether it is an error.

    Args:
        record: an image file, or uint8 [H, W] or [H, W, 3].

    Returns:
        uint8 [H, W, 3], writable.

    Raises:
        Exception: as `decode`.
    """
    if isinstance(record, bytes) and record.startswith(_JPEG):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(record)
            if colours in _COLOURS and height * width <= LARGE_PIXELS:
                pixels: np.ndarray = simplejpeg.decode_jpeg(record, "RGB")
                return pixels
        except ValueError:
            pass
    return np.array(decode(record))  # writable, as torch wants it
