"""The operations of timm's policies on uint8 [H, W, 3], each as Pillow computes it.

Pillow truncates where OpenCV rounds to the nearest: `_TRUNCATE` is added before OpenCV rounds.
What a value becomes depends on the value alone in most operations: they are lookup tables, with
Pillow's own values. The distances from Pillow are in docs/method.md.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np

from distill.data.fast.plan import Operation, Resize

# One decoding process for each core: more threads gain nothing, and a forked process has none.
cv2.setNumThreads(1)

_TRUNCATE = -0.4999
_LEVELS = np.arange(256)
# ImageFilter.SMOOTH
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
_FILTERS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def apply(pixels: np.ndarray, operation: Operation) -> np.ndarray:
    """The image after an operation; may be the same array where nothing changes."""
    if operation.resample is not None:
        change = _GEOMETRIC[operation.name]
        return change(pixels, operation.arguments[0], operation.resample, operation.fill)
    return _OPERATIONS[operation.name](pixels, *operation.arguments)


# ---- values --------------------------------------------------------------------------------------


def flipped(pixels: np.ndarray, *, horizontally: bool, vertically: bool) -> np.ndarray:
    """The image, mirrored left to right, upside down, or both."""
    if not horizontally and not vertically:
        return pixels
    return np.asarray(cv2.flip(pixels, int(horizontally) if not vertically else -int(horizontally)))


def _look_up(pixels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """`table`: [256], or [256, 3] with one for each channel; clipped to 0..255."""
    table = table.clip(0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(pixels, table if table.ndim == 1 else table[:, None]))


def _invert(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.bitwise_not(pixels))


def _solarize(pixels: np.ndarray, threshold: float) -> np.ndarray:
    return _look_up(pixels, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def _solarize_add(pixels: np.ndarray, added: float, threshold: float = 128) -> np.ndarray:
    return _look_up(pixels, np.where(threshold > _LEVELS, _LEVELS + added, _LEVELS))


def _posterize(pixels: np.ndarray, bits: float) -> np.ndarray:
    bits = min(max(int(bits), 0), 8)
    return pixels if bits == 8 else _look_up(pixels, _LEVELS & (256 - 2 ** (8 - bits)))


def _blended_levels(level: int, factor: float) -> np.ndarray:
    """[256] float32: Pillow's blend of a constant image (factor 0) with each level (factor 1)."""
    return np.float32(level) + np.float32(factor) * (_LEVELS - level).astype(np.float32)


def _brightness(pixels: np.ndarray, factor: float) -> np.ndarray:
    return _look_up(pixels, _blended_levels(0, factor))


def _contrast(pixels: np.ndarray, factor: float) -> np.ndarray:
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return _look_up(pixels, _blended_levels(int(cv2.mean(grey)[0] + 0.5), factor))


def _auto_contrast(pixels: np.ndarray) -> np.ndarray:
    table = np.empty((256, 3))
    for channel, plane in enumerate(cv2.split(pixels)):
        low, high, _, _ = cv2.minMaxLoc(plane)
        if high <= low:
            table[:, channel] = _LEVELS
        else:
            scale = 255.0 / (high - low)
            table[:, channel] = _LEVELS * scale - low * scale
    return _look_up(pixels, table)


def _equalize(pixels: np.ndarray) -> np.ndarray:
    table = np.empty((256, 3))
    for channel in range(3):
        counts = (
            cv2.calcHist([pixels], [channel], None, [256], [0, 256]).reshape(-1).astype(np.int64)
        )
        used = counts[counts > 0]
        step = int(used.sum() - used[-1]) // 255
        if len(used) == 1 or not step:
            table[:, channel] = _LEVELS
        else:
            table[:, channel] = (step // 2 + np.cumsum(counts) - counts) // step
    return _look_up(pixels, table)


# ---- neighbours and channels ---------------------------------------------------------------------


def _blend(degenerate: np.ndarray, pixels: np.ndarray, factor: float) -> np.ndarray:
    """Pillow's blend: `degenerate` at factor 0, the image at 1, extrapolated above."""
    return np.asarray(cv2.addWeighted(pixels, factor, degenerate, 1 - factor, _TRUNCATE))


def _color(pixels: np.ndarray, factor: float) -> np.ndarray:
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return _blend(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), pixels, factor)


def _desaturate(pixels: np.ndarray, factor: float) -> np.ndarray:
    return _color(pixels, min(1.0, max(0.0, 1.0 - factor)))


def _sharpness(pixels: np.ndarray, factor: float) -> np.ndarray:
    smooth = cv2.filter2D(pixels, -1, _SMOOTH)
    smooth[[0, -1]], smooth[:, [0, -1]] = pixels[[0, -1]], pixels[:, [0, -1]]  # Pillow skips them
    return _blend(smooth, pixels, factor)


def _gaussian_blur(pixels: np.ndarray, radius: float) -> np.ndarray:
    """Pillow's approximation: a box three times along each axis, rounded in between. The box is
    that of Pillow's BoxBlur.c.
    """
    variance = radius * radius / 3
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    part /= 6 * (variance - (whole + 1) ** 2)
    weight = 1 / (2 * (whole + part) + 1)
    edge = (1 - (2 * whole + 1) * weight) / 2
    box = np.array([edge, *[weight] * (2 * whole + 1), edge])
    for kernel in (box[None], box[:, None]):
        for _ in range(3):
            pixels = cv2.filter2D(pixels, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    return pixels


# ---- geometry ------------------------------------------------------------------------------------


def _translate(
    pixels: np.ndarray, shift: float, axis: int, resample: Resize, fill: tuple[int, int, int]
) -> np.ndarray:
    """Move the image by `shift` pixels towards the start of an axis: one filter for all pixels."""
    size = pixels.shape[axis]
    start = math.floor(shift)
    d = shift - start
    if resample == "bilinear":
        taps, anchor = [1 - d, d], 0
    else:  # Pillow's Geometry.c: the cubic convolution with a = -1
        d2, d3 = d * d, d * d * d
        taps, anchor = [-d + 2 * d2 - d3, 1 - 2 * d2 + d3, d + d2 - d3, d3 - d2], 1
    kernel = np.array([taps], np.float64)
    padded = cv2.copyMakeBorder(  # the first pixel may lie between the border and its centre
        pixels, int(axis == 0), 0, int(axis == 1), 0, cv2.BORDER_REPLICATE
    )
    moved = cv2.filter2D(
        padded,
        -1,
        kernel if axis else kernel.T,
        anchor=(anchor, 0) if axis else (0, anchor),
        delta=_TRUNCATE,
        borderType=cv2.BORDER_REPLICATE,
    )
    found = _filled(pixels.shape, fill).copy()
    first = max(math.ceil(-shift - 0.5), 0)
    last = min(math.ceil(size - shift - 0.5), size)
    if first < last:
        taken = slice(first + start + 1, last + start + 1)
        if axis:
            found[:, first:last] = moved[:, taken]
        else:
            found[first:last] = moved[taken]
    return found


def _warp(
    pixels: np.ndarray,
    x_row: tuple[float, float, float],
    y_row: tuple[float, float, float],
    resample: Resize,
    fill: tuple[int, int, int],
) -> np.ndarray:
    """Pillow's affine transform. OpenCV's bicubic filter has a = -0.75 and Pillow's -1, so that
    the distance is larger than with the bilinear one.

    In float32, since Pillow truncates: rounded values would be 0.4 levels brighter.

    Args:
        x_row, y_row: the old x and y from the new (x, y, 1), as in Pillow's Image.transform: the
            centre of the first pixel is at (0.5, 0.5).
    """
    height, width, _ = pixels.shape
    (a, b, c), (d, e, f) = x_row, y_row
    between_centres = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    warped = cv2.warpAffine(
        pixels.astype(np.float32),
        between_centres,
        (width, height),
        flags=_FILTERS[resample] | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    truncated = np.clip(warped, 0, 255, out=warped).astype(np.uint8)
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    inside = np.ones((height, width), bool)
    for old, size in ((a * x + (b * y + c), width), (d * x + (e * y + f), height)):
        inside &= old >= 0
        inside &= old < size
    found = _filled(pixels.shape, fill).copy()
    return np.asarray(cv2.copyTo(truncated, inside.view(np.uint8), found))


@lru_cache(maxsize=8)  # numpy takes 0.23 ms to write three bytes everywhere, and 0.01 to copy them
def _filled(shape: tuple[int, ...], fill: tuple[int, int, int]) -> np.ndarray:
    return np.full(shape, fill, np.uint8)


def _rotate(
    pixels: np.ndarray, degrees: float, resample: Resize, fill: tuple[int, int, int]
) -> np.ndarray:
    angle = -math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = pixels.shape[1] / 2, pixels.shape[0] / 2
    x_row = (cos, sin, x - cos * x - sin * y)
    return _warp(pixels, x_row, (-sin, cos, y + sin * x - cos * y), resample, fill)


def _shear_x(
    pixels: np.ndarray, factor: float, resample: Resize, fill: tuple[int, int, int]
) -> np.ndarray:
    return _warp(pixels, (1.0, factor, 0.0), (0.0, 1.0, 0.0), resample, fill)


def _shear_y(
    pixels: np.ndarray, factor: float, resample: Resize, fill: tuple[int, int, int]
) -> np.ndarray:
    return _warp(pixels, (1.0, 0.0, 0.0), (factor, 1.0, 0.0), resample, fill)


_GEOMETRIC: dict[str, Callable[[np.ndarray, float, Resize, tuple[int, int, int]], np.ndarray]] = {
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x_abs": lambda pixels, shift, *how: _translate(pixels, shift, 1, *how),
    "translate_y_abs": lambda pixels, shift, *how: _translate(pixels, shift, 0, *how),
    "translate_x_rel": lambda pixels, share, *how: _translate(
        pixels, share * pixels.shape[1], 1, *how
    ),
    "translate_y_rel": lambda pixels, share, *how: _translate(
        pixels, share * pixels.shape[0], 0, *how
    ),
}

_OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    "auto_contrast": _auto_contrast,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "desaturate": _desaturate,
    "equalize": _equalize,
    "gaussian_blur": _gaussian_blur,
    "invert": _invert,
    "posterize": _posterize,
    "sharpness": _sharpness,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
}
