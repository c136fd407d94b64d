"""Call a model with other weights than its own, and leave its own untouched."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def functional_forward(net: nn.Module, tensors: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """What `net` answers with these parameters and buffers in place of its own. Those not given
    stay its own.

    `torch.func.functional_call` by itself refuses a whole state dict where a module stands in two
    places (timm's CoaT), and given one name of it puts the wrong tensor back. So each attribute of
    each module is named once here; tied parameters are given under all their names.

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
    answer: Tensor = torch.func.functional_call(net, given, (images,), tie_weights=False)
    return answer
