"""Optimizers: what decays, which arguments they take, and that none clips gradients."""

from typing import Any

import pytest
import torch
from optimizer_cases import net, spec, supported
from torch import nn

from distill.errors import InputError
from distill.student.optimizer import build_optimizer, check_optimizer

KEY = "students.*.optimizer"


def decay_by_name(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {
        names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }


def test_norm_bias_and_named_parameters_do_not_decay() -> None:
    module = net()
    decays = decay_by_name(module, build_optimizer(module, spec(weight_decay=0.3)))
    assert {name for name, decay in decays.items() if decay == 0.3} == {
        "conv.weight",
        "head.weight",
    }
    assert decays.keys() == {name for name, p in module.named_parameters() if p.requires_grad}


def test_decay_norm_and_bias_takes_all() -> None:
    module = net()
    decays = decay_by_name(
        module, build_optimizer(module, spec(weight_decay=0.3, decay_norm_and_bias=True))
    )
    assert set(decays.values()) == {0.3}
    assert "frozen" not in decays


def test_unknown_names_and_arguments_name_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"students\.a\.optimizer\.name: timm has no optimizer 'lambb'.*'lamb'"
    ):
        check_optimizer(net(), spec("lambb"), key="students.a.optimizer")
    with pytest.raises(
        InputError, match=r"optimizer\.args\.beta: adamw takes no such argument.*'betas'"
    ):
        check_optimizer(net(), spec("adamw", args={"beta": [0.9, 0.99]}), key=KEY)
    # timm itself drops this one silently
    with pytest.raises(
        InputError, match=r"optimizer\.args\.betas: sgd takes no such argument.*nesterov"
    ):
        check_optimizer(net(), spec("sgd", args={"betas": [0.9, 0.99]}), key=KEY)


@pytest.mark.parametrize(
    ("argument", "own"),
    [("lr", "lr"), ("weight_decay", "weight_decay"), ("max_grad_norm", "clip_grad_norm")],
)
def test_arguments_that_have_their_own_key(argument: str, own: str) -> None:
    with pytest.raises(
        InputError, match=rf"args\.{argument}: write students\.\*\.optimizer\.{own} instead"
    ):
        check_optimizer(net(), spec("lamb", args={argument: 1.0}), key=KEY)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("adamw", {"betas": [0.9, 1.5]}),  # refused by the constructor
        ("adamw", {"eps": "small"}),
        ("lamb", {"betas": [0.9]}),  # refused only by the first step
        ("adan", {"betas": [0.9, 0.99]}),
    ],
)
def test_bad_values_are_refused_before_training(name: str, args: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"students\.\*\.optimizer\.args: {name} refuses"):
        check_optimizer(net(), spec(name, args=args), key=KEY)


@pytest.mark.parametrize("name", ["fusedlamb", "bnbadamw8bit", "adahessian", "kron"])
def test_optimizers_that_could_not_resume_exactly_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"optimizer\.name: {name}"):
        check_optimizer(net(), spec(name), key=KEY)


def test_arguments_arrive_and_draw_no_random_numbers() -> None:
    module = net()
    before = torch.get_rng_state()
    wanted = spec("adamw", lr=0.5, args={"betas": [0.8, 0.9], "eps": 1e-3})
    check_optimizer(module, wanted, key=KEY)
    optimizer = build_optimizer(module, wanted)
    assert torch.equal(before, torch.get_rng_state())
    assert {(g["betas"], g["eps"], g["lr"]) for g in optimizer.param_groups} == {
        ((0.8, 0.9), 1e-3, 0.5)
    }
    assert (
        build_optimizer(module, spec("momentum", momentum=0.7)).param_groups[0]["momentum"] == 0.7
    )


@pytest.mark.parametrize("name", supported())
def test_no_optimizer_clips_gradients_unasked(name: str) -> None:
    optimizer = build_optimizer(net(), spec(name))
    assert optimizer.defaults.get("max_grad_norm") is None
    assert all(group.get("max_grad_norm") is None for group in optimizer.param_groups)


def test_lamb_is_lamb_without_clipping() -> None:
    """Against LAMB's equations in float64, with gradients whose norm jumps past 1: clipped, they
    would mix otherwise.
    """
    torch.manual_seed(0)
    module = nn.Linear(8, 6, bias=False)
    weight, m, v = module.weight.detach().double(), 0.0, 0.0
    optimizer = build_optimizer(module, spec("lamb", lr=0.02, weight_decay=0.05))
    for t, scale in enumerate((0.1, 50.0, 3.0), start=1):
        gradient = torch.randn(6, 8) * scale
        module.weight.grad = gradient.clone()
        optimizer.step()
        m = 0.9 * m + 0.1 * gradient.double()
        v = 0.999 * v + 0.001 * gradient.double() ** 2
        update = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-6) + 0.05 * weight
        weight = weight - 0.02 * weight.norm() / update.norm() * update
        torch.testing.assert_close(module.weight.detach().double(), weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "nesterov", "sgdw"])
def test_an_optimizer_that_cannot_be_built_is_refused_without_arguments_too(name: str) -> None:
    with pytest.raises(InputError, match=rf"{name} refuses .*Nesterov momentum requires"):
        check_optimizer(net(), spec(name, momentum=0.0), key=KEY)
