"""A student: one setting of model, objective, optimizer, schedule and averages, that learns beside others and knows none of them.

A student's weights depend on its own setting, the batches and the teacher's answers alone, so it ends with the same weights
in company as alone.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.checkpoint import current_directory
from distill.data.loader import Batch
from distill.ema import Ema
from distill.engine import Engine
from distill.evaluate import Accuracy
from distill.export import read_record, write_model
from distill.losses.objective import LossTerms, Objective
from distill.models.batch_norm import StepStatistics, running_statistics, synchronise
from distill.models.drop_path import DropPathKeys
from distill.models.pixels import Pixels
from distill.optim import load_state, set_lr, split_state
from distill.recipe.schema import Data
from distill.recipe.schema import Student as StudentSpec
from distill.rng import hash64

Tensors = dict[str, torch.Tensor]


class Network(nn.Module):
    """What is called in training: images in [0, 1] become the pixels that the model expects, then logits."""

    def __init__(self, net: nn.Module, pixels: Pixels) -> None:
        super().__init__()
        self.net = net
        self.pixels = pixels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images [B, 3, H, W] in [0, 1] -> logits [B, K]."""
        return self.net(self.pixels(images))  # type: ignore[no-any-return]


@dataclass
class Losses:
    """Sums of this process's loss terms since the last log, on the device. Absent terms stay zero and are not reported.

    Summed over processes they are those of `steps` global batches, however these were spread.
    """

    sums: torch.Tensor
    steps: int = 0
    present: tuple[str, ...] = ()

    NAMES = ("total", "hard", "soft", "hint")

    def add(self, terms: LossTerms, share: float) -> None:
        """Take in a micro-batch that is this share of its global batch; no copy to the host."""
        values = {"total": terms.total, "hard": terms.hard, "soft": terms.soft, "hint": terms.hint}
        self.present = tuple(name for name in self.NAMES if values[name] is not None)
        self.sums += share * torch.stack(
            [torch.zeros_like(self.sums[0]) if v is None else v.detach() for v in values.values()]
        )


@dataclass
class Best:
    """The best evaluation so far: its top-1 in percent (None without an evaluation set), its step, and which weights it judged."""

    top1: float | None
    step: int
    weights: str


@dataclass
class Student:
    """One setting in training. `stopped_at` is the step, counted from 1, whose loss was not finite; a stopped student takes no further part."""

    name: str
    spec: StudentSpec
    net: nn.Module
    pixels: Pixels
    objective: Objective
    build_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    lr_at: Callable[[int], float]
    engine: Engine
    num_forwards: int
    batch_norm_global: bool
    run_seed: int
    best: Best | None = None
    stopped_at: int | None = None
    emas: dict[str, Ema] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Place, wrap, and start optimizer and averages. Collective: every rank."""
        if self.batch_norm_global and self.engine.world_size > 1:
            self.net = synchronise(self.net, self.engine.device)
        self._drop_path = DropPathKeys(self.net)
        self._drop_key = hash64(self.run_seed, "drop path", self.spec.seed)
        self.network = self.engine.place(Network(self.net, self.pixels))
        self.optimizer = self.build_optimizer(self.net)
        self.emas = {f"ema-{decay!r}": Ema(self.net, decay, self.spec.ema.warmup) for decay in self.spec.ema.decays}
        self.scaler = self.engine.new_scaler()
        self.model = self.engine.prepare(self.network.train())
        self._statistics = StepStatistics(self.net) if self.num_forwards > 1 else None
        self._forwards_done = 0
        self.losses = self._no_losses()

    def _no_losses(self) -> Losses:
        return Losses(torch.zeros(4, device=self.engine.device))

    @property
    def running(self) -> bool:
        """Whether it still learns."""
        return self.stopped_at is None

    def learn(self, batch: Batch, targets: torch.Tensor | None) -> torch.Tensor:
        """Forward and backward of one micro-batch; gradients add up until `update`. Collective on the last micro-batch of a step.

        Returns:
            bool scalar on the device: the loss was not finite.
        """
        if self._statistics and self._forwards_done == 0:
            self._statistics.before_step()
        self._forwards_done += 1
        more_to_come = self._forwards_done < self.num_forwards
        slab = batch.micro * self.engine.world_size + self.engine.rank
        self.engine.seed_forward(hash64(self.run_seed, "forward", self.spec.seed, batch.step, slab))
        self._drop_path.set(self._drop_key, batch.positions)
        with self.engine.accumulating(self.model, more_to_come):
            with self.engine.autocast():
                logits = self.model(batch.images)
            terms = self.objective(logits, targets, batch)
            loss = terms.total / self.num_forwards
            (self.scaler.scale(loss) if self.scaler else loss).backward()  # type: ignore[no-untyped-call]
        if self._statistics:
            self._statistics.after_forward(more_to_come)
        self.losses.add(terms, 1 / (self.num_forwards * self.engine.world_size))
        return ~torch.isfinite(terms.total.detach())

    def update(self, step: int) -> None:
        """One optimizer step at this step's learning rate."""
        set_lr(self.optimizer, self.lr_at(step))
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        if self.spec.optimizer.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.spec.optimizer.clip_grad_norm)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self._statistics:
            self._statistics.after_step(self.num_forwards)
        self._forwards_done = 0
        self.losses.steps += 1
        for ema in self.emas.values():
            ema.update(self.net)

    def stop(self, step: int) -> None:
        """Take no further part, and give the memory back."""
        self.stopped_at = step
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()
        self.emas.clear()

    def take_losses(self) -> dict[str, float]:
        """Mean loss terms since the last call, over all processes. Collective: every rank. Waits for the device."""
        taken, self.losses = self.losses, self._no_losses()
        if not taken.steps:
            return {}
        sums = self.engine.sum_(taken.sums).tolist()
        return {
            name: value / taken.steps for name, value in zip(Losses.NAMES, sums, strict=True) if name in taken.present
        }

    # ---- judged and saved --------------------------------------------------------------------------------------------

    def average_statistics(self) -> None:
        """Make BatchNorm's running statistics, and their averages, those of all processes. Collective: every rank."""
        if not self.batch_norm_global and self.engine.world_size > 1:
            buffers = {id(b) for b in running_statistics(self.net)}
            names = [name for name, buffer in self.net.named_buffers() if id(buffer) in buffers]
            holders = [dict(self.net.named_buffers()), *(ema.weights() for ema in self.emas.values())]
            self.engine.average_([holder[name] for holder in holders for name in names])

    def judged(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """What an evaluation looks at: the weights under the student's name, each average under "name/ema-0.999"."""

        def by_average(ema: Ema) -> Callable[[torch.Tensor], torch.Tensor]:
            def forward(images: torch.Tensor) -> torch.Tensor:
                return torch.func.functional_call(self.net, ema.weights(), (self.pixels(images),))  # type: ignore[no-any-return]

            return forward

        return {self.name: self.network, **{f"{self.name}/{key}": by_average(ema) for key, ema in self.emas.items()}}

    def improved(self, accuracies: Mapping[str, Accuracy], step: int) -> bool:
        """Whether an evaluation found better weights than any before; `best` then names them.

        Weights that give no finite loss are never the best: their top-1 is how often the first class comes.
        """
        scores = {name: accuracies[name].top1 for name in self.judged() if math.isfinite(accuracies[name].loss)}
        name = max(scores, key=lambda key: scores[key], default=None)
        if name is None or (self.best and self.best.top1 is not None and scores[name] <= self.best.top1):
            return False
        self.best = Best(scores[name], step, name.partition("/")[2] or "last")
        return True

    def weights(self, which: str = "last") -> Tensors:
        """State dict of the timm model: "last", or an average such as "ema-0.999"."""
        return dict(self.net.state_dict()) if which == "last" else self.emas[which].weights()

    def write(self, folder: Path, *, classes: tuple[str, ...], data: Data, record: dict[str, Any]) -> None:
        """Export the weights that `best` names to `folder`, as timm reads them."""
        assert self.best
        write_model(
            folder,
            self.net,
            self.weights(self.best.weights),
            classes=classes,
            pixels=self.pixels,
            image_size=data.image_size,
            eval_view=data.eval_view,
            record={"student": self.name, "model": self.spec.model, **vars(self.best), **record},
        )

    def recall_best(self, folder: Path) -> None:
        """Take for best what `write` left in `folder`; the files are the truth, since a kill may part them from any checkpoint."""
        kept = current_directory(folder)
        self.best = None
        if kept is not None:
            with suppress(OSError, ValueError, KeyError):  # damaged: the next evaluation writes it anew
                record = read_record(kept)
                self.best = Best(record["top1"], record["step"], record["weights"])

    def state(self) -> tuple[dict[str, Tensors], dict[str, Any]]:
        """What a continuation needs: tensors by file, and plain values. A stopped student keeps only its record. Collective: every rank."""
        values: dict[str, Any] = {"stopped_at": self.stopped_at}
        if not self.running:
            return {}, values
        sums = self.engine.sum_(self.losses.sums.clone()).tolist()
        values["losses"] = {"sums": sums, "steps": self.losses.steps, "present": self.losses.present}
        tensors = {"model": self.weights()}
        tensors["optimizer"], values["optimizer"] = split_state(self.optimizer, self.net)
        for key, ema in self.emas.items():
            tensors[key] = ema.state_dict()
        if self.scaler:
            values["scaler"] = self.scaler.state_dict()
        return tensors, values

    def load(self, tensors: dict[str, Tensors], values: dict[str, Any]) -> None:
        """Take the state that `state` gave."""
        if values["stopped_at"] is not None:
            self.stop(values["stopped_at"])
            return
        self.net.load_state_dict(tensors["model"])
        load_state(self.optimizer, self.net, tensors["optimizer"], values["optimizer"])
        for key, ema in self.emas.items():
            ema.load_state_dict(tensors[key])
        if self.scaler:
            self.scaler.load_state_dict(values["scaler"])
        sums, steps, present = (values["losses"][key] for key in ("sums", "steps", "present"))
        self.losses = self._no_losses()
        if self.engine.is_main:  # they are the sums of all processes
            self.losses.sums += torch.tensor(sums, device=self.engine.device)
        self.losses.steps, self.losses.present = steps, tuple(present)
