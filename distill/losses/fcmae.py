"""FCMAE: reconstruct the removed patches of an image (ConvNeXt V2, arXiv 2301.00808, section 3;
the paper's Table 10 compares distillation with it).
"""

import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from distill.losses.hint import Heads, Supervision
from distill.rng import hash64, hash64_tensor

_EPS = 1e-6


def visible_patches(seed: int, positions: Tensor, num_patches: int, keep: int) -> Tensor:
    """Return which patches of each image stay, [B, keep] int64, ascending: a uniformly random
    subset that follows from seed and position alone, on any device.

    Args:
        positions: [B] int64, of the images in the run.
    """
    numbers = torch.arange(num_patches, device=positions.device)
    keys = hash64_tensor(hash64(seed, "patches"), positions)
    order = hash64_tensor(keys[:, None], numbers).argsort(1)
    return order[:, :keep].sort(1).values


def image_targets(pixels: Tensor, patch: int, *, normalise: bool) -> Tensor:
    """Return what is to be reconstructed, [B, L, patch patch 3] float32, of L patches row by row.

    Args:
        pixels: [B, 3, H, H], normalised.
        normalise: each patch to mean 0 and variance 1 (with the unbiased variance).
    """
    batch, colours, height, _ = pixels.shape
    side = height // patch
    cut = pixels.float().reshape(batch, colours, side, patch, side, patch)
    found = cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, side * side, -1)
    if not normalise:
        return found
    variance, mean = torch.var_mean(found, dim=-1, keepdim=True)
    return (found - mean) / (variance + _EPS).sqrt()


class FCMAE(Heads):
    """The decoder: a linear map to its width, a trained token in place of removed patches, one
    ConvNeXt V2 block, and a linear map to the pixels of a patch.

    Args:
        channels: C, of the encoder's features.
        width: of the decoder.
        patch: side of a patch in pixels.
        side: patches in a row of an image.
        normalise: the pixels of each patch.
    """

    def __init__(
        self, channels: int, width: int, patch: int, side: int, *, normalise: bool
    ) -> None:
        super().__init__()
        self.patch, self.side, self.normalise = patch, side, normalise
        self.embed = nn.Linear(channels, width)
        self.token = nn.Parameter(torch.empty(width))
        self.block = ConvNeXtBlock(width, use_grn=True, ls_init_value=None)
        self.predict = nn.Linear(width, patch * patch * 3)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.token, std=0.02)

    def forward(
        self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Return the pixels of removed patches as predicted and as they are, [B, L - V, D] each.

        Args:
            student: the features of visible patches [B, V, C], and the pixels [B, 3, H, H].
            teacher: the visible patches, [B, V] int64, ascending.
        """
        features, pixels = student
        (visible,) = teacher
        seen = self.embed(features)
        batch, width, count = len(seen), seen.shape[-1], self.side**2
        # The token in the precision of the features, which autocast may have lowered.
        tokens = self.token.to(seen.dtype).expand(batch, count, width)
        whole = tokens.scatter(1, visible[..., None].expand(-1, -1, width), seen)
        maps = whole.reshape(batch, self.side, self.side, width).permute(0, 3, 1, 2)
        decoded = self.block(maps).permute(0, 2, 3, 1).reshape(batch, count, width)
        removed = removed_patches(visible, count)
        hidden = decoded.gather(1, removed[..., None].expand(-1, -1, width))
        target = image_targets(pixels, self.patch, normalise=self.normalise)
        return self.predict(hidden), target.gather(
            1, removed[..., None].expand(-1, -1, target.shape[-1])
        )

    def loss(
        self, heads: tuple[Tensor, ...], teacher: tuple[Tensor, ...], batch: Supervision
    ) -> Tensor:
        predicted, target = heads
        return F.mse_loss(predicted.float(), target)


def removed_patches(visible: Tensor, count: int) -> Tensor:
    """Return the patches that are not visible, [B, count - V] int64, ascending.

    Args:
        visible: [B, V] int64.
        count: patches of an image.
    """
    kept = torch.zeros(len(visible), count, dtype=torch.int64, device=visible.device)
    kept = kept.scatter(1, visible, 1)
    return kept.argsort(dim=1, stable=True)[:, : count - visible.shape[1]]
