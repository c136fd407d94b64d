"""Optimizer state by parameter name: a resumed optimizer continues bitwise."""

import copy
import json
from collections.abc import Callable

import pytest
import torch
from optimizer_cases import Net, net, one_of_each_class, spec, train
from safetensors.torch import load, save
from torch import nn

from distill.errors import InputError
from distill.student.optimizer import build_optimizer
from distill.student.optimizer_state import load_state, split_state


def resumed(
    module: Net, optimizer: torch.optim.Optimizer, build: Callable[[Net], torch.optim.Optimizer]
) -> tuple[Net, torch.optim.Optimizer]:
    """The same module and optimizer, saved to a file and loaded again."""
    tensors, values = split_state(optimizer, dict(module.named_parameters()))
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    tensors, values = load(save(tensors)), json.loads(json.dumps(values))
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.manual_seed(1)
    other = Net().to(dtype=module.conv.weight.dtype, memory_format=torch.channels_last)
    other.load_state_dict(weights)
    new = build(other)
    load_state(new, dict(other.named_parameters()), tensors, values)
    return other, new


@pytest.mark.parametrize("name", one_of_each_class())
def test_a_resumed_optimizer_continues_bitwise(name: str) -> None:
    def build(module: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(module, spec(name, lr=0.01, weight_decay=0.05))

    module = net()
    optimizer = build(module)
    train(module, optimizer, range(4))
    other, new = resumed(module, optimizer, build)
    train(module, optimizer, range(4, 8))
    train(other, new, range(4, 8))
    assert all(
        torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", ["momentum", "adamw", "lamb"])
def test_a_resumed_optimizer_continues_bitwise_in_bf16(name: str) -> None:
    def build(module: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(module, spec(name, lr=0.01, weight_decay=0.05))

    module = net(torch.bfloat16)
    optimizer = build(module)
    train(module, optimizer, range(3))
    other, new = resumed(module, optimizer, build)
    for parameter, state in new.state.items():
        assert all(
            v.stride() == parameter.stride()
            for v in state.values()
            if torch.is_tensor(v) and v.ndim
        )
    train(module, optimizer, range(3, 6))
    train(other, new, range(3, 6))
    assert all(
        torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True)
    )


def test_state_is_keyed_by_parameter_and_loading_does_not_alias() -> None:
    module = net()
    optimizer = build_optimizer(module, spec("lamb"))
    train(module, optimizer, range(2))
    tensors, values = split_state(optimizer, dict(module.named_parameters()))
    assert tensors["head.weight/exp_avg"].shape == (10, 48)
    assert tensors["param_groups[0]/step"].item() == 2
    assert "frozen/exp_avg" not in tensors
    kept = copy.deepcopy(tensors)
    other = net()
    new = build_optimizer(other, spec("lamb"))
    load_state(new, dict(other.named_parameters()), tensors, values)
    train(other, new, range(2))
    assert all(torch.equal(kept[name], tensors[name]) for name in kept)
    assert new.param_groups[0]["step"].item() == 4


def test_state_of_another_optimizer_or_model_is_refused() -> None:
    module = net()
    optimizer = build_optimizer(module, spec("lamb"))
    train(module, optimizer, range(1))
    parameters = dict(module.named_parameters())
    tensors, values = split_state(optimizer, parameters)
    with pytest.raises(InputError, match=r"is of Lamb over .* has AdamW"):
        load_state(build_optimizer(module, spec("adamw")), parameters, tensors, values)
    module.token.requires_grad_(False)
    with pytest.raises(InputError, match="first that differ: token"):
        load_state(build_optimizer(module, spec("lamb")), parameters, tensors, values)
