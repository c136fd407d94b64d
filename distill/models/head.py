"""The head of a model: the one layer that turns pooled features into logits."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import InputError
from distill.losses.outputs import POOLED
from distill.models.features import evaluating, explained, forward_with_features

Head = Mapping[str, Tensor]
"""`weight`, [K, C] or of a 1x1 convolution [K, C, 1, 1], and `bias`, [K], if it has one."""


def head_logits(head: Head, features: Tensor) -> Tensor:
    """Return the logits of pooled features, [b, C] -> [b, K] in float32, as the model computes
    them: in the dtype of its weights, without autocast and gradients.
    """
    weight, bias = head["weight"], head.get("bias")
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        if weight.ndim == 4:
            return F.conv2d(features[..., None, None], weight, bias).flatten(1).float()
        return F.linear(features, weight, bias).float()


def head_of(net: nn.Module, image_size: int, what: str) -> Head:
    """Return the head of a model, on the CPU.

    Args:
        net: a timm model with classes, on the CPU.
        image_size: of the pixels that it gets.
        what: its key and name, for messages.

    Raises:
        InputError: its logits are not one linear layer of its pooled features: several heads, or
            numbers behind the layer.
    """
    layer = net.get_classifier()  # type: ignore[operator]
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        raise InputError(f"{what} has no single linear head: {_FIX}")
    head = {name: tensor.detach().contiguous() for name, tensor in layer.named_parameters()}
    with evaluating(net), explained(net, what, "gives no pooled features"):
        first = next(net.parameters())
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(2, 3, image_size, image_size, generator=generator).to(first.dtype)
        logits = net(pixels)
        (pooled,) = forward_with_features(net, pixels, (POOLED,)).features
        try:
            found = head_logits(head, pooled.flatten(1))
        except RuntimeError:
            found = None
    if found is None or not torch.equal(found, logits.float()):
        raise InputError(f"{what} computes its logits otherwise than by its head: {_FIX}")
    return head


_FIX = "store its logits, with --keep all or a number"
