import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distill.data.decode import UnreadableImageError, decode, read_image
from distill.errors import InputError

RNG = np.random.default_rng(0)
PIXELS = np.array(Image.fromarray(RNG.integers(0, 255, (6, 8, 3), np.uint8)).resize((64, 48)))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class One:
    labels, classes = np.zeros(1, np.int64), ("a",)

    def __init__(self, record: bytes | OSError) -> None:
        self.record = record

    def __len__(self) -> int:
        return 1

    def read(self, index: int) -> bytes:
        if isinstance(self.record, Exception):
            raise self.record
        return self.record

    def describe(self, index: int) -> str:
        return "some/where.jpg"


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "JPEG"])
def test_every_usual_format_becomes_rgb(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode(encoded(Image.fromarray(PIXELS), kind, **options))
    assert (image.mode, image.size) == ("RGB", (64, 48))
    if kind not in ("JPEG", "GIF"):
        assert np.array_equal(np.asarray(image), PIXELS)


def test_every_mode_becomes_rgb() -> None:
    rgb = Image.fromarray(PIXELS)
    grey = np.asarray(rgb.convert("L"))
    assert np.array_equal(
        np.asarray(decode(encoded(rgb.convert("L"), "PNG"))), np.stack([grey] * 3, -1)
    )
    rgba = rgb.convert("RGBA")
    rgba.putalpha(Image.fromarray(grey))
    assert np.array_equal(
        np.asarray(decode(encoded(rgba, "PNG"))), PIXELS
    )  # transparency is dropped, not blended
    palette = rgb.quantize(16)
    assert np.array_equal(
        np.asarray(decode(encoded(palette, "PNG", transparency=3))),
        np.asarray(palette.convert("RGB")),
    )
    for mode, kind in (("CMYK", "JPEG"), ("LA", "PNG"), ("1", "PNG"), ("YCbCr", "JPEG")):
        assert decode(encoded(rgb.convert(mode), kind)).mode == "RGB"


def test_sixteen_bits_keep_their_high_byte_instead_of_turning_white() -> None:
    deep = np.outer(np.arange(48), np.ones(64)).astype(np.uint16) * 1300
    image = np.asarray(decode(encoded(Image.fromarray(deep), "PNG")))
    assert np.array_equal(image[..., 0], (deep >> 8).astype(np.uint8))
    assert image.max() < 250


def test_orientation_is_ignored_as_in_timm() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert decode(encoded(Image.fromarray(PIXELS), "JPEG", exif=exif)).size == (64, 48)


def test_pixels_pass_through() -> None:
    assert np.array_equal(np.asarray(decode(PIXELS)), PIXELS)
    assert np.array_equal(np.asarray(decode(PIXELS[..., 0])), np.stack([PIXELS[..., 0]] * 3, -1))


@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {})]
)
def test_a_cut_file_is_an_error_that_names_it_not_a_grey_image(
    kind: str, options: dict[str, bool]
) -> None:
    record = encoded(Image.fromarray(PIXELS), kind, **options)
    assert read_image(One(record), 0).size == (64, 48)
    for share in (0.2, 0.5, 0.9, 0.97):
        with pytest.raises(UnreadableImageError, match=r"some/where.jpg: unreadable image"):
            read_image(One(record[: int(len(record) * share)]), 0)
    if kind == "JPEG":
        with pytest.raises(UnreadableImageError):
            read_image(One(record[:-2]), 0)  # all but the end marker


@pytest.mark.parametrize(
    "record", [b"", b"\x00" * 100, b"<html>not found</html>", OSError("stale file handle")]
)
def test_what_is_no_image_is_an_error_in_one_line(record: bytes | OSError) -> None:
    with pytest.raises(UnreadableImageError, match=r"set data.unreadable to skip") as info:
        read_image(One(record), 0)
    assert isinstance(info.value, InputError)
    assert "\n" not in str(info.value)
    assert "object at 0x" not in str(info.value)
