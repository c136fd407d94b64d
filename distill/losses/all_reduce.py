"""An all-reduce with a gradient, for losses and norms over the samples of all processes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

Group = Any
"""A process group of torch.distributed, which has no public type."""


class _AllReduce(Function):
    """The backward sums over the processes too: every process's loss depends on every input."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, op: Any, group: Group) -> Tensor:
        ctx.group = group
        return _reduced(value, op, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _reduced(grads[0], dist.ReduceOp.SUM, ctx.group), None, None


def all_reduce(value: Tensor, group: Group, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """Reduce over a group of processes, with a gradient for sums. Collective in the group, in the
    backward too.

    torch 2.15 deprecates its own (torch.distributed.nn), and the replacement has no gradient in
    torch 2.7, the oldest that we support.
    """
    reduced: Tensor = _AllReduce.apply(value, op, group)
    return reduced


def _reduced(value: Tensor, op: Any, group: Group) -> Tensor:
    result = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, op, group)
    return result
