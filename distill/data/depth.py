"""Pixels of more than 8 bits -> 8 bits, by the range that the file states, or a refusal."""

import re
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

# Tags of TIFF: https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf
_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAX_SAMPLE_VALUE = 258, 262, 281
_SAMPLE_FORMAT, _S_MIN_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE = 339, 340, 341
_UNSIGNED, _WHITE_IS_ZERO = 1, 0
# A picture that stays below this share of a range that is only implied by its number of bits has
# another range.
_LEAST_SHARE = 1 / 16
_HOW = "store 8-bit pixels, or TIFF with SMinSampleValue and SMaxSampleValue"


class PixelFormatError(ValueError):
    """The image is whole, and which of its values are black and white cannot be known."""


def is_deep(image: Image.Image) -> bool:
    """Whether Pillow's convert("RGB") would clip the values, or take signed ones for unsigned."""
    signed = image.format == "TIFF" and _tag(image, _SAMPLE_FORMAT, _UNSIGNED) != _UNSIGNED
    return image.mode == "F" or image.mode.startswith("I") or signed


def hidden_bits(image: Image.Image) -> int | None:
    """Bits of a sample in the file, where Pillow's mode is one of 8 bits and keeps the high byte.
    Of an image not loaded yet.
    """
    tile = getattr(image, "tile", None)  # of images that come from files
    raw = tile[0].args if tile else ""
    name = str(raw[0] if isinstance(raw, tuple) and raw else raw)
    bits = None if image.mode.startswith(("I", "F")) else re.search(r";(16|32)", name)
    return None if bits is None else int(bits[1])


def refuse_dark_high_bytes(image: Image.Image) -> None:
    """Refuse what `to_8_bits` refuses, in images of several channels of 16 bits, of which Pillow
    gives the high bytes alone.

    Raises:
        PixelFormatError: the high bytes stay below 16, or another range than that of the bits is
            stated.
    """
    if image.format not in ("PNG", "TIFF") or hidden_bits(image) is None:
        return
    if image.format == "TIFF" and _tag(image, _S_MAX_SAMPLE_VALUE, 65535) != 65535:
        raise PixelFormatError(
            f"16 bits a channel, of which a range is stated: {_HOW[: _HOW.index(',')]}"
        )
    colours = [
        most
        for band, (_, most) in zip(image.getbands(), _extrema(image), strict=True)
        if band not in "Aa"
    ]
    if max(colours) < 256 * _LEAST_SHARE:
        raise PixelFormatError(
            f"values below {(max(colours) + 1) * 256} of 65535, the most that their bits allow:"
            " whether the picture is dark, or has fewer bits than its file says, cannot be known:"
            f" {_HOW[: _HOW.index(',')]}"
        )


def _extrema(image: Image.Image) -> list[tuple[float, float]]:
    extrema = image.getextrema()
    return list(extrema) if isinstance(extrema[0], tuple) else [extrema]


def to_8_bits(image: Image.Image) -> Image.Image:
    """The image in mode "L": the darkest and the brightest value that its file can state become 0
    and 255.

    TIFF states them by SMinSampleValue and SMaxSampleValue, by a MaxSampleValue of 2^n - 1, or by
    its bits a sample; PNG, JPEG 2000 and PGM by their bits, in which Pillow gives them. Of 16 bits
    the high byte is kept, as of RGB with 16 bits a channel. `1.0` is white in a float image only
    where its tags say so.

    Raises:
        PixelFormatError: nothing states a range, the values do not keep to it, or they stay in a
            sixteenth of what their number of bits allows, as 12 bits do that lie in 16 without a
            word.
    """
    if len(image.getbands()) > 1:
        raise PixelFormatError(f"signed or float values in several channels: {_HOW}")
    low, high, stated = _range(image)
    values = np.asarray(image)
    if high > np.iinfo(np.int32).max and values.dtype == np.int32:
        values = values.view(np.uint32)  # Pillow has no unsigned mode of 32 bits
    smallest, largest = values.min(), values.max()
    if not low <= smallest <= largest <= high:  # nor where one of them is no number
        raise PixelFormatError(
            f"values from {smallest:g} to {largest:g}, and {low:g} to {high:g} are stated: {_HOW}"
        )
    if not stated and 0 < largest < (high + 1) * _LEAST_SHARE:
        raise PixelFormatError(
            f"values up to {largest} of {high:.0f}, the most that their bits allow: whether the"
            f" picture is dark, or has fewer bits than its file says, cannot be known: {_HOW}"
        )
    pixels = np.empty(values.shape, np.uint8)
    for row, line in enumerate(
        values
    ):  # a line at a time, since 64 bits of a large image would take gigabytes
        if np.issubdtype(values.dtype, np.integer):
            pixels[row] = ((line.astype(np.int64) - int(low)) << 8) // (int(high) - int(low) + 1)
        else:
            pixels[row] = np.rint((line.astype(np.float64) - low) / (high - low) * 255)
    if (
        image.format == "TIFF" and _tag(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO
    ):  # which Pillow minds in 8 bits alone
        pixels = 255 - pixels
    return Image.fromarray(pixels)


def _range(image: Image.Image) -> tuple[float, float, bool]:
    """(black, white, whether a number in the file says so rather than the bits of a sample)."""
    if image.format == "TIFF":
        return _tiff_range(image)
    if image.mode != "F" and image.format in (
        "PPM",
        "JPEG2000",
    ):  # brought to 16 bits by Pillow, from what the header says
        return 0, 65535, True
    if image.mode != "F" and image.format == "PNG":
        return 0, 65535, False
    raise PixelFormatError(
        f"{image.format} in mode {image.mode} does not state the range of its values: {_HOW}"
    )


def _tiff_range(image: Image.Image) -> tuple[float, float, bool]:
    low, high = (_tag(image, tag, None) for tag in (_S_MIN_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE))
    unsigned = _tag(image, _SAMPLE_FORMAT, _UNSIGNED) == _UNSIGNED
    if high is not None and (unsigned or low is not None):
        low = 0 if low is None else low
        if not -np.inf < low < high < np.inf:
            raise PixelFormatError(f"a range from {low} to {high} is stated: {_HOW}")
        return low, high, True
    if not unsigned:
        raise PixelFormatError(f"signed or float values whose range is not stated: {_HOW}")
    bits = int(_tag(image, _BITS_PER_SAMPLE, 1))
    most = _tag(image, _MAX_SAMPLE_VALUE, None)
    # A statistic by the specification, but cameras of 10, 12 and 14 bits state so what their bits
    # are.
    if most is not None and 255 <= most < 2**bits - 1 and int(most + 1).bit_count() == 1:
        return 0, int(most), True
    return 0, 2**bits - 1, bits % 16 != 0


def _tag(image: Image.Image, tag: int, default: Any) -> Any:
    """A number of a TIFF's tags, the first of several."""
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    value = image.tag_v2.get(tag, default)
    return value[0] if isinstance(value, tuple) else value
