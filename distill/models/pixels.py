"""The pixels of a model: size, mean and std, applied on the device to images that all models share.

Images arrive in [0, 1], augmented and mixed. Normalising is affine and mixing is a convex
combination, so normalising after mixing equals mixing normalised images: student and teacher share
one batch and differ only here.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def device_mode(interpolation: str) -> str:
    """Return how torch resizes with antialiasing in place of one of Pillow's interpolations."""
    return "bilinear" if interpolation == "bilinear" else "bicubic"


class Pixels(nn.Module):
    """Images [B, 3, H, W] in [0, 1] to the model's pixels [B, 3, S, S] in `dtype`. No parameters,
    nothing in the state dict.

    Args:
        mean, std: of the model's training pixels, three values each, in units of [0, 1].
        image_size: S; None leaves the size alone.
        interpolation: of the resize on the device, antialiased: "bilinear", or bicubic for all
            others, which torch does not antialias. Bicubic overshoot is not clamped, so that the
            operation stays linear. An evaluation in a model's own view resizes with Pillow first,
            and this does nothing.
        dtype: of the result; the arithmetic is float32.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int | None = None,
        interpolation: str = "bicubic",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.mean, self.std = tuple(mean), tuple(std)
        self.image_size = image_size
        self.mode = device_mode(interpolation)
        self.dtype = dtype
        mean64, std64 = (
            torch.tensor(self.mean, dtype=torch.float64),
            torch.tensor(self.std, dtype=torch.float64),
        )
        self.register_buffer("scale", (1 / std64).float().view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean64 / std64).float().view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        images = images.float()
        size = self.image_size
        if size is not None and images.shape[-2:] != (size, size):
            images = F.interpolate(
                images, size=(size, size), mode=self.mode, antialias=True, align_corners=False
            )
        return torch.addcmul(self.shift, images, self.scale).to(self.dtype)

    def extra_repr(self) -> str:
        return (
            f"mean={self.mean}, std={self.std}, image_size={self.image_size}, mode={self.mode},"
            f" dtype={self.dtype}"
        )


class Network(nn.Module):
    """The module called in training: images in [0, 1] become the pixels of the model, then
    logits.
    """

    def __init__(self, net: nn.Module, pixels: Pixels) -> None:
        super().__init__()
        self.net = net
        self.pixels = pixels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images [B, 3, H, W] in [0, 1] -> logits [B, K]."""
        return self.net(self.pixels(images))  # type: ignore[no-any-return]
