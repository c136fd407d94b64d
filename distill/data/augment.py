"""One view of one image, through timm's and torchvision's own transforms: RGB in, uint8 [H, W, 3]
out.

Pixels stay 8-bit and unnormalised: each model normalises for itself, on the device. The transforms
draw from the global generators of Python, numpy and torch, which the loader seeds with `sample_key`
before each call.
"""

import re
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment as timm_policies
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from distill.data.decode import decode
from distill.errors import InputError
from distill.recipe.data import CropMode, Interpolation
from distill.rng import hash64

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_MODES = {
    "random": InterpolationMode.BILINEAR,  # what timm takes where nothing is drawn
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}
_OPERATION_SETS = {"tweights", "t3a", "t3aw"}


def sample_key(seed: int, epoch: int, index: int, view: int) -> int:
    """What the global generators are seeded with before view `view` of sample `index`
    in `epoch`.
    """
    return hash64(seed, "augment", epoch, index, view)


class TrainTransform:
    """Training view, in this order: crop, flips, policy or colour jitter, erasing. Values as in the
    recipe's `data.augment`. `steps`: those before erasing.

    `mean` fills what rotations and shears uncover (as in timm) and, with `std`, scales the noise of
    random erasing. The "padded" and "none" crops first bring an image of another size to
    `image_size` by its shorter side, as timm does without augmentation.

    Raises:
        InputError: an unknown policy, or colour jitter together with one.
    """

    decode = staticmethod(decode)

    def __init__(
        self,
        *,
        image_size: int,
        crop: Literal["random_resized", "padded", "none"] = "random_resized",
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (0.75, 4 / 3),
        padding: int = 4,
        interpolation: Literal["random", "bilinear", "bicubic"] = "random",
        horizontal_flip: float = 0.5,
        vertical_flip: float = 0.0,
        auto_augment: str | None = None,
        color_jitter: float = 0.0,
        random_erasing: float = 0.0,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        self.image_size = image_size
        cifar_policy = auto_augment == "cifar10"
        if auto_augment is not None:
            _check_policy(auto_augment, color_jitter)
        try:
            first, second, _ = create_transform(
                input_size=image_size,
                is_training=True,
                scale=scale,
                ratio=ratio,
                hflip=horizontal_flip,
                vflip=vertical_flip,
                color_jitter=color_jitter or None,
                auto_augment=None if cifar_policy else auto_augment,
                interpolation=interpolation,
                mean=mean,
                std=std,
                separate=True,
            )
        except (AssertionError, KeyError, ValueError) as error:
            raise InputError(
                f"data.augment.auto_augment: timm does not know {auto_augment!r} ({error})"
            ) from error
        steps = list(first.transforms)
        if crop != "random_resized":
            # timm has no recipe for CIFAR: its random resized crop is taken out, the flips behind
            # it stay.
            mode = _MODES[interpolation]
            fit = [transforms.Resize(image_size, mode), transforms.CenterCrop(image_size)]
            pad = [transforms.RandomCrop(image_size, padding)] if crop == "padded" else []
            steps[:1] = [FitToSquare(image_size, fit), *pad]
        if cifar_policy:
            steps.append(transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10))
        self.steps = steps + [_posterize_to_black(step) for step in second.transforms]
        self._erase = (
            RandomErasing(random_erasing, mode="pixel", device="cpu") if random_erasing else None
        )
        self._mean = torch.tensor(mean).view(3, 1, 1)
        self._std = torch.tensor(std).view(3, 1, 1)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """RGB image of any size -> uint8 [image_size, image_size, 3]."""
        for step in self.steps:
            image = step(image)
        return self.erased(np.asarray(image) if self._erase is None else np.array(image))

    def erased(self, pixels: np.ndarray) -> np.ndarray:
        """timm's random erasing with noise for each pixel, brought back to 8 bits; the same array
        where nothing is erased.

        timm writes normal noise into the normalised image. Here it writes into an empty one, and
        what it wrote is de-normalised, clipped to 0..255 (about 3 % of the noise, beyond two
        standard deviations) and rounded; the rest stays as it was, exactly.
        """
        if self._erase is None:
            return pixels
        noise = torch.full((3, *pixels.shape[:2]), torch.nan)
        self._erase(noise)
        if not torch.isnan(noise[0]).all():
            drawn = (
                ((noise * self._std + self._mean) * 255)
                .round_()
                .clamp_(0, 255)
                .permute(1, 2, 0)
                .numpy()
            )
            written = ~np.isnan(drawn)
            pixels = pixels.copy()
            pixels[written] = drawn[written].astype(np.uint8)
        return pixels


class EvalTransform:
    """Evaluation view, timm's own transforms: resize to floor(image_size / crop_fraction), then the
    centre.

    `fill` is the colour, in [0, 1], that crop_mode "border" pads with: the model's mean. The other
    modes do not pad.
    """

    def __init__(
        self,
        *,
        image_size: int,
        crop_fraction: float = 0.95,
        crop_mode: CropMode = "center",
        interpolation: Interpolation = "bicubic",
        fill: tuple[float, float, float] | None = None,
    ) -> None:
        self.image_size = image_size
        assert crop_mode != "border" or fill is not None
        whole = create_transform(
            input_size=image_size,
            crop_pct=crop_fraction,
            crop_mode=crop_mode,
            interpolation=interpolation,
            mean=fill or IMAGENET_MEAN,
            use_prefetcher=True,
        )
        self._steps = whole.transforms[:-1]  # without the step to a [3, H, W] tensor

    def __call__(self, image: Image.Image) -> np.ndarray:
        """RGB image of any size -> uint8 [image_size, image_size, 3]."""
        for step in self._steps:
            image = step(image)
        return np.asarray(image)


class FitToSquare:
    """Apply the steps to an image unless it is already a square of the given side."""

    def __init__(self, size: int, steps: list[torch.nn.Module]) -> None:
        self._size, self._steps = size, steps

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.size != (self._size, self._size):
            for step in self._steps:
                image = step(image)
        return image


def _posterize_to_black(step: Any) -> Any:
    """Let a timm policy posterize to 0 bits, which is black; Pillow 13 raises there.

    timm reaches 0 bits at magnitude 10 ("rand-m9-mstd0.5-inc1" in 1 of 300 images) and for low
    magnitudes of "v0".
    """
    if isinstance(step, timm_policies.AutoAugment):
        ops = [op for sub_policy in step.policy for op in sub_policy]
    elif isinstance(step, timm_policies.RandAugment | timm_policies.AugMixAugment):
        ops = step.ops
    else:
        return step
    for op in ops:
        if op.aug_fn is timm_policies.posterize:
            op.aug_fn = _posterize
    return step


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    if bits < 1:
        return Image.new(image.mode, image.size)
    posterized: Image.Image = timm_policies.posterize(image, bits, **options)
    return posterized


def _check_policy(policy: str, color_jitter: float) -> None:
    """Refuse what timm would silently ignore: sections it cannot parse, unknown operation sets,
    jitter together with a policy.
    """
    key = "data.augment.auto_augment"
    for section in policy.split("-")[1:]:
        known_set = section in _OPERATION_SETS
        if not known_set and (
            section.startswith("t") or not re.fullmatch(r"[a-z]+\d[\d.]*|mstdinf", section)
        ):
            raise InputError(
                f"{key}: section {section!r} of {policy!r} means nothing to timm: write for example"
                " rand-m7-mstd0.5-inc1"
            )
    if color_jitter and "3a" not in policy:
        raise InputError(
            f"data.augment.color_jitter: {color_jitter} has no effect beside auto_augment"
            f" {policy!r}: set it to 0, or auto_augment to null"
        )
