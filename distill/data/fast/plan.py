"""The random decisions of a training view, drawn before any pixel is touched.

timm's and torchvision's own code draws them, from the global generators in the order of the
reference pipeline, so that both pipelines make the same decisions. timm's policies pass an image
from operation to operation; here they pass a list, and each operation appends itself.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from timm.data import auto_augment as timm_policies
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from distill.data.augment import FitToSquare, TrainTransform

Resize = Literal["bilinear", "bicubic"]
_GEOMETRIC = frozenset(
    {
        "rotate",
        "shear_x",
        "shear_y",
        "translate_x_abs",
        "translate_x_rel",
        "translate_y_abs",
        "translate_y_rel",
    }
)
_RESIZES: dict[InterpolationMode, Resize] = {
    InterpolationMode.BILINEAR: "bilinear",
    InterpolationMode.BICUBIC: "bicubic",
}


class Operation(NamedTuple):
    """One operation of a policy: its name and arguments. Geometric ones also have a resampling
    filter, and a colour for the uncovered area.
    """

    name: str
    arguments: tuple[float, ...]
    resample: Resize | None = None
    fill: tuple[int, int, int] = (0, 0, 0)


class Crop(NamedTuple):
    """A rectangle of an image in pixels, which is resized to the view."""

    top: int
    left: int
    height: int
    width: int
    resize: Resize


class ViewPlan(NamedTuple):
    """What is done to an image, in this order.

    `crop`: of the image; None: it is fitted to a square, and `offset` (top, left) is cropped from
    that square with its padding. `operations`: None if the policy draws while it is applied.
    """

    crop: Crop | None
    offset: tuple[int, int]
    flip_horizontally: bool
    flip_vertically: bool
    operations: tuple[Operation, ...] | None


class Planner:
    """Draws the plans of a reference transform. The transform's policy is changed so that it draws
    only; its other steps stay as they are.

    `pillow_steps`: the policies that mix drawing and pixels (augmix, cifar10). They are applied to
    Pillow images, after everything else was drawn.
    """

    def __init__(self, reference: TrainTransform) -> None:
        self._crop: RandomResizedCropAndInterpolation | None = None
        self.fit: FitToSquare | None = None
        self.padding = 0
        self._flips = {"horizontal": 0.0, "vertical": 0.0}
        self._image_size = reference.image_size
        policies: list[Any] = []
        for step in reference.steps:
            match step:
                case RandomResizedCropAndInterpolation():
                    self._crop = step
                case FitToSquare():
                    self.fit = step
                case transforms.RandomCrop():
                    self.padding = int(step.padding)
                case transforms.RandomHorizontalFlip():
                    self._flips["horizontal"] = step.p
                case transforms.RandomVerticalFlip():
                    self._flips["vertical"] = step.p
                case _:
                    policies.append(step)
        drawn = [_drawing(step) for step in policies]
        self._draw: list[Callable[[list[Operation]], object]] | None = None
        if all(drawn):
            self._draw = [step for step in drawn if step]
        self.pillow_steps = [] if self._draw is not None else policies

    def plan(self, height: int, width: int) -> ViewPlan:
        """Draw the plan for an image of this size."""
        crop, offset = None, (0, 0)
        if self._crop is not None:
            size = torch.empty(1).expand(1, height, width)  # torchvision asks only for its shape
            top, left, rows, columns = self._crop.get_params(
                size, self._crop.scale, self._crop.ratio
            )
            modes = self._crop.interpolation
            mode = random.choice(modes) if isinstance(modes, tuple) else modes
            crop = Crop(top, left, rows, columns, _RESIZES[mode])
        elif self.padding:
            side = self._image_size + 2 * self.padding
            square = torch.empty(1).expand(1, side, side)
            offset = transforms.RandomCrop.get_params(square, (self._image_size,) * 2)[:2]
        horizontally, vertically = (
            bool(probability and torch.rand(1) < probability)
            for probability in self._flips.values()
        )
        operations: list[Operation] = []
        for draw in self._draw or ():
            draw(operations)
        return ViewPlan(
            crop,
            offset,
            horizontally,
            vertically,
            None if self._draw is None else tuple(operations),
        )


def _drawing(step: Any) -> Callable[[list[Operation]], object] | None:
    """The policy as a function that appends what it draws to a list; None if there is none."""
    match step:
        case timm_policies.AutoAugment():
            operations = [each for sub_policy in step.policy for each in sub_policy]
        case timm_policies.RandAugment():
            operations = list(step.ops)
        case transforms.ColorJitter():
            return partial(_jitter, step)
        case _:
            return None
    for each in operations:
        each.aug_fn = partial(_append, timm_policies.NAME_TO_OP[each.name].__name__)
    return step  # type: ignore[no-any-return]


def _append(name: str, drawn: list[Operation], *arguments: float, **options: Any) -> Any:
    """Take the place of timm's function of this name: draw what it draws, and append it."""
    resample, fill = None, options["fillcolor"]
    if name in _GEOMETRIC:
        filters = options["resample"]
        chosen = random.choice(filters) if isinstance(filters, list | tuple) else filters
        resample = _RESAMPLES[chosen]
    elif name == "gaussian_blur_rand":
        name, arguments = "gaussian_blur", (random.uniform(0.1, 2.0 * arguments[0]),)
    drawn.append(Operation(name, arguments, resample, fill))
    return drawn


_RESAMPLES: dict[Image.Resampling, Resize] = {
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}


def _jitter(step: transforms.ColorJitter, drawn: list[Operation]) -> None:
    """torchvision's ColorJitter in Pillow, which applies Pillow's enhancers in a random order."""
    assert step.hue is None
    order, *factors, _ = step.get_params(step.brightness, step.contrast, step.saturation, step.hue)
    for number in order.tolist():
        if number < len(factors) and factors[number] is not None:
            name = ("brightness", "contrast", "color")[number]
            drawn.append(Operation(name, (factors[number],)))
