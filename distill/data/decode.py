"""Bytes or pixels -> an 8-bit RGB image, or an error that says which file."""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from distill.data.records import Source, UnreadableShard, first_line
from distill.errors import InputError

# Here and not with the first image, which each decoding process would wait for anew: they are forked from this one.
Image.preinit()


class UnreadableImage(InputError):  # noqa: N818 - named for what it says of the record
    """A record that cannot be read or decoded whole. The message names it."""


def read_image(source: Source, index: int) -> Image.Image:
    """Read and decode one record.

    Raises:
        UnreadableImage: the file cannot be read, is not an image, or is cut short; from UnreadableShard where that is why.
        InputError: what no other record would mend, such as access that is refused.
    """
    try:
        return decode(source.read(index))
    except InputError:
        raise
    except UnreadableShard as error:
        raise UnreadableImage(f"{error}: mend it or its server, or set data.unreadable to skip") from error
    # Decoders raise whatever a broken file drives them into: OSError, SyntaxError, struct.error, DecompressionBombError, ...
    except Exception as error:
        raise UnreadableImage(
            f"{source.describe(index)}: unreadable image ({first_line(error)}): mend or remove it, or set data.unreadable to skip"
        ) from error


def decode(record: bytes | np.ndarray) -> Image.Image:
    """An RGB image of 8 bits a channel. Orientation in EXIF is ignored and transparency dropped, as in timm.

    A JPEG or PNG whose data end early is an error here, as PIL reports it; PIL's LOAD_TRUNCATED_IMAGES must stay off.

    Args:
        record: an image file, or uint8 [H, W] or [H, W, 3].
    """
    if isinstance(record, np.ndarray):
        assert record.dtype == np.uint8, record.dtype
        return Image.fromarray(record).convert("RGB")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # about palettes with transparency and broken EXIF: neither changes the pixels we use
        try:
            image = Image.open(io.BytesIO(record))
        except UnidentifiedImageError:  # which would name an object in memory
            raise ValueError("no image of a kind that Pillow knows") from None
        if image.mode == "RGB":
            image.load()
            return image
        if image.mode.startswith("I"):
            # convert("RGB") would clip 16 bits at 255, which turns most of the picture white.
            return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
        return image.convert("RGB")
