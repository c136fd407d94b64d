"""A student replicated on every process; DDP averages its gradients. Every optimizer is exact
here, also LAMB, which takes the norm of each layer.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from distill.engine import Engine
from distill.evaluation.accuracy import Model
from distill.losses.outputs import Outputs
from distill.models.export_format import RAW
from distill.models.functional import functional_forward
from distill.student.ema import Ema
from distill.student.learner import Learner
from distill.student.optimizer_state import carry_state, load_state, split_state
from distill.student.placement import Averages, BuildOptimizer, Tensors
from distill.student.schedule import set_lr


class Replicated:
    """The placement of train.zero_stage 0. Collective when built: every rank.

    Args:
        learner: in train mode, on the device.
    """

    def __init__(
        self,
        learner: Learner,
        build_optimizer: BuildOptimizer,
        engine: Engine,
        *,
        clip_grad_norm: float | None,
        averages: Averages,
    ) -> None:
        self.failed = False
        self._net, self._engine = learner.net, engine
        self._clip_grad_norm = clip_grad_norm
        self._averages = averages
        self._emas = self._averages.begin(self._net)
        self._scaler = engine.new_scaler()
        self._hold(learner, build_optimizer)

    def _hold(self, learner: Learner, build_optimizer: BuildOptimizer) -> None:
        """Train this learner, with an optimizer without state. Collective: every rank."""
        self._learner = learner
        self._parameters = learner.trained_parameters()
        self._optimizer = build_optimizer(learner)
        self._model = self._engine.prepare(learner)

    def accumulating(self, more_to_come: bool) -> AbstractContextManager[None]:
        return self._engine.accumulating(self._model, more_to_come)

    def forward(self, images: torch.Tensor, given: tuple[torch.Tensor, ...] = ()) -> Outputs:
        with self._engine.autocast():
            outputs: Outputs = self._model(images, given)
        return outputs

    def backward(self, loss: torch.Tensor, more_to_come: bool) -> None:
        (self._scaler.scale(loss) if self._scaler else loss).backward()  # type: ignore[no-untyped-call]

    def term_norms(
        self, terms: Mapping[str, torch.Tensor], group_size: int
    ) -> dict[str, torch.Tensor]:
        if self._engine.compiles:
            return {}  # a compiled backward frees what it read, so it runs only once
        # DDP's reducer hooks into the accumulation of gradients, which autograd.grad leaves out.
        one = torch.ones((), device=self._engine.device)
        scale = self._scaler.scale(one) if self._scaler else one
        parameters = [p for p in self._parameters.values() if p.requires_grad]
        norms = {}
        for name, term in terms.items():
            found = torch.autograd.grad(
                scale * term, parameters, retain_graph=True, allow_unused=True
            )
            # Contiguous: the gradient of a broadcast weight is a view that cannot be averaged.
            gradients = [each.contiguous() for each in found if each is not None]
            self._engine.average_(gradients, group_size)
            norms[name] = torch.nn.utils.get_total_norm(gradients) / scale
        return norms

    def step(self, lr: float, *, measured: bool = False) -> torch.Tensor | None:
        set_lr(self._optimizer, lr)
        if self._scaler:
            self._scaler.unscale_(self._optimizer)
        norm = None
        if self._clip_grad_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._clip_grad_norm)
        elif measured:
            gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        if self._scaler:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        else:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm if measured else None

    def update_averages(self) -> None:
        for ema in self._emas.values():
            ema.update(self._net)

    def restart(
        self,
        build_optimizer: BuildOptimizer,
        clip_grad_norm: float | None,
        *,
        new_optimizer: bool,
        new_averages: bool,
        learner: Learner | None = None,
    ) -> None:
        self._clip_grad_norm = clip_grad_norm
        before = self._optimizer
        if learner is not None:
            del self._model
            self._engine.forget_prepared()
            self._hold(learner, build_optimizer)
        elif new_optimizer:
            self._optimizer = build_optimizer(self._learner)
        if not new_optimizer and self._optimizer is not before:
            carry_state(before, self._optimizer)
        if new_averages:
            self._emas = {}  # frees the old averages before the new ones are made
            self._emas = self._averages.begin(self._net)

    def statistics(self) -> list[Tensors]:
        return [dict(self._net.named_buffers()), *(ema.weights() for ema in self._emas.values())]

    def evaluation_models(self) -> dict[str, Model]:
        def averaged(ema: Ema) -> Model:
            def forward(images: torch.Tensor) -> torch.Tensor:
                return functional_forward(self._net, ema.weights(), self._learner.pixels(images))

            return forward

        def raw(images: torch.Tensor) -> torch.Tensor:
            outputs: Outputs = self._learner(images)
            return outputs.logits

        return {RAW: raw, **{name: averaged(ema) for name, ema in self._emas.items()}}

    def weights(self, which: str) -> Tensors:
        return dict(self._net.state_dict()) if which == RAW else self._emas[which].weights()

    def state(self) -> tuple[dict[str, Tensors], dict[str, Any]]:
        values: dict[str, Any] = {}
        tensors = {"model": self.weights(RAW)}
        tensors["optimizer"], values["optimizer"] = split_state(self._optimizer, self._parameters)
        if heads := self._learner.heads_state():
            tensors["heads"] = heads
        for name, ema in self._emas.items():
            tensors[name] = ema.state_dict()
        if self._scaler:
            values["scaler"] = self._scaler.state_dict()
        return tensors, values

    def load(self, tensors: dict[str, Tensors], values: dict[str, Any]) -> None:
        self._net.load_state_dict(tensors["model"])
        if self._learner.heads is not None:
            self._learner.heads.load_state_dict(tensors.get("heads", {}))
        optimizer = tensors["optimizer"]
        load_state(self._optimizer, self._parameters, optimizer, values["optimizer"])
        for name, ema in self._emas.items():
            ema.load_state_dict(tensors[name])
        if self._scaler:
            self._scaler.load_state_dict(values["scaler"])

    def clear(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._optimizer.state.clear()
        self._emas.clear()
