"""The time of FCMAE's encoder, forward and backward, against the same encoder on whole maps: zeros
before and after each depth-wise convolution, norms over visible positions, everything else computed
for removed positions too, as ConvNeXt V2 describes its dense form.

    python -m benchmarks.masked --threads 1
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn

from benchmarks.timing import (
    Stopwatch,
    common_arguments,
    finish,
    interleaved,
    median,
    ratio,
    show,
)
from distill.losses.fcmae import visible_patches
from distill.models.masked import PATCH, visible_features
from distill.recipe.schema import FCMAESpec

TARGET = 0.6


def dense_features(net: Any, pixels: Tensor, visible: Tensor) -> Tensor:
    """Return what `visible_features` returns, [B, V, C], from whole maps."""
    side = pixels.shape[-1] // PATCH
    mask = pixels.new_zeros(len(pixels), side * side).scatter(1, visible, 1.0)
    mask = mask.reshape(-1, 1, side, side)
    x = net.stem(pixels)
    for stage in net.stages:
        x = stage.downsample(x)
        seen = F.interpolate(mask, x.shape[-2:], mode="nearest")
        for block in stage.blocks:
            x = x + _dense_block(block, x, seen)
    last: Tensor = x.flatten(2).transpose(1, 2)
    return last.gather(1, visible[..., None].expand(-1, -1, last.shape[-1]))


def _dense_block(block: Any, x: Tensor, seen: Tensor) -> Tensor:
    y = block.conv_dw(x * seen) * seen
    mlp = block.mlp
    spatial = (2, 3)
    if not block.use_conv_mlp:
        y, seen, spatial = y.permute(0, 2, 3, 1), seen.permute(0, 2, 3, 1), (1, 2)
    y = mlp.act(mlp.fc1(block.norm(y)))
    norm = (y * seen).norm(dim=spatial, keepdim=True)
    share = norm / (norm.mean(6 - sum(spatial), keepdim=True) + mlp.grn.eps)
    shape = mlp.grn.wb_shape
    weight, bias = mlp.grn.weight.view(shape), mlp.grn.bias.view(shape)
    y = mlp.fc2(y + torch.addcmul(bias, weight, y * share))
    if not block.use_conv_mlp:
        y = y.permute(0, 3, 1, 2)
    found: Tensor = y if block.gamma is None else y * block.gamma.reshape(1, -1, 1, 1)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="convnextv2_tiny", help="timm name")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--mask-ratio", type=float, default=0.6)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    common_arguments(parser, rounds=7)
    settings = parser.parse_args(arguments)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = torch.device(settings.device)
    torch.manual_seed(0)
    net = timm.create_model(settings.model, num_classes=0)
    for module in net.modules():
        if isinstance(module, GlobalResponseNorm):  # timm starts them at zero: they do nothing
            nn.init.normal_(module.weight)
    net = net.to(device, memory_format=torch.channels_last)
    size = (settings.batch_size, 3, settings.image_size, settings.image_size)
    pixels = torch.randn(size, device=device).to(memory_format=torch.channels_last)
    num_patches = (settings.image_size // PATCH) ** 2
    keep = FCMAESpec(loss="fcmae", mask_ratio=settings.mask_ratio).num_visible(num_patches)
    positions = torch.arange(settings.batch_size, device=device)
    visible = visible_patches(0, positions, num_patches, keep)

    def step(features: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        net.zero_grad()
        features(net, pixels, visible).pow(2).sum().backward()  # type: ignore[no-untyped-call]

    with torch.no_grad():
        gathered, dense = (
            each(net, pixels, visible) for each in (visible_features, dense_features)
        )
    apart = float((gathered - dense).abs().max() / dense.abs().max())
    seconds_of = Stopwatch(device, "wall" if device.type == "cuda" else "cpu")
    seconds = interleaved(
        {
            "gathered": partial(seconds_of, partial(step, visible_features)),
            "dense": partial(seconds_of, partial(step, dense_features)),
        },
        settings.rounds,
    )
    against = ratio(seconds["gathered"], seconds["dense"])
    print(
        f"{settings.model} at {settings.image_size} px, batch {settings.batch_size}, {keep} of"
        f" {num_patches} patches visible; forward and backward; largest relative difference"
        f" {apart:.1e}"
    )
    for name, each in seconds.items():
        print(f"{name:10}{show(median([s * 1e3 for s in each]), 1)} ms")
    print(f"gathered / dense {show(against)}, target at most {TARGET}")
    figures = {"ratio": against._asdict(), "difference": apart, "rounds_s": seconds}
    finish("masked", settings, device, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
