"""A small model and the optimizers that the optimizer tests share."""

from collections.abc import Iterable
from typing import Any

import timm.optim
import torch
from timm.optim import get_optimizer_info
from torch import nn

from distill.recipe import schema
from distill.student.schedule import set_lr


class Net(nn.Module):
    """Convolution, norm, a token without decay, a frozen and a tied parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 48, 3)
        self.norm = nn.BatchNorm2d(48)
        self.token = nn.Parameter(torch.randn(1, 1, 48))
        self.head = nn.Linear(48, 10)
        self.tied = self.head
        self.frozen = nn.Parameter(torch.randn(3, 3), requires_grad=False)

    def no_weight_decay(self) -> set[str]:
        return {"tok*"}

    def group_matcher(self, coarse: bool) -> dict[str, Any]:
        return {"stem": r"conv|norm|token", "blocks": [(r"head", None)]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)) + self.token[0])


def spec(name: str = "sgd", lr: float = 0.1, **keys: Any) -> schema.OptimizerSpec:
    return schema.OptimizerSpec(name=name, lr=lr, **keys)


def net(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype=dtype, memory_format=torch.channels_last)


def train(module: Net, optimizer: torch.optim.Optimizer, steps: Iterable[int]) -> None:
    for step in steps:
        set_lr(optimizer, 0.01 / (step + 1))
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(4, 16, 8, 8, generator=generator).to(module.conv.weight.dtype)
        module(x.contiguous(memory_format=torch.channels_last)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def supported() -> list[str]:
    known = [(name, get_optimizer_info(name)) for name in timm.optim.list_optimizers()]
    return [
        n
        for n, info in known
        if not isinstance(info.opt_class, str) and "kron" not in n and not info.second_order
    ]


def one_of_each_class() -> list[str]:
    by_length = sorted(supported(), key=len, reverse=True)
    return list({get_optimizer_info(name).opt_class: name for name in by_length}.values())
