"""The part of a ConvNeXt that a masked image needs: features of the visible patches alone.

FCMAE (ConvNeXt V2, arXiv 2301.00808, section 3) removes most 32-pixel patches of an image and lets
the encoder see the others, as a sparse convolution would. Each image keeps the same number of
patches, so their features have a static shape: the stem, normalisation, linear layers and
downsampling run on the visible patches, gathered; only the depth-wise convolution runs on the whole
map, with zeros where patches were removed. Global response normalisation takes its norm over the
visible positions. The result is that of the whole net in which removed positions are zero before
and after each depth-wise convolution and left out of each norm.
"""

from typing import NamedTuple

import torch
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import Tensor, nn

from distill.errors import InputError

PATCH = 32
"""Side of a patch in pixels: a position of the last stage."""


class Patches(NamedTuple):
    """The visible patches of a batch.

    Attributes:
        visible: [B, V] int64, numbers of patches, row by row, ascending.
        side: patches in a row of an image.
    """

    visible: Tensor
    side: int

    def positions(self, scale: int) -> Tensor:
        """Return where the positions of visible patches lie in a map: [B, V scale scale] int64,
        row-major numbers in a map of side * scale positions a row.

        Args:
            scale: positions in a row of a patch.
        """
        within = torch.arange(scale, device=self.visible.device)
        row, column = self.visible // self.side, self.visible % self.side
        rows = (row[..., None] * scale + within)[..., :, None]
        columns = (column[..., None] * scale + within)[..., None, :]
        return (rows * (self.side * scale) + columns).flatten(1)


def visible_features(net: nn.Module, pixels: Tensor, visible: Tensor) -> Tensor:
    """Return the last features of visible patches, [B, V, C].

    Args:
        net: one that `refuse_other_than_convnext` accepts.
        pixels: [B, 3, H, H], normalised.
        visible: [B, V] int64, numbers of patches, row by row, ascending.
    """
    assert isinstance(net, ConvNeXt)
    patches = Patches(visible, pixels.shape[-1] // PATCH)
    x = net.stem(image_patches(pixels, visible))
    for stage in net.stages:
        x = stage.downsample(x)  # 2x2 with stride 2: never across patches
        _, channels, scale, _ = x.shape
        positions = patches.positions(scale)[..., None].expand(-1, -1, channels)
        rows = _rows(x, len(pixels))
        for block in stage.blocks:
            if stage.grad_checkpointing and torch.is_grad_enabled():
                rows = torch.utils.checkpoint.checkpoint(
                    _block, block, rows, positions, patches.side, scale, use_reentrant=False
                )
            else:
                rows = _block(block, rows, positions, patches.side, scale)
        x = _maps(rows, scale)
    return net.norm_pre(x).reshape(len(pixels), visible.shape[1], -1)  # type: ignore[no-any-return]


def image_patches(pixels: Tensor, visible: Tensor) -> Tensor:
    """Return the visible patches of images, [B V, 3, 32, 32].

    Args:
        pixels: [B, 3, H, H].
        visible: [B, V] int64.
    """
    batch, colours, height, _ = pixels.shape
    side = height // PATCH
    cut = pixels.reshape(batch, colours, side, PATCH, side, PATCH).permute(0, 2, 4, 1, 3, 5)
    chosen = visible[..., None, None, None].expand(-1, -1, colours, PATCH, PATCH)
    found = cut.reshape(batch, side * side, colours, PATCH, PATCH).gather(1, chosen)
    return found.flatten(0, 1)


def _rows(x: Tensor, batch: int) -> Tensor:
    """[B V, C, s, s] -> [B, V s s, C], channels last in memory."""
    return x.permute(0, 2, 3, 1).reshape(batch, -1, x.shape[1])


def _maps(rows: Tensor, scale: int) -> Tensor:
    """[B, V s s, C] -> [B V, C, s, s], channels last in memory."""
    return rows.reshape(-1, scale, scale, rows.shape[-1]).permute(0, 3, 1, 2)


def _block(block: nn.Module, rows: Tensor, positions: Tensor, side: int, scale: int) -> Tensor:
    """Return what a block makes of visible positions, [B, V s s, C].

    Args:
        positions: [B, V s s, C] int64, of `rows` in the map.
    """
    assert isinstance(block, ConvNeXtBlock)
    batch, count, channels = rows.shape
    width = side * scale
    whole = rows.new_zeros(batch, width * width, channels).scatter(1, positions, rows)
    mixed = block.conv_dw(whole.reshape(batch, width, width, channels).permute(0, 3, 1, 2))
    x = mixed.permute(0, 2, 3, 1).reshape(batch, width * width, channels).gather(1, positions)
    # Its norm is over both of these axes: over all visible positions of an image.
    x = x.reshape(batch, count // scale, scale, channels)
    if block.use_conv_mlp:
        x = block.mlp(block.norm(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
    else:
        x = block.mlp(block.norm(x))
    if block.gamma is not None:
        x = x * block.gamma
    found: Tensor = rows + block.drop_path(x).reshape(batch, count, channels)
    return found


def refuse_other_than_convnext(net: nn.Module, image_size: int, key: str, what: str) -> None:
    """Check that `visible_features` knows a model.

    Args:
        key: of the loss in the recipe, for messages.
        what: the model's key and name, for messages.

    Raises:
        InputError: it is no ConvNeXt with a stem of patches, norms that see no other position and a
            stride of 32, or the image size is no multiple of 32.
    """
    if not isinstance(net, ConvNeXt) or not _cuts_patches(net):
        raise InputError(
            f"{key}: fcmae removes patches inside a ConvNeXt, and {what} is none with a stem of"
            " patches, layer norms and a stride of 32: name a convnextv2_* of timm"
        )
    if image_size % PATCH or image_size < 2 * PATCH:
        raise InputError(
            f"data.image_size: {image_size}, and {key} needs at least two patches of {PATCH} pixels"
            f" in a row: set a multiple of {PATCH}, such as {max(2, image_size // PATCH) * PATCH}"
        )


def _cuts_patches(net: ConvNeXt) -> bool:
    """Whether stem, norms and downsampling never mix pixels of two patches."""
    # One of groups would see a patch in the stem, where the whole net sees the image.
    if any(isinstance(module, nn.GroupNorm) for module in net.modules()):
        return False
    strided = [
        module
        for module in net.modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1) and module.groups == 1
    ]
    total = 1
    for module in strided:
        if module.kernel_size != module.stride or module.padding not in ((0, 0), 0, "valid"):
            return False
        total *= module.stride[0]
    shortcuts = [m.shortcut for m in net.modules() if isinstance(m, ConvNeXtBlock)]
    return total == PATCH and all(isinstance(each, nn.Identity) for each in shortcuts)
