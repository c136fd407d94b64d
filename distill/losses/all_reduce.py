"""The all-reduce of a loss whose parts lie on several processes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function


class _AllReduce(Function):
    """The backward sums over the processes too: every process's loss depends on every input."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, op: Any) -> Tensor:
        return _reduced(value, op)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _reduced(grads[0], dist.ReduceOp.SUM), None


def all_reduce(value: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """Reduce over all processes, with a gradient for sums. Collective: every rank; its backward too.

    torch 2.15 deprecates its own (torch.distributed.nn), and the replacement has no gradient in
    torch 2.7, the oldest that we support.
    """
    reduced: Tensor = _AllReduce.apply(value, op)
    return reduced


def _reduced(value: Tensor, op: Any) -> Tensor:
    result = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, op)
    return result
