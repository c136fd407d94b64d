"""The samples of a micro-batch that several processes share, for losses that relate samples to each
other.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from distill.losses.all_reduce import Group


class _Gather(Function):
    """Every process computes the same loss from the same rows, and DDP averages their gradients: so
    the gradient of a process's own rows, times the number of processes, is all that it adds.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Group) -> Tensor:
        ctx.size, ctx.rank, ctx.num_rows = (
            dist.get_world_size(group),
            dist.get_rank(group),
            len(rows),
        )
        parts = [torch.empty_like(rows) for _ in range(ctx.size)]
        dist.all_gather(parts, rows.contiguous(), group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        first = ctx.rank * ctx.num_rows
        return ctx.size * grads[0][first : first + ctx.num_rows], None


def micro_batch(features: Tensor, group: Group | None) -> Tensor:
    """Return the features of all samples of a micro-batch as rows in float32 (float64 stays), in
    the order of the global batch.

    Args:
        features: [b, ...] of this process.
        group: the processes that share the micro-batch, each with b samples; the loss computed from
            the rows must be the same function on all of them. Collective in the group. None: this
            process has all samples.

    Returns:
        [B, D].
    """
    rows = features.flatten(1)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if group is None:
        return rows
    gathered: Tensor = _Gather.apply(rows, group)
    return gathered
