"""Parameter groups and timm optimizers without hidden clipping."""

import inspect
import json
from fnmatch import fnmatch
from functools import partial
from typing import Any

import timm.optim
import torch
from timm.optim import create_optimizer_v2, get_optimizer_info
from torch import nn

from distill.errors import InputError, did_you_mean
from distill.recipe import schema

_OWN_KEYS = {
    "lr": "lr",
    "weight_decay": "weight_decay",
    "momentum": "momentum",
    "max_grad_norm": "clip_grad_norm",
}
_LAYER_DECAY = ("layer_decay", "layer_decay_min_scale")


def build_optimizer(
    module: nn.Module, spec: schema.OptimizerSpec, *, key: str = "students.*.optimizer"
) -> torch.optim.Optimizer:
    """A timm optimizer over the trainable parameters of `module` (the bare one, before DDP or
    compile wrap it).

    Weight decay leaves out parameters of at most one dimension, biases, and the names of the
    model's `no_weight_decay()`; with `decay_norm_and_bias` it takes all, as `torch.optim` does when
    given `parameters()`. `args` may hold timm's `layer_decay` and `layer_decay_min_scale`. No
    gradient is clipped here: timm's LAMB would clip the global norm to 1.0 unasked. (Adafactor,
    ADOPT and MARS bound their own *update*; that is part of the method and stays.)

    Args:
        key: where `spec` stands in the recipe, for messages.

    Raises:
        InputError: an unknown or unsupported name, or arguments that the optimizer does not take.
    """
    _check_name(spec.name, key)
    arguments = _check_args(spec, key)
    try:
        if spec.args:
            # Some optimizers look at an argument only in step(); a bad one must not wait for the
            # GPU hours to start.
            _rehearse(spec, arguments)
        return _create(module, spec, arguments)
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RuntimeError,
        AssertionError,
    ) as error:
        raise InputError(
            f"{key}.args: {spec.name} refuses {json.dumps(spec.args, default=str)}:"
            f" {type(error).__name__}: {error}"
        ) from error


def _create(
    module: nn.Module, spec: schema.OptimizerSpec, arguments: dict[str, Any]
) -> torch.optim.Optimizer:
    groups = None if "layer_decay" in arguments else partial(parameter_groups, spec=spec)
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        module,
        opt=spec.name,
        lr=spec.lr,
        weight_decay=spec.weight_decay,
        momentum=spec.momentum,
        filter_bias_and_bn=not spec.decay_norm_and_bias,
        param_group_fn=groups,
        **arguments,
    )
    return optimizer


def parameter_groups(module: nn.Module, spec: schema.OptimizerSpec) -> list[dict[str, Any]]:
    """The trainable parameters in at most two groups, each with its `weight_decay`; order is that
    of `named_parameters`.
    """
    # Not every module is a timm model; those that are name what must not decay (position
    # embeddings, tokens).
    exempt: set[str] = getattr(module, "no_weight_decay", set)()
    plain: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        is_exempt = (
            parameter.ndim <= 1
            or name.endswith(".bias")
            or any(fnmatch(name, pattern) for pattern in exempt)
        )
        (plain if is_exempt and not spec.decay_norm_and_bias else decayed).append(parameter)
    groups = [
        {"params": plain, "weight_decay": 0.0},
        {"params": decayed, "weight_decay": spec.weight_decay},
    ]
    return [group for group in groups if group["params"]]


def _check_name(name: str, key: str) -> None:
    known = timm.optim.list_optimizers()
    if name not in known:
        raise InputError(f"{key}.name: timm has no optimizer {name!r}{did_you_mean(name, known)}")
    info = get_optimizer_info(name)
    if isinstance(info.opt_class, str):
        library = info.opt_class.partition(".")[0]
        raise InputError(
            f"{key}.name: {name} comes from {library}, which is not supported here; use one of"
            " timm's or torch's own"
        )
    if info.second_order:
        raise InputError(
            f"{key}.name: {name} needs second-order gradients, which the training step does not"
            " compute"
        )
    if name.startswith("kron"):
        raise InputError(
            f"{key}.name: {name} draws from a generator of its own, so a resumed run would be"
            " another run; use another one"
        )


def _check_args(spec: schema.OptimizerSpec, key: str) -> dict[str, Any]:
    """`spec.args` ready to be passed on, with gradient clipping switched off where the optimizer
    has its own.
    """
    optimizer_class = get_optimizer_info(spec.name).opt_class
    known = [name for name in inspect.signature(optimizer_class).parameters if name != "params"]
    if (
        spec.momentum != schema.OptimizerSpec.model_fields["momentum"].default
        and "momentum" not in known
    ):
        raise InputError(
            f"{key}.momentum: {spec.name} has none; leave it out, or set betas in {key}.args"
        )
    for name in spec.args:
        if name in _OWN_KEYS:
            raise InputError(f"{key}.args.{name}: write {key}.{_OWN_KEYS[name]} instead")
        if name not in known and name not in _LAYER_DECAY:
            close = (
                did_you_mean(name, known)
                or f"; it takes {', '.join(sorted(set(known) - set(_OWN_KEYS)))}"
            )
            raise InputError(f"{key}.args.{name}: {spec.name} takes no such argument{close}")
    arguments = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in spec.args.items()
    }
    if "max_grad_norm" in known:
        arguments["max_grad_norm"] = None
    return arguments


def _rehearse(spec: schema.OptimizerSpec, arguments: dict[str, Any]) -> None:
    """Two steps (the second finds momentum) over two throw-away parameters (no layer: that would
    draw from the global generator).
    """
    module = nn.ParameterDict({"weight": torch.ones(2, 2), "bias": torch.ones(2)})
    arguments = {name: value for name, value in arguments.items() if name not in _LAYER_DECAY}
    optimizer = _create(module, spec, arguments)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    for _ in range(2):
        optimizer.step()
