"""The state of an optimizer by parameter name: what a checkpoint holds under every placement."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import InputError


def split_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split the state of `optimizer` into tensors and values that JSON can hold, by the names of
    the parameters.

    Returns:
        tensors: "<parameter>/<slot>" for the state of a parameter ("fc.weight/exp_avg": the shape
            of fc.weight) and "param_groups[<i>]/<slot>" for tensors that a group holds (LAMB's
            step). They alias: save or clone them before the next step.
        values: {"optimizer": class, "groups": [{"parameters": names, "settings": hyperparameters}],
            "slots": scalars}.
    """
    names = {parameter: name for name, parameter in parameters.items()}
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
            ):  # the recipe gives the dtype
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
    return tensors, {"optimizer": _class_name(optimizer), "groups": groups, "slots": slots}


def load_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
) -> None:
    """Load what `split_state` returned into a new optimizer; training continues bitwise.

    torch's `load_state_dict` casts floating state to the parameter's dtype and takes the file's
    memory format. Both change the next update (a norm over channels-last memory adds in another
    order), so this function sets the slots itself.

    Raises:
        InputError: the state is of another optimizer, or of other parameters.
    """
    names = {parameter: name for name, parameter in parameters.items()}
    here = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    there = [group["parameters"] for group in values["groups"]]
    if values["optimizer"] != _class_name(optimizer) or here != there:
        odd = sorted(
            {name for group in here for name in group} ^ {name for group in there for name in group}
        )
        raise InputError(
            f"the optimizer state is of {values['optimizer']} over {sum(map(len, there))}"
            f" parameters, this run has {_class_name(optimizer)} over {sum(map(len, here))}"
            + (f"; first that differ: {', '.join(odd[:3])}" if odd else "")
        )
    for group, saved in zip(optimizer.param_groups, values["groups"], strict=True):
        for slot, value in saved["settings"].items():
            # JSON has lists only; the optimizer has tuples, such as betas.
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


def carry_state(old: torch.optim.Optimizer, new: torch.optim.Optimizer) -> None:
    """Move the state of the parameter groups that both optimizers have to the new one; its learning
    rates stay.
    """
    for group in new.param_groups:
        for before in old.param_groups:
            if list(map(id, group["params"])) == list(map(id, before["params"])):
                own = ("params", "lr")
                group.update({slot: v for slot, v in before.items() if slot not in own})
        for parameter in group["params"]:
            if parameter in old.state:
                new.state[parameter] = old.state[parameter]


def _placed(value: Tensor, parameter: nn.Parameter, group: Mapping[str, Any]) -> Tensor:
    """Return a copy of a slot as the optimizer would make it: in its own dtype, on the device and
    in the memory format of the parameter.
    """
    if value.ndim == 0:
        # Step counts are on the host, unless the kernels count themselves.
        counts_on_device = bool(group.get("fused") or group.get("capturable"))
        return value.to(parameter.device if counts_on_device else "cpu", copy=True)
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _class_name(optimizer: torch.optim.Optimizer) -> str:
    """Return the class name of the optimizer inside Accelerate's wrapper."""
    return type(getattr(optimizer, "optimizer", optimizer)).__name__
