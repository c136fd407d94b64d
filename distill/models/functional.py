"""Calling a model with other weights than its own."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def functional_forward(net: nn.Module, tensors: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Return the output of `net` with these parameters and buffers instead of its own, which stay
    as they are.

    `torch.func.functional_call` alone refuses a state dict where a module is used in two places
    (timm's CoaT), and with one of its names it restores the wrong tensor. So each attribute of each
    module is named once here; tied parameters are passed under all their names.

    Args:
        tensors: by the names of a state dict; buffers that it leaves out may be given too.
        images: [B, 3, H, W]
    """
    once = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in net.named_modules()
        for name in (*module._parameters, *module._buffers)
    }
    given = {name: tensor for name, tensor in tensors.items() if name in once}
    output: Tensor = torch.func.functional_call(net, given, (images,), tie_weights=False)
    return output
