"""Bytes or pixels -> an 8-bit RGB image, or an error that says which file."""

import io
import os
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from distill.data.depth import (
    PixelFormatError,
    hidden_bits,
    is_deep,
    refuse_dark_high_bytes,
    to_8_bits,
)
from distill.data.locks import locked
from distill.data.records import Source, UnreadableShardError, first_line
from distill.errors import InputError, printable

# Here and not with the first image: decoding processes are forked from this one, and each would
# load the plugins again.
Image.preinit()

# Larger images are decoded at a half, a quarter or an eighth of their sides. 40 megapixels take 160
# MB.
LARGE_PIXELS = 40_000_000
# Pillow's own limit: it refuses more before it reads a pixel.
MOST_PIXELS = 178_956_970
# Formats that are programs, or that Pillow decodes with other programs.
_REFUSED_FORMATS = ("EPS", "WMF")

SKIP_ADVICE = ", or set data.unreadable to skip"


class UnreadableImageError(InputError):
    """A record that cannot be read or decoded whole. The message names it."""


Decoded = TypeVar("Decoded")


def read_image(source: Source, index: int) -> Image.Image:
    """Read and decode one record. Raises as `read_decoded`."""
    return read_decoded(source, index, decode)


def read_decoded(
    source: Source, index: int, decoder: Callable[[bytes | np.ndarray], Decoded]
) -> Decoded:
    """Read one record and decode it with `decode`, or what raises as `decode` does.

    Raises:
        UnreadableImageError: the file cannot be read, is not an image, or is cut short; from
            UnreadableShardError where that is why.
        InputError: what no other record would fix, such as access that is refused.
    """
    try:
        return decoder(source.read(index))
    except InputError:
        raise
    except UnreadableShardError as error:
        raise UnreadableImageError(f"{error}: fix it or its server{SKIP_ADVICE}") from error
    # Decoders raise whatever a broken file drives them into: OSError, SyntaxError, struct.error,
    # ...
    except Exception as error:
        raise UnreadableImageError(
            f"{printable(source.describe(index))}: unreadable image ({first_line(error)}): fix or"
            f" remove it{SKIP_ADVICE}"
        ) from error


def decode(record: bytes | np.ndarray) -> Image.Image:
    """An RGB image of 8 bits a channel. Orientation in EXIF is ignored and transparency dropped, as
    in timm.

    A JPEG or PNG whose data end early is an error here, as PIL reports it; PIL's
    LOAD_TRUNCATED_IMAGES must stay off. Of several frames the first is taken. More than 8 bits are
    scaled by what the file says (`depth`).

    Above LARGE_PIXELS a JPEG is decoded at a half or a quarter of its sides, and other images are
    halved after decoding, one at a time on this machine; each until it has LARGE_PIXELS at most.
    Ordinary images are as timm decodes them, bit for bit.

    Args:
        record: an image file, or uint8 [H, W] or [H, W, 3].

    Raises:
        PixelFormatError: nothing says which values are black and white.
        Exception: whatever a decoder raises for a file that is broken or no image.
    """
    if isinstance(record, np.ndarray):
        assert record.dtype == np.uint8, record.dtype
        return Image.fromarray(record).convert("RGB")
    image = open_image(record)
    if image.width * image.height > LARGE_PIXELS:
        return _decoded_small(image)
    return _rgb(image)


def open_image(record: bytes) -> Image.Image:
    """An image file whose header has been read, and no pixel.

    Raises:
        ValueError: no image, one that is larger than MOST_PIXELS, or of a format that is not
            decoded.
        Exception: whatever Pillow raises for a broken header.
    """
    with warnings.catch_warnings():
        # About palettes with transparency, broken EXIF, and the size, which is looked at by
        # `decode`.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(record))
        except UnidentifiedImageError:  # its message names an object in memory
            raise ValueError("no image of a kind that Pillow knows") from None
        except Image.DecompressionBombError as error:
            raise ValueError(
                f"it has more than the {MOST_PIXELS / 1e6:.0f} megapixels that are decoded at most:"
                " shrink it"
            ) from error
    if image.format in _REFUSED_FORMATS:
        raise ValueError(f"{image.format} is not decoded: convert it")
    return image


def pixel_format(image: Image.Image) -> str:
    """How an opened image stores its pixels, for people: Pillow's mode, and the bits of a sample
    where the mode hides them.
    """
    bits = hidden_bits(image)
    return image.mode if bits is None else f"{image.mode} of {bits} bits"


def _rgb(image: Image.Image) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if is_deep(image):
            # convert("RGB") would clip 16 bits at 255, which turns most of the picture white.
            return to_8_bits(image).convert("RGB")
        refuse_dark_high_bytes(image)
        if image.mode == "RGB":
            image.load()
            return image
        if image.mode == "La":  # Pillow converts it only to LA
            image = image.convert("LA")
        return image.convert("RGB")


def _decoded_small(image: Image.Image) -> Image.Image:
    """The image at a half, a quarter or an eighth of its sides, so that it has LARGE_PIXELS at
    most.
    """
    factor = 2
    while image.width * image.height > LARGE_PIXELS * factor**2:
        factor *= 2
    progressive = (
        "progressive" in image.info
    )  # whose coefficients are all held in memory, whatever the size that is asked for
    with ExitStack() as stack:
        if image.format not in ("JPEG", "MPO") or progressive:
            _wait_for_turn(stack)
        image.draft(None, (image.width // factor, image.height // factor))
        whole = _rgb(image)
        factor = 1
        while whole.width * whole.height > LARGE_PIXELS * factor**2:
            factor *= 2
        return whole if factor == 1 else whole.reduce(factor)


def _wait_for_turn(stack: ExitStack) -> None:
    """Hold the machine's lock for large images until `stack` ends, so that only one process at a
    time has a complete one in memory.

    Without a writable temporary folder there is no lock.
    """
    try:
        lock = Path(tempfile.gettempdir(), f"distill-large-image-{os.getuid()}.lock")
        stack.enter_context(locked(lock, wait=True))
    except OSError:
        pass


__all__ = [
    "PixelFormatError",
    "UnreadableImageError",
    "decode",
    "open_image",
    "pixel_format",
    "read_decoded",
    "read_image",
]
