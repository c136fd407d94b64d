"""The training view of the fast pipeline: uint8 [H, W, 3] in and out."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from distill.data.augment import TrainTransform
from distill.data.fast.jpeg import decode_pixels
from distill.data.fast.operations import apply, flipped
from distill.data.fast.plan import Planner, Resize, ViewPlan


class FastTransform:
    """`TrainTransform` with the same settings and random decisions, on arrays.

    Raises:
        InputError: as `TrainTransform`.
    """

    decode = staticmethod(decode_pixels)

    def __init__(self, *, image_size: int, **settings: Any) -> None:
        self.image_size = image_size
        self._reference = TrainTransform(image_size=image_size, **settings)
        self._planner = Planner(self._reference)

    def plan(self, height: int, width: int) -> ViewPlan:
        """Draw the decisions for an image of this size, from the global generators."""
        return self._planner.plan(height, width)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [image_size, image_size, 3]."""
        plan = self.plan(*pixels.shape[:2])
        pixels = self._square(pixels, plan)
        pixels = flipped(
            pixels, horizontally=plan.flip_horizontally, vertically=plan.flip_vertically
        )
        for operation in plan.operations or ():
            pixels = apply(pixels, operation)
        if self._planner.pillow_steps:
            image = Image.fromarray(pixels)
            for step in self._planner.pillow_steps:
                image = step(image)
            pixels = np.asarray(image)
        return self._reference.erased(pixels)

    def _square(self, pixels: np.ndarray, plan: ViewPlan) -> np.ndarray:
        size = self.image_size
        if plan.crop is not None:
            top, left, height, width, mode = plan.crop
            return resized(pixels[top : top + height, left : left + width], size, size, mode)
        if pixels.shape[:2] != (size, size):
            assert self._planner.fit is not None
            pixels = np.asarray(self._planner.fit(Image.fromarray(pixels)))
        if padding := self._planner.padding:
            top, left = plan.offset
            padded = np.pad(pixels, ((padding, padding), (padding, padding), (0, 0)))
            pixels = np.ascontiguousarray(padded[top : top + size, left : left + size])
        return pixels


def resized(pixels: np.ndarray, height: int, width: int, mode: Resize) -> np.ndarray:
    """Resize as Pillow does: the filter widens with the reduction, and edges are not padded.

    torch's kernel for uint8 takes channels-last memory, and this exact sequence of views: another
    one is copied to channels-first memory and is slower.

    Args:
        pixels: uint8 [H, W, 3], a crop of another array too.
    """
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    image = F.interpolate(image, (height, width), mode=mode, antialias=True, align_corners=False)
    return image[0].permute(1, 2, 0).numpy()
