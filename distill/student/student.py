"""A student: one setting of model, objective, optimizer, schedule and averages, that learns beside
others and knows none of them.

A student's weights depend on its own setting, the batches and the teacher's answers alone, so it
ends with the same weights in company as alone.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.checkpoint import current_directory
from distill.data.loading.loader import Batch
from distill.engine import Engine
from distill.evaluation.accuracy import Accuracy
from distill.losses.objective import LossTerms, Objective
from distill.models.batch_norm import StepStatistics, running_statistics, synchronise
from distill.models.drop_path import DropPathKeys
from distill.models.export_format import RAW, read_record, write_model
from distill.models.pixels import Network, Pixels
from distill.models.student import first_weights
from distill.models.view import ModelView
from distill.recipe.schema import StudentSpec
from distill.rng import hash64
from distill.student import (
    Averages,
    BuildOptimizer,
    Judged,
    Placement,
    Replicated,
    Sharded,
    Tensors,
)


@dataclass
class Losses:
    """Sums of this process's loss terms since the last log, on the device. Absent terms stay zero
    and are not reported.

    Summed over processes they are those of `steps` global batches, however these were spread.
    """

    sums: torch.Tensor
    steps: int = 0
    present: tuple[str, ...] = ()

    NAMES = ("total", "hard", "soft", "hint", "kept")

    def add(self, terms: LossTerms, share: float) -> None:
        """Take in a micro-batch that is this share of its global batch; no copy to the host."""
        values = terms._asdict()
        self.present = tuple(name for name in self.NAMES if values[name] is not None)
        self.sums += share * torch.stack(
            [torch.zeros_like(self.sums[0]) if v is None else v.detach() for v in values.values()]
        )


@dataclass
class Best:
    """The best evaluation so far: its top-1 in percent (None without an evaluation set), its step,
    and which weights it judged: RAW or an average.
    """

    top1: float | None
    step: int
    weights: str


@dataclass(frozen=True)
class Setting:
    """How a student learns in a stage."""

    spec: StudentSpec
    objective: Objective
    build_optimizer: BuildOptimizer


@dataclass
class Student:
    """One setting in training. `stopped_at` is the step, counted from 1, whose loss was not finite;
    a stopped student takes no further part.
    """

    name: str
    setting: Setting
    net: nn.Module
    view: ModelView
    lr_at: Callable[[int], float]
    engine: Engine
    micro_batch_size: int
    num_forwards: int
    batch_norm_global: bool
    run_seed: int
    best: Best | None = None
    stopped_at: int | None = None

    def __post_init__(self) -> None:
        """Place, wrap, and start optimizer and averages. Collective: every rank."""
        if self.batch_norm_global and self.engine.world_size > 1:
            self.net = synchronise(self.net, self.engine.device)
        self.num_parameters = sum(parameter.numel() for parameter in self.net.parameters())
        self._drop_path = DropPathKeys(self.net)
        self._drop_key = hash64(self.run_seed, "drop path", self.spec.seed)
        self.network = network = Network(self.net, Pixels(self.view.mean, self.view.std))
        self.engine.place(network.train(), in_shards=self.engine.sharding)
        averages = Averages(self.spec.ema.decays, self.spec.ema.warmup)
        self.averages = tuple(averages.by_name())
        clip = self.spec.optimizer.clip_grad_norm
        self.placement: Placement
        if self.engine.sharding:
            self.placement = Sharded(
                network,
                self.setting.build_optimizer,
                self.engine,
                clip_grad_norm=clip,
                averages=averages,
                micro_batch_size=self.micro_batch_size,
                num_forwards=self.num_forwards,
            )
        else:
            self.placement = Replicated(
                network,
                self.setting.build_optimizer,
                self.engine,
                clip_grad_norm=clip,
                averages=averages,
            )
        self._statistics = StepStatistics(self.net) if self.num_forwards > 1 else None
        self._forwards_done = 0
        self.losses = self._no_losses()

    @property
    def spec(self) -> StudentSpec:
        """What the recipe says of it in this stage."""
        return self.setting.spec

    def enter(self, setting: Setting, *, new_optimizer: bool, new_averages: bool) -> None:
        """Learn in another way from here on; optimizer state and averages are carried over or begin
        anew.
        """
        self.setting = setting
        self.placement.restart(
            setting.build_optimizer if new_optimizer else None,
            setting.spec.optimizer.clip_grad_norm,
            new_averages,
        )

    def _no_losses(self) -> Losses:
        return Losses(torch.zeros(len(Losses.NAMES), device=self.engine.device))

    @property
    def running(self) -> bool:
        """Whether it still learns."""
        return self.stopped_at is None

    def learn(self, batch: Batch, teacher_logits: torch.Tensor | None) -> torch.Tensor:
        """Forward and backward of one micro-batch; gradients add up until `update`. Collective on
        the last micro-batch of a step.

        Returns:
            bool scalar on the device: the loss was not finite, or the gradients of the step before
                were not.
        """
        if self._statistics and self._forwards_done == 0:
            self._statistics.before_step()
        self._forwards_done += 1
        more_to_come = self._forwards_done < self.num_forwards
        slab = batch.micro * self.engine.world_size + self.engine.rank
        self.engine.seed_forward(hash64(self.run_seed, "forward", self.spec.seed, batch.step, slab))
        self._drop_path.set(self._drop_key, batch.positions)
        with self.placement.accumulating(more_to_come):
            terms = self.setting.objective(
                self.placement.forward(batch.images), teacher_logits, batch
            )
            self.placement.backward(terms.total / self.num_forwards, more_to_come)
        if self._statistics:
            self._statistics.after_forward(more_to_come)
        self.losses.add(terms, 1 / (self.num_forwards * self.engine.world_size))
        return ~torch.isfinite(terms.total.detach()) | self.placement.failed

    def update(self, step: int) -> None:
        """One optimizer step at this step's learning rate."""
        self.placement.step(self.lr_at(step))
        if self._statistics:
            self._statistics.after_step(self.num_forwards)
        self._forwards_done = 0
        self.losses.steps += 1
        self.placement.update_averages()

    def stop(self, step: int) -> None:
        """Take no further part, and give the memory back."""
        self.stopped_at = step
        self.placement.clear()

    def take_losses(self) -> dict[str, float]:
        """Mean loss terms since the last call, over all processes. Collective: every rank. Waits
        for the device.
        """
        taken, self.losses = self.losses, self._no_losses()
        if not taken.steps:
            return {}
        sums = self.engine.sum_(taken.sums).tolist()
        return {
            name: value / taken.steps
            for name, value in zip(Losses.NAMES, sums, strict=True)
            if name in taken.present
        }

    # ---- judged and saved ------------------------------------------------------------------------

    def average_statistics(self) -> None:
        """Make BatchNorm's running statistics, and their averages, those of all processes.
        Collective: every rank.
        """
        if not self.batch_norm_global and self.engine.world_size > 1:
            buffers = {id(b) for b in running_statistics(self.net)}
            names = [name for name, buffer in self.net.named_buffers() if id(buffer) in buffers]
            self.engine.average_(
                [held[name] for held in self.placement.statistics() for name in names]
            )

    def judged(self) -> dict[str, Judged]:
        """What an evaluation looks at: the weights under the student's name, each average under
        "name/ema-0.999". Collective: every rank.
        """
        return {self._judged_name(which): model for which, model in self.placement.judged().items()}

    def _judged_name(self, which: str) -> str:
        return self.name if which == RAW else f"{self.name}/{which}"

    def improved(self, accuracies: Mapping[str, Accuracy], step: int) -> bool:
        """Whether an evaluation found better weights than any before; `best` then names them.

        Weights that give no finite loss are never the best: their top-1 is how often the first
        class comes.
        """
        names = [self._judged_name(which) for which in (RAW, *self.averages)]
        scores = {
            name: accuracies[name].top1 for name in names if math.isfinite(accuracies[name].loss)
        }
        name = max(scores, key=lambda key: scores[key], default=None)
        if name is None or (
            self.best and self.best.top1 is not None and scores[name] <= self.best.top1
        ):
            return False
        self.best = Best(scores[name], step, name.partition("/")[2] or RAW)
        return True

    def best_weights(self) -> Tensors:
        """State dict of the timm model that `best` names. Collective: every rank."""
        assert self.best
        return self.placement.weights(self.best.weights)

    def write(
        self, folder: Path, weights: Tensors, *, classes: tuple[str, ...], record: dict[str, Any]
    ) -> None:
        """Export `best_weights` to `folder`, as timm reads them."""
        assert self.best
        write_model(
            folder,
            self.net,
            weights,
            classes=classes,
            view=self.view,
            record={
                "student": self.name,
                "model": self.spec.model,
                **first_weights(self.spec),
                **vars(self.best),
                **record,
            },
        )

    def recall_best(self, folder: Path) -> None:
        """Take for best what `write` left in `folder`; the files are the truth, since a kill may
        part them from any checkpoint.
        """
        kept = current_directory(folder)
        self.best = None
        if kept is not None:
            with suppress(
                OSError, ValueError, KeyError
            ):  # damaged: the next evaluation writes it anew
                record = read_record(kept)
                self.best = Best(record["top1"], record["step"], record["weights"])

    def state(self) -> tuple[dict[str, Tensors], dict[str, Any]]:
        """What a continuation needs: tensors by file, and plain values. A stopped student keeps
        only its record. Collective: every rank.
        """
        values: dict[str, Any] = {"stopped_at": self.stopped_at}
        if not self.running:
            return {}, values
        sums = self.engine.sum_(self.losses.sums.clone()).tolist()
        values["losses"] = {
            "sums": sums,
            "steps": self.losses.steps,
            "present": self.losses.present,
        }
        tensors, placed = self.placement.state()
        return tensors, {**values, **placed}

    def load(self, tensors: dict[str, Tensors], values: dict[str, Any]) -> None:
        """Take the state that `state` gave."""
        if values["stopped_at"] is not None:
            self.stop(values["stopped_at"])
            return
        self.placement.load(tensors, values)
        sums, steps, present = (values["losses"][key] for key in ("sums", "steps", "present"))
        self.losses = self._no_losses()
        if self.engine.is_main:  # they are the sums of all processes
            self.losses.sums[: len(sums)] += torch.tensor(sums, device=self.engine.device)
        self.losses.steps, self.losses.present = steps, tuple(present)
