"""Every way to store pixels gives the right RGB, against values computed here by hand, or a
refusal.
"""

import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distill.data.decode import PixelFormatError, decode, open_image, pixel_format

RAMP = np.linspace(0, 1, 60).reshape(5, 12)


def tiff(
    pixels: np.ndarray,
    *,
    bits: int | None = None,
    photometric: int = 1,
    tags: dict[int, tuple[str, Any]] | None = None,
) -> bytes:
    """An uncompressed little-endian TIFF of one strip. pixels: [H, W] or [H, W, C]; 12 bits are
    packed.
    """
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    width = bits or 8 * pixels.itemsize
    data = pixels.tobytes()
    if width == 12:
        text = ["".join(f"{value:012b}" for value in line) for line in pixels.tolist()]
        data = b"".join(int(line, 2).to_bytes(len(line) // 8, "big") for line in text)
    form = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    entries = {
        256: ("H", [pixels.shape[1]]),
        257: ("H", [pixels.shape[0]]),
        258: ("H", [width] * samples),
        259: ("H", [1]),
        262: ("H", [photometric]),
        277: ("H", [samples]),
        278: ("H", [pixels.shape[0]]),
        279: ("I", [len(data)]),
        339: ("H", [form] * samples),
        **{tag: (kind, [value]) for tag, (kind, value) in (tags or {}).items()},
    }
    kinds = {"H": 3, "I": 4, "i": 9, "f": 11, "d": 12}
    entries[273] = ("I", [8])  # the strip lies behind the header
    directory, extra, start = b"", b"", 8 + len(data) + len(data) % 2
    behind = start + 2 + 12 * len(entries) + 4
    for tag, (kind, values) in sorted(entries.items()):
        content = struct.pack(f"<{len(values)}{kind}", *values)
        if len(content) > 4:
            place = struct.pack("<I", behind + len(extra))
            extra += content
        else:
            place = content.ljust(4, b"\0")
        directory += struct.pack("<HHI", tag, kinds[kind], len(values)) + place
    body = data + b"\0" * (len(data) % 2)
    return (
        b"II*\0"
        + struct.pack("<I", start)
        + body
        + struct.pack("<H", len(entries))
        + directory
        + b"\0" * 4
        + extra
    )


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pgm(values: np.ndarray, most: int) -> bytes:
    kind = ">u2" if most > 255 else "u1"
    magic = b"P5" if values.ndim == 2 else b"P6"
    return (
        magic
        + f"\n{values.shape[1]} {values.shape[0]}\n{most}\n".encode()
        + values.astype(kind).tobytes()
    )


def grey(record: bytes) -> np.ndarray:
    """[H, W] of an image whose channels are equal."""
    pixels = np.asarray(decode(record))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def deep(high: float, kind: str) -> np.ndarray:
    return (
        (RAMP * high).round().astype(kind)
        if np.dtype(kind).kind != "f"
        else (RAMP * high).astype(kind)
    )


RIGHT = np.round(RAMP * 255)
STATED = {340: ("d", -1.0), 341: ("d", 3.0)}


@pytest.mark.parametrize(
    ("record", "pixels"),
    [
        (tiff(deep(65535, "u2")), "I;16"),
        (tiff(deep(4095, "u2"), bits=12), "I;16"),
        (tiff(deep(4095, "u2"), tags={341: ("H", 4095)}), "I;16"),
        (tiff(deep(1023, "u2"), tags={281: ("H", 1023)}), "I;16"),
        (tiff(deep(2**32 - 1, "u4")), "I"),
        (tiff(deep(65535, "u4"), tags={341: ("I", 65535)}), "I"),
        (tiff(deep(400, "i4") - 100, tags={340: ("i", -100), 341: ("i", 300)}), "I"),
        (tiff(deep(400, "i2") - 100, tags={340: ("d", -100), 341: ("d", 300)}), "I"),
        (tiff(deep(4, "f4") - 1, tags=STATED), "F"),
        (tiff(deep(1, "f4"), tags={340: ("f", 0.0), 341: ("f", 1.0)}), "F"),
        (encoded(Image.fromarray(deep(65535, "u2")), "PNG"), "I;16"),
        (encoded(Image.fromarray(deep(65535, "u2")), "JPEG2000"), "I;16"),
        (pgm(deep(4095, "u2"), 4095), "I"),
        (pgm(deep(65535, "u2"), 65535), "I"),
        (pgm(deep(240, "u1"), 240), "L"),
    ],
    ids=map(str, range(15)),
)
def test_a_ramp_over_the_stated_range_is_a_ramp_from_black_to_white(
    record: bytes, pixels: str
) -> None:
    assert pixel_format(open_image(record)) == pixels
    assert np.abs(grey(record) - RIGHT).max() <= 1
    assert (grey(record).min(), grey(record).max()) == (0, 255)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_white_is_zero(bits: int) -> None:
    values = deep(2**bits - 1, "u1" if bits == 8 else "u2")
    if bits == 12:
        with pytest.raises(ValueError, match="no image of a kind"):
            decode(tiff(values, bits=12, photometric=0))
    else:
        assert np.abs(grey(tiff(values, photometric=0)) - (255 - RIGHT)).max() <= 1


@pytest.mark.parametrize(
    "record",
    [
        tiff(deep(1, "f4")),  # 0 to 1 is as likely as any
        tiff(deep(255, "f4")),
        tiff(deep(255, "i4")),
        tiff(deep(100, "i2")),
        tiff(deep(100, "i1")),
        tiff(deep(4095, "u2")),
        tiff(deep(65535, "u4")),
        tiff(deep(4, "f4"), tags=STATED),  # beyond what is stated
        tiff(deep(1, "f4") * np.nan, tags=STATED),
        tiff(deep(1, "f4"), tags={340: ("d", 1.0), 341: ("d", 1.0)}),
        tiff(deep(1, "f4"), tags={340: ("d", 0.0), 341: ("d", float("inf"))}),
        tiff(np.stack([deep(4095, "u2")] * 3, -1), photometric=2),
        tiff(np.stack([deep(65535, "u2")] * 3, -1), photometric=2, tags={341: ("H", 4095)}),
        encoded(Image.fromarray(deep(4095, "u2")), "PNG"),
    ],
    ids=map(str, range(14)),
)
def test_a_range_that_nothing_states_is_refused(record: bytes) -> None:
    with pytest.raises(PixelFormatError, match="store 8-bit pixels"):
        decode(record)


def test_a_black_picture_is_one() -> None:
    assert not grey(tiff(np.zeros((4, 4), "u2"))).any()
    assert not grey(encoded(Image.fromarray(np.zeros((4, 4), "u2")), "PNG")).any()


def test_colours_of_16_bits_keep_their_high_bytes() -> None:
    colours = np.random.default_rng(0).integers(0, 65536, (6, 7, 3)).astype("u2")
    for record in (tiff(colours, photometric=2), pgm(colours, 65535)):
        assert np.abs(np.asarray(decode(record)).astype(int) - colours // 256).max() <= 1
    assert pixel_format(open_image(tiff(colours, photometric=2))) == "RGB of 16 bits"


COLOURS = [(200, 30, 90), (0, 0, 0), (255, 255, 255), (10, 240, 128)]


def blocks(colours: list[tuple[int, ...]]) -> np.ndarray:
    """Squares of 16 pixels beside each other, so that JPEG keeps them."""
    return np.repeat(np.repeat(np.array([colours], np.uint8), 16, 0), 16, 1)


def middles(image: Image.Image) -> np.ndarray:
    return np.asarray(image)[8, 8::16].astype(int)


def test_the_inks_of_adobe_s_jpegs() -> None:
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 128, 255, 0), (30, 60, 90, 120), (0, 0, 0, 255)]
    right = [[(255 - ink) * (255 - k) / 255 for ink in (c, m, y)] for c, m, y, k in inks]
    cmyk = encoded(Image.fromarray(blocks(inks), "CMYK"), "JPEG", quality=100, subsampling=0)
    assert np.abs(middles(decode(cmyk)) - right).max() <= 3
    assert (
        np.abs(
            middles(decode(encoded(Image.fromarray(blocks(inks), "CMYK"), "TIFF"))) - right
        ).max()
        <= 1
    )
    # The same bytes said to be Y, Cb, Cr and K (transform 2), all of them inverted by Adobe's
    # custom.
    mark = cmyk.index(b"Adobe\0")
    ycck = cmyk[: mark + 11] + b"\2" + cmyk[mark + 12 :]
    raw = [[255 - ink for ink in each] for each in inks]
    red_green_blue = [
        (
            y + 1.402 * (cr - 128),
            y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128),
            y + 1.772 * (cb - 128),
        )
        for y, cb, cr, _ in raw
    ]
    right = [
        [(255 - min(max(v, 0), 255)) * k / 255 for v in rgb]
        for rgb, (*_, k) in zip(red_green_blue, raw, strict=True)
    ]
    assert np.abs(middles(decode(ycck)) - right).max() <= 4


def test_lab_is_lightness_between_two_axes() -> None:
    """CIE L*a*b* under D50, to sRGB by Bradford's matrix."""
    lab = [(128, 0, 0), (255, 0, 0), (0, 0, 0), (150, 40, -30), (120, -40, 40)]
    bytes_ = np.array([[(lightness, a % 256, b % 256) for lightness, a, b in lab]], np.uint8)
    matrix = np.array(
        [
            [3.1338561, -1.6168667, -0.4906146],
            [-0.9787684, 1.9161415, 0.0334540],
            [0.0719453, -0.2289914, 1.4052427],
        ]
    )
    right = []
    for lightness, a, b in lab:
        y = (lightness / 255 * 100 + 16) / 116
        cubes = np.array(
            [
                v**3 if v > 6 / 29 else (v - 16 / 116) * 3 * (6 / 29) ** 2
                for v in (y + a / 500, y, y - b / 200)
            ]
        )
        linear = np.clip(matrix @ (cubes * [0.9642, 1, 0.8249]), 0, 1)
        right.append(
            255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
        )
    assert np.abs(np.asarray(decode(tiff(bytes_, photometric=8)))[0] - np.array(right)).max() <= 3


def test_palettes_masks_and_few_bits() -> None:
    colours = np.array(COLOURS, np.uint8)
    indices = np.arange(4, dtype=np.uint8)[None]
    palette = Image.fromarray(indices, "P")
    palette.putpalette(colours.tobytes())
    for options in ({}, {"transparency": 2}, {"transparency": b"\x00\x80\xff"}, {"bits": 2}):
        assert np.array_equal(np.asarray(decode(encoded(palette, "PNG", **options)))[0], colours)
    two = np.array([[0, 1, 1, 0, 1]], bool)
    for kind in ("PNG", "TIFF", "BMP"):
        assert np.array_equal(grey(encoded(Image.fromarray(two), kind)), two * np.uint8(255))
    assert np.array_equal(
        grey(tiff(np.array([[0b11100100]], "u1"), bits=2))[0], [255]
    )  # one pixel a row is given
    grey_alpha = np.array([[(200, 0), (100, 128)]], np.uint8)
    assert np.array_equal(grey(encoded(Image.fromarray(grey_alpha), "PNG"))[0], [200, 100])


def test_premultiplied_colours_are_divided_again() -> None:
    straight, alpha = np.array([200, 100, 50]), 128
    stored = np.round(straight * alpha / 255).astype(np.uint8)
    pixels = np.array([[[*stored, alpha]]], np.uint8)
    assert (
        np.abs(
            np.asarray(decode(tiff(pixels, photometric=2, tags={338: ("H", 1)})))[0, 0] - straight
        ).max()
        <= 2
    )
    two = np.array([[[stored[0], alpha]]], np.uint8)
    assert abs(int(grey(tiff(two, tags={338: ("H", 1)}))[0, 0]) - 200) <= 2


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_several_frames_the_first_is_taken(kind: str) -> None:
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ((250, 0, 0), (0, 0, 250)))
    options = {"lossless": True} if kind == "WEBP" else {}
    record = encoded(first, kind, save_all=True, append_images=[second], **options)
    assert decode(record).getpixel((3, 3)) == (250, 0, 0)


def test_a_program_is_no_picture() -> None:
    with pytest.raises(ValueError, match="EPS is not decoded"):
        decode(encoded(Image.new("RGB", (4, 4)), "EPS"))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["u1", "u2", "u4", "i1", "i2", "i4", "f4", "f8"]),
    high=st.one_of(
        st.floats(), st.floats(-10, 2**33), st.sampled_from([255, 4095, 65535, 2**32 - 1])
    ),
    channels=st.sampled_from([1, 2, 3, 4]),
    photometric=st.integers(0, 8),
    tags=st.dictionaries(
        st.sampled_from([280, 281, 338, 339, 340, 341]),
        st.tuples(st.just("d"), st.floats(-1e6, 1e10)),
        max_size=3,
    ),
)
def test_any_tiff_is_right_or_an_error(
    kind: str, high: float, channels: int, photometric: int, tags: dict[int, tuple[str, float]]
) -> None:
    """A ramp of one channel whose range is that of its bits is a ramp; others are an image of 8
    bits or an error.
    """
    with np.errstate(all="ignore"):
        values = (RAMP * high).astype(kind)
    record = tiff(
        values if channels == 1 else np.stack([values] * channels, -1),
        photometric=photometric,
        tags=tags,
    )
    try:
        image = decode(record)
    except Exception:  # which `read_image` turns into a message
        return
    assert (image.mode, image.size) == ("RGB", (12, 5))
    if channels == 1 and not tags and photometric in (0, 1) and kind[0] == "u":
        bits = 8 * int(kind[1])
        right = values.astype(np.int64) >> (bits - 8)
        assert np.array_equal(np.asarray(image)[..., 0], right if photometric else 255 - right)
