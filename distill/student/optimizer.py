"""Parameter groups and timm optimizers without hidden clipping; the learning rate as a function of
the step; optimizer state by name.
"""

import inspect
import json
import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from functools import partial
from typing import Any

import timm.optim
import torch
from timm.optim import create_optimizer_v2, get_optimizer_info
from torch import Tensor, nn

from distill.errors import InputError, did_you_mean
from distill.recipe import schema

_OWN_KEYS = {
    "lr": "lr",
    "weight_decay": "weight_decay",
    "momentum": "momentum",
    "max_grad_norm": "clip_grad_norm",
}
_LAYER_DECAY = ("layer_decay", "layer_decay_min_scale")

# ---- building ------------------------------------------------------------------------------------


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


# ---- learning rate -------------------------------------------------------------------------------


def lr_at(
    step: int,
    *,
    name: str,
    base_lr: float,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_lr: float = 0.0,
    min_lr: float = 0.0,
    power: float = 1.0,
    milestones_steps: tuple[int, ...] = (),
    decay_factor: float = 0.1,
) -> float:
    """Learning rate of the update that follows `step` finished updates, so of the first update at
    step 0.

    Decay counts from step 0 (timm's `warmup_prefix=False`); warm-up, linear from `warmup_lr`,
    replaces its start. With t = step / total_steps:

    - cosine: min_lr + (base_lr - min_lr) (1 + cos(pi t)) / 2
    - linear, polynomial: min_lr + (base_lr - min_lr) (1 - t)^power, power 1 for linear
    - step: base_lr * decay_factor^(number of milestones at or before `step`), never below min_lr.
      This is torch's MultiStepLR; timm's drops one step earlier.
    - constant: base_lr

    From `total_steps` on the decaying three stay at `min_lr`.
    """
    if step < warmup_steps:
        return warmup_lr + step * (base_lr - warmup_lr) / warmup_steps
    progress = min(step / total_steps, 1.0)
    match name:
        case "cosine":
            return min_lr + 0.5 * (base_lr - min_lr) * (1 + math.cos(math.pi * progress))
        case "linear":
            return min_lr + (base_lr - min_lr) * (1 - progress)
        case "polynomial":
            return min_lr + (base_lr - min_lr) * float((1 - progress) ** power)
        case "step":
            passed = sum(milestone <= step for milestone in milestones_steps)
            return max(min_lr, base_lr * float(decay_factor**passed))
        case "constant":
            return base_lr
    raise AssertionError(f"no schedule {name!r}")


def resolve_schedule(
    spec: schema.ScheduleSpec,
    base_lr: float,
    total_steps: int,
    steps_per_epoch: int,
    batch_size_global: int,
    *,
    key: str = "students.*.schedule",
    budget_key: str = "train.budget",
) -> Callable[[int], float]:
    """`lr_at` with the durations of `spec` turned into steps: a function of the step alone.

    Args:
        total_steps: optimizer steps of the whole stage.
        key, budget_key: where `spec` and the budget stand in the recipe, for messages.

    Raises:
        InputError: warm-up fills the budget, or `min_lr` lies above `base_lr`.
    """
    lengths = {"steps_per_epoch": steps_per_epoch, "batch_size_global": batch_size_global}
    warmup_steps = spec.warmup.steps(**lengths)
    if warmup_steps >= total_steps:
        raise InputError(
            f"{key}.warmup: {spec.warmup} is {warmup_steps} steps and the whole budget is"
            f" {total_steps}: write {key}.warmup='{total_steps // 20} iterations', or lengthen"
            f" {budget_key}"
        )
    late = [milestone for milestone in spec.milestones if milestone.steps(**lengths) >= total_steps]
    if late:
        raise InputError(
            f"{key}.milestones: {late[0]} lies at or beyond {budget_key}, {total_steps} steps, and"
            " would never come"
        )
    if spec.min_lr > base_lr:
        raise InputError(
            f"{key}.min_lr: {spec.min_lr:g} lies above optimizer.lr {base_lr:g}: lower one or raise"
            " the other"
        )
    return partial(
        lr_at,
        name=spec.name,
        base_lr=base_lr,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        warmup_lr=spec.warmup_lr,
        min_lr=spec.min_lr,
        power=spec.power,
        milestones_steps=tuple(milestone.steps(**lengths) for milestone in spec.milestones),
        decay_factor=spec.decay_factor,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group `lr` times its `lr_scale` (timm's layer-wise decay), as a host
    float: no sync with a device.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"] if "lr_scale" in group else lr


# ---- state by parameter name ---------------------------------------------------------------------


def split_state(
    optimizer: torch.optim.Optimizer, module: nn.Module
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The whole state of `optimizer` as tensors and a JSON-able rest, keyed by the parameter names
    of the bare `module`.

    Returns:
        tensors: "<parameter>/<slot>" for the state of a parameter ("fc.weight/exp_avg": the shape
            of fc.weight) and "param_groups[<i>]/<slot>" for tensors that a group holds (LAMB's
            step). They alias the optimizer's: save or clone them before the next step.
        values: {"optimizer": class, "groups": [{"parameters": names, "settings": hyperparameters}],
            "slots": scalars}.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    tensors: dict[str, Tensor] = {}
    slots: dict[str, Any] = {}
    groups: list[dict[str, Any]] = []
    for index, group in enumerate(optimizer.param_groups):
        settings = {}
        for slot, value in group.items():
            if isinstance(value, Tensor):
                tensors[f"param_groups[{index}]/{slot}"] = value
            elif slot != "params" and not isinstance(
                value, torch.dtype
            ):  # a dtype comes from the recipe again
                settings[slot] = value
        groups.append(
            {
                "parameters": [names[parameter] for parameter in group["params"]],
                "settings": settings,
            }
        )
        for parameter in group["params"]:
            for slot, value in optimizer.state.get(parameter, {}).items():
                (tensors if isinstance(value, Tensor) else slots)[f"{names[parameter]}/{slot}"] = (
                    value
                )
    return tensors, {"optimizer": _inner(optimizer), "groups": groups, "slots": slots}


def load_state(
    optimizer: torch.optim.Optimizer,
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
) -> None:
    """Put what `split_state` returned into a freshly built optimizer; training goes on bitwise.

    Torch's own `load_state_dict` casts floating state to the parameter's dtype and keeps the file's
    memory format, either of which changes the next update (a norm over channels-last memory adds in
    another order), so the slots are set here.

    Raises:
        InputError: the state is of another optimizer, or of other parameters.
    """
    parameters = dict(module.named_parameters())
    names = {parameter: name for name, parameter in parameters.items()}
    here = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    there = [group["parameters"] for group in values["groups"]]
    if values["optimizer"] != _inner(optimizer) or here != there:
        odd = sorted(
            {name for group in here for name in group} ^ {name for group in there for name in group}
        )
        raise InputError(
            f"the optimizer state is of {values['optimizer']} over {sum(map(len, there))}"
            f" parameters, this run has {_inner(optimizer)} over {sum(map(len, here))}"
            + (f"; first that differ: {', '.join(odd[:3])}" if odd else "")
        )
    for group, saved in zip(optimizer.param_groups, values["groups"], strict=True):
        for slot, value in saved["settings"].items():
            # JSON knows lists only; the optimizer keeps pairs such as betas as tuples.
            group[slot] = (
                tuple(value)
                if isinstance(value, list) and isinstance(group.get(slot), tuple)
                else value
            )
    owners = {f"param_groups[{index}]": group for index, group in enumerate(optimizer.param_groups)}
    group_of = {
        names[parameter]: group for group in optimizer.param_groups for parameter in group["params"]
    }
    for name in group_of:
        owners[name] = optimizer.state[parameters[name]] = {}
    for key, value in [*values["slots"].items(), *tensors.items()]:
        owner, _, slot = key.rpartition("/")
        if isinstance(value, Tensor):
            value = (
                _placed(value, parameters[owner], group_of[owner])
                if owner in group_of
                else value.clone()
            )
        owners[owner][slot] = value


def _placed(value: Tensor, parameter: nn.Parameter, group: Mapping[str, Any]) -> Tensor:
    """A slot as the optimizer would have made it: own memory, its own dtype, the parameter's device
    and memory format.
    """
    if value.ndim == 0:
        # Step counts live on the host, unless the kernels themselves count.
        counts_on_device = bool(group.get("fused") or group.get("capturable"))
        return value.to(parameter.device if counts_on_device else "cpu", copy=True)
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _inner(optimizer: torch.optim.Optimizer) -> str:
    """Class name of the optimizer, below Accelerate's wrapper."""
    return type(getattr(optimizer, "optimizer", optimizer)).__name__
