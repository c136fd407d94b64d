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


def check_optimizer(module: nn.Module, spec: schema.OptimizerSpec, *, key: str) -> None:
    """Check that `build_optimizer` can build what the recipe asks for, without its memory.

    Args:
        module: the model, of which only the parameters' names and shapes count.
        key: where `spec` stands in the recipe, for messages.

    Raises:
        InputError: an unknown or unsupported name, or arguments that the optimizer does not take.
    """
    _check_name(spec.name, key)
    _check_args(spec, key)
    try:
        # Some optimizers read an argument only in step(): two steps, as the second finds momentum.
        take_two_steps(spec)
        if "layer_decay" in spec.args:  # timm groups the parameters by the model's layers
            build_optimizer(module, spec)
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


def build_optimizer(
    module: nn.Module, spec: schema.OptimizerSpec, heads: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Build a timm optimizer over the trainable parameters of `module`, which neither DDP nor
    compile wraps, and in groups of their own over those of `heads`. `check_optimizer` has checked
    `spec`.

    Weight decay leaves out parameters of at most one dimension, biases, and the names of the
    model's `no_weight_decay()`; with `decay_norm_and_bias` it takes all, as `torch.optim` does when
    given `parameters()`. `args` may hold timm's `layer_decay` and `layer_decay_min_scale`. No
    gradient is clipped here: timm's LAMB would clip the global norm to 1.0 by default. (Adafactor,
    ADOPT and MARS limit their own *update*; that is part of the method and stays.)
    """
    arguments = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in spec.args.items()
    }
    if "max_grad_norm" in _arguments_of(spec.name):
        arguments["max_grad_norm"] = None
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        module,
        opt=spec.name,
        lr=spec.lr,
        weight_decay=spec.weight_decay,
        momentum=spec.momentum,
        filter_bias_and_bn=not spec.decay_norm_and_bias,
        param_group_fn=None if "layer_decay" in spec.args else partial(parameter_groups, spec=spec),
        **arguments,
    )
    for group in parameter_groups(heads, spec) if heads is not None else ():
        optimizer.add_param_group(group)
    return optimizer


def take_two_steps(spec: schema.OptimizerSpec) -> dict[nn.Parameter, dict[str, Any]]:
    """Return the optimizer's state by parameter after two steps over a 16 x 16 matrix and a vector
    of 16, without layer decay. Draws no random numbers.
    """
    args = {name: value for name, value in spec.args.items() if name not in _LAYER_DECAY}
    samples = nn.ParameterDict({"weight": torch.ones(16, 16), "bias": torch.ones(16)})
    optimizer = build_optimizer(samples, spec.model_copy(update={"args": args}))
    for _ in range(2):
        for parameter in samples.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    return {parameter: optimizer.state[parameter] for parameter in samples.parameters()}


def parameter_groups(module: nn.Module, spec: schema.OptimizerSpec) -> list[dict[str, Any]]:
    """Return the trainable parameters in at most two groups, each with its `weight_decay`, in the
    order of `named_parameters`.
    """
    # timm's models name what must not decay (position embeddings, tokens); other modules do not.
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


def _arguments_of(name: str) -> list[str]:
    optimizer_class = get_optimizer_info(name).opt_class
    return [each for each in inspect.signature(optimizer_class).parameters if each != "params"]


def _check_args(spec: schema.OptimizerSpec, key: str) -> None:
    known = _arguments_of(spec.name)
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
