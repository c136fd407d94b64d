"""Large images are decoded small, one at a time where they are whole in memory, and without a
warning on the terminal.
"""

import io
import struct
import warnings
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import distill.data.decode
from distill.data.decode import MOST_PIXELS, UnreadableImageError, decode, read_image


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def picture(monkeypatch: pytest.MonkeyPatch) -> Image.Image:
    """160x100, where images of more than 4,000 pixels are large ones."""
    monkeypatch.setattr(distill.data.decode, "LARGE_PIXELS", 4000)
    small = np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8)
    return Image.fromarray(small).resize((160, 100), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 98}),
        ("JPEG", {"quality": 98, "progressive": True}),
        ("PNG", {}),
        ("TIFF", {}),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_large_image_is_halved_until_it_is_none(
    picture: Image.Image,
    kind: str,
    options: dict[str, Any],
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mode = "RGBA" if (kind, mode) == ("PNG", "CMYK") else mode
    turns: list[object] = []
    monkeypatch.setattr(distill.data.decode, "_wait_for_turn", turns.append)
    image = decode(encoded(picture.convert(mode), kind, **options))
    assert image.size == (80, 50)
    right = np.asarray(picture.convert(mode).convert("RGB").reduce(2)).astype(int)
    assert np.abs(np.asarray(image) - right).mean() < (1 if kind != "JPEG" else 3)
    assert len(turns) == (0 if options == {"quality": 98} else 1)


def test_an_ordinary_image_keeps_every_pixel(
    monkeypatch: pytest.MonkeyPatch, picture: Image.Image
) -> None:
    monkeypatch.setattr(distill.data.decode, "LARGE_PIXELS", 16_000)
    record = encoded(picture, "JPEG")
    assert np.array_equal(
        np.asarray(decode(record)), np.asarray(Image.open(io.BytesIO(record)).convert("RGB"))
    )


def test_large_images_wait_for_each_other_and_nothing_waits_without_a_folder(
    picture: Image.Image, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    with ExitStack() as stack:
        distill.data.decode._wait_for_turn(stack)
        assert [path.name.startswith("distill-large-image") for path in tmp_path.iterdir()] == [
            True
        ]
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "gone"))
    assert decode(encoded(picture, "PNG")).size == (80, 50)


class _One:
    def __init__(self, record: bytes) -> None:
        self._record = record

    def read(self, index: int) -> bytes:
        return self._record

    def describe(self, index: int) -> str:
        return "huge.png"


def _header_of(width: int, height: int) -> bytes:
    """A PNG that says its size and holds nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_beyond_the_limit_an_image_is_refused_by_name_and_nothing_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnreadableImageError, match=r"huge.png.*more than the 179 megapixels"):
            read_image(_One(_header_of(20_000, 20_000)), 0)  # type: ignore[arg-type]
        for width in (9_000, 13_000):  # above Pillow's warning
            with pytest.raises(UnreadableImageError, match=r"huge\.png: unreadable image"):
                read_image(_One(_header_of(width, 10_001)), 0)  # type: ignore[arg-type]
    assert Image.MAX_IMAGE_PIXELS is not None
    assert 2 * Image.MAX_IMAGE_PIXELS == MOST_PIXELS
