"""Feature maps of timm models, from the forward that gives the logits.

A stage is an index into the list that timm's `forward_intermediates` returns: the stem and the
stages of a convnet, the blocks of a transformer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from distill.errors import InputError
from distill.losses.outputs import Outputs


def forward_with_features(net: nn.Module, pixels: Tensor, stages: Sequence[int]) -> Outputs:
    """Return the logits and the feature maps of some stages, [B, C, H, W] each.

    Args:
        net: a timm model. Its own `forward` is not called; under ZeRO-3 DeepSpeed gathers its
            direct parameters when they are read, which tests/distributed/test_zero.py watches.
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
    """Return (channels, height, width) of each stage, from one forward of one image.

    Args:
        net: on the CPU, or on the device "meta", where it takes no memory.
        what: the model's key and name, for messages.

    Raises:
        InputError: the model gives no feature maps.
        NotImplementedError: an operation that the device "meta" lacks.
    """
    with evaluating(net), explained(net, what, "gives no feature maps"):
        features = net.forward_intermediates(  # type: ignore[operator]
            _one_image(net, image_size), output_fmt="NCHW", intermediates_only=True
        )
        shapes = [tuple(map(int, each.shape[1:])) for each in features]
        return [(channels, height, width) for channels, height, width in shapes]


def refuse_other_logits(net: nn.Module, image_size: int, stage: int, what: str) -> None:
    """Raises InputError if the forward that gives a feature map gives other logits than the model,
    or none. Compares them on one image; a head that is still zero agrees with anything.
    """
    how = f"gives no logits beside the feature map of {stage}"
    with evaluating(net), explained(net, what, how):
        pixels = _one_image(net, image_size)
        logits = net(pixels)
        found = forward_with_features(net, pixels, (stage,)).logits
        apart = (found - logits).abs().max() if found.shape == logits.shape else float("inf")
    if apart > 1e-4 * logits.abs().max():
        raise InputError(
            f"{what} gives other logits with the feature map of {stage} than without: choose"
            " another stage or model"
        )


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Return a context in which a model is in evaluation mode, without gradients."""
    training = net.training
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        net.train(training)


@contextmanager
def explained(net: nn.Module, what: str, how: str) -> Iterator[None]:
    """Return a context that turns the errors of a forward into InputError, or where the device
    "meta" is the reason into NotImplementedError.
    """
    try:
        yield
    except (AttributeError, RuntimeError, AssertionError, ValueError, TypeError) as error:
        of_meta = isinstance(error, NotImplementedError) or "meta" in str(error)
        if of_meta and next(net.parameters()).is_meta:
            raise NotImplementedError(str(error)) from error
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError(f"{what} {how}: {reason}; choose another stage or model") from error


def _one_image(net: nn.Module, image_size: int) -> Tensor:
    """Return normalised pixels [1, 3, S, S] in the dtype and on the device of the model."""
    first = next(net.parameters())
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, image_size, image_size, generator=generator)
    return pixels.to(first.device, first.dtype)


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
