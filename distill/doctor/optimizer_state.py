"""The bytes of an optimizer's state."""

import torch
from torch import nn

from distill.recipe import schema
from distill.student.optimizer import check_optimizer, take_two_steps


def optimizer_bytes(net: nn.Module, spec: schema.OptimizerSpec) -> int:
    """The bytes of the optimizer's state, extrapolated from two steps on a small matrix and a small
    vector.

    It is exact for optimizers that store moments of each weight (AdamW, LAMB, SGD, Lion ...), and
    too high for those that factor them (Adafactor). Step counters are not counted.
    """
    check_optimizer(net, spec, key="student.optimizer")
    each = {}
    for parameter, slots in take_two_steps(spec).items():
        state = [
            value for value in slots.values() if isinstance(value, torch.Tensor) and value.dim()
        ]
        each["weight" if parameter.dim() > 1 else "bias"] = (
            sum(tensor.numel() * tensor.element_size() for tensor in state) / parameter.numel()
        )
    scalars = [parameter for parameter in net.parameters() if parameter.requires_grad]
    total: float = sum(each["weight" if p.dim() > 1 else "bias"] * p.numel() for p in scalars)
    return round(total)
