"""Feature maps of timm models, from the forward that gives the logits.

A stage is an index into the list that timm's `forward_intermediates` returns: the stem and the
stages of a convnet, the blocks of a transformer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from distill.errors import InputError
from distill.losses.outputs import POOLED, FeatureKey, FeatureMap, Outputs
from distill.models.preactivation import keep_inputs, take_inputs


def forward_with_features(net: nn.Module, pixels: Tensor, keys: Sequence[FeatureKey]) -> Outputs:
    """Return the logits and some features, [B, C, H, W] each, in the order of their keys.

    Args:
        net: a timm model. Its own `forward` is not called; under ZeRO-3 DeepSpeed gathers its
            direct parameters when they are read, which tests/distributed/test_zero.py watches.
        pixels: [B, 3, H, W], normalised.
        keys: ascending. timm returns feature maps in this order whatever it is asked. Those before
            an activation need `split_activations` first.
    """
    assert list(keys) == sorted(keys), keys
    stages = [key.stage for key in keys if key != POOLED and not key.preactivation]
    before = [key for key in keys if key.preactivation]
    keep_inputs(net, before)
    try:
        if stages:
            last, maps = net.forward_intermediates(  # type: ignore[operator]
                pixels, indices=stages, output_fmt="NCHW"
            )
        else:
            last, maps = net.forward_features(pixels), ()  # type: ignore[operator]
    finally:
        preactivations = take_inputs(net, before)
    # Reentrant checkpoints, which torch no longer makes by default, compute without a graph.
    assert all(each.requires_grad == last.requires_grad for each in preactivations.values())
    features = {FeatureKey(stage): each for stage, each in zip(stages, maps, strict=True)}
    features |= preactivations
    if POOLED in keys:
        features[POOLED] = pooled_features(net, last)
    return Outputs(
        net.forward_head(last),  # type: ignore[operator]
        tuple(features[key] for key in keys),
    )


def pooled_features(net: nn.Module, last: Tensor) -> Tensor:
    """Return what the classifier of a timm model reads, [B, C, 1, 1].

    Args:
        last: what its `forward_features` returns.
    """
    pooled: Tensor = net.forward_head(last, pre_logits=True)  # type: ignore[operator]
    return pooled.flatten(1)[..., None, None]


class Featured(nn.Module):
    """A model whose forward returns `Outputs`, with the features asked for."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor, keys: tuple[FeatureKey, ...] = ()) -> Outputs:
        """pixels [B, 3, H, W], normalised -> logits [B, K] and features [B, C, H, W]."""
        if keys:
            return forward_with_features(self.net, pixels, keys)
        return Outputs(self.net(pixels))


def feature_maps(net: nn.Module, image_size: int, what: str) -> list[FeatureMap]:
    """Return the feature map of each stage, from one forward of one image.

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
        return [_shape(FeatureKey(stage), each) for stage, each in enumerate(features)]


def pooled_map(net: nn.Module, image_size: int, what: str) -> FeatureMap:
    """Return the shape of a model's pooled features. Arguments and errors as of `feature_maps`."""
    with evaluating(net), explained(net, what, "gives no pooled features"):
        last = net.forward_features(_one_image(net, image_size))  # type: ignore[operator]
        return _shape(POOLED, pooled_features(net, last))


def _shape(key: FeatureKey, feature: Tensor) -> FeatureMap:
    _, channels, height, width = feature.shape
    return FeatureMap(key, channels, height, width)


def refuse_other_logits(
    net: nn.Module, image_size: int, keys: Sequence[FeatureKey], what: str
) -> None:
    """Raises InputError if the forward that gives features gives other logits than the model, or
    none. Compares them on one image; a head that is still zero agrees with anything.

    Args:
        keys: ascending.
    """
    named = ", ".join(map(str, keys))
    with evaluating(net), explained(net, what, f"gives no logits beside {named}"):
        pixels = _one_image(net, image_size)
        logits = net(pixels)
        found = forward_with_features(net, pixels, keys).logits
        apart = (found - logits).abs().max() if found.shape == logits.shape else float("inf")
    if apart > 1e-4 * logits.abs().max():
        raise InputError(
            f"{what} gives other logits with {named} than without: choose another stage or model"
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


def chosen_stage(maps: Sequence[FeatureMap], stage: int | None, what: str) -> int:
    """Return the index from 0 of a stage of a recipe; None is the middle one, n // 2 of n.

    Raises:
        InputError: the model has no such stage; the message lists those that it has.
    """
    if stage is None:
        return len(maps) // 2
    if not -len(maps) <= stage < len(maps):
        raise InputError(f"{stage}, and {what} has {listed_stages(maps)}")
    return stage % len(maps)


def listed_stages(maps: Sequence[FeatureMap]) -> str:
    """Return the stages of a model as a message lists them."""
    listed = ", ".join(
        f"{each.key.stage}: {each.channels} x {each.height} x {each.width}" for each in maps
    )
    return f"stages 0 to {len(maps) - 1} (channels x height x width: {listed})"
