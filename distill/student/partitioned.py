"""A student partitioned over the processes: ZeRO-1, 2 or 3 through Accelerate's DeepSpeed plugin.

Averages are partitioned too, so their update sends nothing. An evaluation gathers the weights once
and calls a copy of the model: it makes no collective call, and each process needs memory for one
more set of float32 weights per average.
"""

import copy
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from distill.engine import Engine
from distill.engine.zero import ZeroPartition
from distill.evaluation.accuracy import Model
from distill.losses.outputs import Outputs
from distill.models.export_format import RAW
from distill.models.functional import functional_forward
from distill.student.ema import COUNTER
from distill.student.learner import HEADS, Learner
from distill.student.optimizer_state import split_state
from distill.student.placement import Averages, BuildOptimizer, Tensors
from distill.student.schedule import set_lr


class _Autocast(nn.Module):
    """Turns autocast on inside what DeepSpeed wraps: DeepSpeed turns off any around it."""

    def __init__(self, learner: Learner, engine: Engine) -> None:
        super().__init__()
        self.learner = learner
        self._autocast = engine.autocast

    def forward(self, images: Tensor, given: tuple[Tensor, ...] = ()) -> Outputs:
        with self._autocast():
            return self.learner(images, given)  # type: ignore[no-any-return]


class _Masters:
    """What `Ema` averages here instead of a module: the flat float32 weights of this process that
    hold the model and not its heads, named by their index, and the model's buffers.
    """

    def __init__(self, partition: ZeroPartition, net: nn.Module, names: Iterable[str]) -> None:
        self._net = net
        indices = sorted({partition.flat_of[name] for name in names})
        self.flats = {index: partition.flats[index] for index in indices}

    def state_dict(self, *, keep_vars: bool = True) -> Tensors:
        flats = {f"{index}": flat for index, flat in self.flats.items()}
        return {**flats, **_buffers(self._net)}


def _buffers(net: nn.Module) -> Tensors:
    """Return the buffers of the state dict."""
    parameters = {id(parameter) for parameter in net.parameters()}
    return {
        name: t for name, t in net.state_dict(keep_vars=True).items() if id(t) not in parameters
    }


def _twin(net: nn.Module) -> nn.Module:
    """Return a copy of a model in evaluation mode; its weights take no memory, and the caller gives
    others at each forward.
    """
    # A process group cannot be copied: BatchNorms of the copy keep that of the original.
    groups = (getattr(module, "process_group", None) for module in net.modules())
    memo = {id(group): group for group in groups if group is not None}
    twin = copy.deepcopy(net, memo).eval().requires_grad_(False)
    empty: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for module in twin.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                meta = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
                module._parameters[name] = empty.setdefault(id(parameter), meta)
    return twin


class Partitioned:
    """The placement of train.zero_stage 1, 2 and 3. Constructed by every rank.

    Args:
        learner: in train mode, on the device.
        num_forwards: forwards of this process in each step.
    """

    def __init__(
        self,
        learner: Learner,
        build_optimizer: BuildOptimizer,
        engine: Engine,
        *,
        clip_grad_norm: float | None,
        averages: Averages,
        micro_batch_size: int,
        num_forwards: int,
    ) -> None:
        parameters = learner.trained_parameters()
        assert all(parameter.requires_grad for parameter in parameters.values()), (
            "a partition holds trained parameters only"
        )
        self.failed = False
        self._learner, self._net, self._engine = learner, learner.net, engine
        self._twin = _twin(self._net)
        owners: dict[int, list[str]] = {}  # a tied parameter has several names
        for name, value in self._net.state_dict(keep_vars=True).items():
            owners.setdefault(id(value), []).append(name)
        # The names in the state dict, of each of the model's parameters.
        self._names = {name: owners[id(p)] for name, p in self._net.named_parameters()}
        self._order = list(self._net.state_dict())
        optimizer = build_optimizer(learner)
        _, described = split_state(optimizer, parameters)
        self._groups = [group["parameters"] for group in described["groups"]]
        self._kind = described["optimizer"]
        self._model = engine.prepare_partitioned(
            _Autocast(learner, engine),
            optimizer,
            micro_batch_size=micro_batch_size,
            num_forwards=num_forwards,
            clip_grad_norm=clip_grad_norm,
        )
        self._partition = ZeroPartition(self._model, parameters)
        self._masters = _Masters(self._partition, self._net, self._names)
        self._averages = averages
        self._emas = self._averages.begin(self._masters)

    def accumulating(self, more_to_come: bool) -> AbstractContextManager[None]:
        return nullcontext()  # DeepSpeed counts the forwards of a step itself

    def forward(self, images: Tensor, given: tuple[Tensor, ...] = ()) -> Outputs:
        outputs: Outputs = self._model(images, given)
        return outputs

    def backward(self, loss: Tensor, more_to_come: bool) -> None:
        self._model.backward(loss, scale_wrt_gas=False)
        if more_to_come:
            self._model.step()  # counts; the weights change in the last call of a step

    def term_norms(
        self, terms: Mapping[str, torch.Tensor], group_size: int
    ) -> dict[str, torch.Tensor]:
        return {}  # DeepSpeed gathers weights and reduces gradients in hooks of its own backward

    def step(self, lr: float, *, measured: bool = False) -> torch.Tensor | None:
        set_lr(self._partition.base_optimizer, lr)
        self._model.step()
        self.failed = self._partition.skipped
        norm = self._model.get_global_grad_norm() if measured else None
        return None if norm is None else torch.as_tensor(norm, device=self._engine.device)

    def update_averages(self) -> None:
        for ema in self._emas.values():
            ema.update(self._masters)

    def restart(
        self,
        build_optimizer: BuildOptimizer,
        clip_grad_norm: float | None,
        *,
        new_optimizer: bool,
        new_averages: bool,
        learner: Learner | None = None,
    ) -> None:
        assert learner is None, "a recipe with zero_stage has the same hint in all stages"
        if new_optimizer:
            self._partition.base_optimizer.state.clear()
        if new_averages:
            self._emas = {}  # frees the old averages before the new ones are made
            self._emas = self._averages.begin(self._masters)

    def statistics(self) -> list[Tensors]:
        return [dict(self._net.named_buffers()), *(ema.weights() for ema in self._emas.values())]

    def evaluation_models(self) -> dict[str, Model]:
        def with_weights(weights: Tensors) -> Model:
            def forward(images: Tensor) -> Tensor:
                return functional_forward(self._twin, weights, self._learner.pixels(images))

            return forward

        return {which: with_weights(self.weights(which)) for which in (RAW, *self._emas)}

    def weights(self, which: str) -> Tensors:
        state = self._masters.state_dict() if which == RAW else self._emas[which].weights()
        return self._gather(state)

    def _gather(self, state: Mapping[str, Tensor], *, to_save: bool = False) -> Tensors:
        """Return the model's state dict from the tensors that `_Masters` names. Collective: every
        rank.

        Args:
            to_save: the main process gets each tensor in host memory, the others get nothing.
        """
        flats = {index: state[f"{index}"].detach() for index in self._masters.flats}
        gathered: Tensors = {}
        for name, names in self._names.items():
            tensor = self._partition.gather(name, flats, self._engine.device)
            gathered |= self._for_main(dict.fromkeys(names, tensor), to_save)
        gathered |= {name: buffer.detach() for name, buffer in state.items() if name in self._order}
        in_order = {name: gathered[name] for name in self._order if name in gathered}
        return self._for_main(in_order, to_save)

    def _gather_heads(self) -> Tensors:
        """Return the state dict of the heads to save. Collective: every rank."""
        if self._learner.heads is None:
            return {}
        flats = {index: flat.detach() for index, flat in enumerate(self._partition.flats)}
        tensors: Tensors = {}
        for name, value in self._learner.heads_state().items():
            if f"{HEADS}{name}" in self._partition.parameters:
                value = self._partition.gather(f"{HEADS}{name}", flats, self._engine.device)
            tensors |= self._for_main({name: value})
        return tensors

    def state(self) -> tuple[dict[str, Tensors], dict[str, Any]]:
        tensors = {"model": self._gather(self._masters.state_dict(), to_save=True)}
        if heads := self._gather_heads():
            tensors["heads"] = heads
        tensors["optimizer"], values = self._optimizer_state()
        for name, ema in self._emas.items():
            tensors[name] = {
                **self._gather(ema.weights(), to_save=True),
                COUNTER: ema.state_dict()[COUNTER],
            }
        return tensors, {"optimizer": values}

    def _for_main(self, tensors: Tensors, to_save: bool = True) -> Tensors:
        """Return tensors to save: on the main process in host memory, elsewhere none."""
        if not to_save:
            return tensors
        return (
            {name: tensor.detach().cpu() for name, tensor in tensors.items()}
            if self._engine.is_main
            else {}
        )

    def _optimizer_state(self) -> tuple[Tensors, dict[str, Any]]:
        """Return what `split_state` returns of a replicated student. Collective: every rank."""
        base = self._partition.base_optimizer
        tensors: Tensors = {}
        slots: dict[str, Any] = {}
        for name in self._partition.parameters:
            index = self._partition.flat_of[name]
            for slot, value in base.state.get(self._partition.flats[index], {}).items():
                key = f"{name}/{slot}"
                if not isinstance(value, Tensor):
                    slots[key] = value
                elif value.shape == self._partition.flats[index].shape:
                    tensors |= self._for_main(
                        {key: self._partition.gather(name, {index: value}, self._engine.device)}
                    )
                else:
                    tensors |= self._for_main({key: value.clone()})
        groups = [
            {
                "parameters": names,
                "settings": {
                    k: v
                    for k, v in group.items()
                    if k != "params" and not isinstance(v, torch.dtype)
                },
            }
            for names, group in zip(self._groups, base.param_groups, strict=True)
        ]
        return tensors, {"optimizer": self._kind, "groups": groups, "slots": slots}

    def load(self, tensors: dict[str, Tensors], values: dict[str, Any]) -> None:
        heads = {f"{HEADS}{name}": tensor for name, tensor in tensors.get("heads", {}).items()}
        self._partition.set_weights({**tensors["model"], **heads})
        self._set_buffers(_buffers(self._net), tensors["model"])
        if self._learner.heads is not None:
            self._set_buffers(_buffers(self._learner.heads), tensors.get("heads", {}))
        self._load_optimizer(tensors["optimizer"], values["optimizer"])
        for name, ema in self._emas.items():
            shadow = ema.weights()
            flats = {index: shadow[f"{index}"] for index in self._masters.flats}
            for parameter in self._names:
                self._partition.scatter(parameter, tensors[name][parameter], flats)
            self._set_buffers(shadow, tensors[name])
            ema.num_updates = int(tensors[name][COUNTER])

    def _set_buffers(self, buffers: Tensors, saved: Tensors) -> None:
        with torch.no_grad():
            for name, buffer in buffers.items():
                if name in saved and name not in self._partition.parameters:
                    buffer.copy_(saved[name])

    def _load_optimizer(self, tensors: Tensors, values: dict[str, Any]) -> None:
        base, partition = self._partition.base_optimizer, self._partition
        here = [self._kind, *self._groups]
        there = [values["optimizer"], *(group["parameters"] for group in values["groups"])]
        assert here == there, "the checkpoint of the same recipe has another optimizer"
        for group, saved in zip(base.param_groups, values["groups"], strict=True):
            for slot, value in saved["settings"].items():
                group[slot] = tuple(value) if isinstance(value, list) else value
        # Step counts are on the host, unless the kernels count themselves.
        on_device = any(
            group.get("fused") or group.get("capturable") for group in base.param_groups
        )
        for key, value in [*tensors.items(), *values["slots"].items()]:
            name, _, slot = key.rpartition("/")
            flat = partition.flats[partition.flat_of[name]]
            state = base.state[flat]
            if isinstance(value, Tensor) and slot != "step":
                if slot not in state:
                    state[slot] = torch.zeros_like(flat, requires_grad=False)
                partition.scatter(name, value, {partition.flat_of[name]: state[slot]})
            elif slot not in state:
                state[slot] = (
                    value.to(flat.device if on_device else "cpu", copy=True)
                    if isinstance(value, Tensor)
                    else value
                )

    def clear(self) -> None:
        self._partition.base_optimizer.state.clear()
        self._emas.clear()
