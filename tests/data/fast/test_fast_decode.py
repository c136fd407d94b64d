import io
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from distill.data.decode import decode
from distill.data.fast import jpeg
from distill.data.fast.jpeg import decode_pixels

RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 255, (6, 8, 3), np.uint8)).resize((83, 61))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def without_pillow(record: bytes, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "decode", None)
        return decode_pixels(record)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_ordinary_jpegs_have_pillows_pixels_without_pillow(
    mode: str, subsampling: int, progressive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"quality": 90, "subsampling": subsampling, "progressive": progressive}
    record = encoded(PICTURE.convert(mode), **options)
    assert np.array_equal(without_pillow(record, monkeypatch), np.asarray(decode(record)))


def test_large_and_other_images_are_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = Image.fromarray(np.outer(np.arange(48), np.ones(64)).astype(np.uint16) * 1300)
    palette = PICTURE.quantize(16)
    others = [
        encoded(PICTURE.convert("CMYK")),
        encoded(PICTURE, keep_rgb=True),
        encoded(deep, "PNG"),
        encoded(palette, "PNG", transparency=3),
        encoded(PICTURE, "WEBP"),
        encoded(PICTURE, "AVIF"),
        encoded(PICTURE.convert("LA"), "PNG"),
    ]
    for record in others:
        assert np.array_equal(decode_pixels(record), np.asarray(decode(record)))
        with pytest.raises(TypeError):
            without_pillow(record, monkeypatch)
    monkeypatch.setattr(jpeg, "LARGE_PIXELS", 83 * 61 - 1)
    with pytest.raises(TypeError):
        without_pillow(encoded(PICTURE), monkeypatch)


def test_pixels_and_grey_pixels() -> None:
    pixels = np.asarray(PICTURE)
    assert np.array_equal(decode_pixels(pixels), pixels)
    assert np.array_equal(decode_pixels(pixels[..., 0]), np.stack([pixels[..., 0]] * 3, -1))


def outcome(decoder: Any, record: bytes) -> np.ndarray | None:
    try:
        return np.asarray(decoder(record))
    except Exception:
        return None


@pytest.mark.parametrize("progressive", [False, True])
def test_damaged_jpegs_end_as_with_pillow(progressive: bool) -> None:
    record = encoded(PICTURE, progressive=progressive)
    damaged = [record[:length] for length in (0, 2, 3, 20, 300, len(record) // 2)]
    damaged += [record[:-2], record[:-1], record + b"trailing bytes", record[:-2] + b"\0\0"]
    for _ in range(400):
        changed = bytearray(record)
        for place in RNG.integers(0, len(record), RNG.integers(1, 4)):
            changed[place] = RNG.integers(256)
        damaged.append(bytes(changed))
    num_unreadable = num_warned = 0
    for each in damaged:
        expected, found = outcome(decode, each), outcome(decode_pixels, each)
        assert (expected is None) == (found is None), each
        if expected is None or found is None:
            num_unreadable += 1
        else:
            assert np.array_equal(expected, found)
            num_warned += outcome(simplejpeg.decode_jpeg, each) is None
    assert num_unreadable > 5
    assert num_warned > 5  # Pillow shows what it can of them, and so does the fast pipeline
