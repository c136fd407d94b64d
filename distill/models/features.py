"""Feature maps of timm models, from the forward that gives the logits.

A stage is an index into the list that timm's `forward_intermediates` returns: the stem and the
stages of a convnet, the blocks of a transformer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from distill.errors import InputError
from distill.losses.outputs import Outputs


def forward_with_features(net: nn.Module, pixels: Tensor, stages: Sequence[int]) -> Outputs:
    """Return the logits and the feature maps of some stages, [B, C, H, W] each.

    Args:
        net: a timm model. Its own `forward` is not called, so under ZeRO-3 the caller must have its
            direct parameters gathered.
        pixels: [B, 3, H, W], normalised.
        stages: ascending, from 0. timm returns feature maps in this order whatever it is asked.
    """
    assert list(stages) == sorted(stages), stages
    last, features = net.forward_intermediates(  # type: ignore[operator]
        pixels, indices=list(stages), output_fmt="NCHW"
    )
    return Outputs(net.forward_head(last), tuple(features))  # type: ignore[operator]


class Featured(nn.Module):
    """A model whose forward returns `Outputs`, with the feature maps of the stages asked for."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor, stages: tuple[int, ...] = ()) -> Outputs:
        """pixels [B, 3, H, W], normalised -> logits [B, K] and feature maps [B, C, H, W]."""
        if stages:
            return forward_with_features(self.net, pixels, stages)
        return Outputs(self.net(pixels))


def feature_maps(net: nn.Module, image_size: int, what: str) -> list[tuple[int, int, int]]:
    """Return (channels, height, width) of each stage, from one forward without memory.

    Args:
        what: the model's key and name, for messages.

    Raises:
        InputError: the model gives no feature maps.
    """
    training = net.training
    first = next(net.parameters())
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            pixels = torch.zeros(1, 3, image_size, image_size, dtype=first.dtype)
            features = net.eval().forward_intermediates(  # type: ignore[operator]
                pixels.to(first.device), output_fmt="NCHW", intermediates_only=True
            )
    except (AttributeError, RuntimeError, AssertionError, ValueError, TypeError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError(f"{what} gives no feature maps: {reason}") from error
    finally:
        net.train(training)
    return [(int(each.shape[1]), int(each.shape[2]), int(each.shape[3])) for each in features]


def chosen_stage(maps: Sequence[tuple[int, int, int]], stage: int | None, what: str) -> int:
    """Return the index from 0 of a stage of a recipe; None is the middle one, n // 2 of n.

    Raises:
        InputError: the model has no such stage; the message lists those that it has.
    """
    if stage is None:
        return len(maps) // 2
    if not -len(maps) <= stage < len(maps):
        listed = ", ".join(f"{i}: {c} x {h} x {w}" for i, (c, h, w) in enumerate(maps))
        raise InputError(
            f"{stage}, and {what} has stages 0 to {len(maps) - 1} (channels x height x width:"
            f" {listed})"
        )
    return stage % len(maps)
