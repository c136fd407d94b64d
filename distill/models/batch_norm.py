"""BatchNorm whose result does not depend on how processes share a global batch.

Statistics are those of a micro-batch. If a group of processes shares it, they are synchronised in
the group. A step of several forwards must update the running averages once, by the mean of the
forwards' statistics, as that many processes would.
"""

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from distill.losses.all_reduce import Group, all_reduce


def norms(module: nn.Module) -> list["_BatchNorm | GroupBatchNorm"]:
    """Return the BatchNorm layers with running statistics, in module order."""
    return [
        m
        for m in module.modules()
        if isinstance(m, GroupBatchNorm) or (isinstance(m, _BatchNorm) and m.track_running_stats)
    ]


def running_statistics(module: nn.Module) -> list[torch.Tensor]:
    """Return running means and variances of all BatchNorm layers: they differ between processes,
    and their update is linear.
    """
    return [b for m in norms(module) for b in (m.running_mean, m.running_var) if b is not None]


class StepStatistics:
    """Updates running statistics once a step, by the mean over the step's forwards.

    A forward changes r to (1 - m) r + m s. Resetting r before each forward and averaging at the end
    gives (1 - m) r + m mean(s): what one forward on each of several processes gives after their
    buffers are averaged.
    """

    def __init__(self, module: nn.Module) -> None:
        self._buffers = running_statistics(module)
        self._counts = [
            m.num_batches_tracked for m in norms(module) if m.num_batches_tracked is not None
        ]
        self._start = [torch.empty_like(b) for b in self._buffers]
        self._sums = [torch.empty_like(b) for b in self._buffers]

    def before_step(self) -> None:
        """Save the statistics at the start of a step."""
        if self._buffers:
            torch._foreach_copy_(self._start, self._buffers)
            torch._foreach_zero_(self._sums)

    def after_forward(self, more_to_come: bool) -> None:
        """Add the statistics of one forward, and reset the buffers for the next."""
        if self._buffers:
            torch._foreach_add_(self._sums, self._buffers)
            torch._foreach_copy_(self._buffers, self._start)
            if more_to_come:
                torch._foreach_sub_(self._counts, 1)

    def after_step(self, num_forwards: int) -> None:
        """Set the buffers to the mean over the forwards."""
        if self._buffers:
            torch._foreach_div_(self._sums, num_forwards)
            torch._foreach_copy_(self._buffers, self._sums)


class GroupBatchNorm(nn.Module):
    """BatchNorm over the samples of a group of processes, on the CPU; torch's SyncBatchNorm needs
    CUDA.

    Has the parameters and buffers of the layer it replaces, and what timm's BatchNormAct2d does
    after normalising.
    """

    def __init__(self, norm: _BatchNorm, group: Group) -> None:
        super().__init__()
        self.process_group = group
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean: torch.Tensor
        self.running_var: torch.Tensor
        self.num_batches_tracked: torch.Tensor
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        self.eps = norm.eps
        assert norm.momentum is not None, "cumulative BatchNorm averages are not supported"
        self.momentum = norm.momentum
        children = dict(norm.named_children())  # of timm's BatchNormAct2d
        self.drop = children.get("drop", nn.Identity())
        self.act = children.get("act", nn.Identity())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, ...] -> [B, C, ...]. Collective in training: every rank."""
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        if self.training:
            wide = x.float()
            count = torch.tensor(float(x.numel() // x.shape[1]), device=x.device)
            dist.all_reduce(count, group=self.process_group)
            mean = all_reduce(wide.sum(axes), self.process_group) / count
            centred = wide - mean.view(shape)
            variance = all_reduce(centred.square().sum(axes), self.process_group) / count
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        else:
            mean, variance = self.running_mean, self.running_var
            centred = x.float() - mean.view(shape)
        scale = torch.rsqrt(variance + self.eps) * (1 if self.weight is None else self.weight)
        y = centred * scale.view(shape)
        if self.bias is not None:
            y = y + self.bias.view(shape)
        return self.act(self.drop(y.to(x.dtype)))  # type: ignore[no-any-return]


def synchronise(module: nn.Module, device: torch.device, group: Group) -> nn.Module:
    """Make every BatchNorm of the module compute over the micro-batch of a group; names in its
    state dict stay. The module's forward is collective in the group then.
    """
    if device.type == "cuda":
        return convert_sync_batchnorm(module, group)  # type: ignore[no-any-return]
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, GroupBatchNorm(child, group))
        else:
            synchronise(child, device, group)
    return module
