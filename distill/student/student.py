"""A student: a model, its objective, optimizer, schedule and averages.

Several students learn in one run and share nothing but the batches and the teacher's outputs, so
each ends with the weights that it would have alone.
"""

from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from distill.data.loading.loader import Batch
from distill.engine import Engine
from distill.evaluation.accuracy import Accuracy, Model
from distill.evaluation.metric import Metric
from distill.losses.masked import MaskedTerm
from distill.losses.objective import Objective
from distill.losses.teachers import Lessons
from distill.models.batch_norm import StepStatistics, running_statistics, synchronise
from distill.models.drop_path import DropPathKeys
from distill.models.export_format import RAW, read_current_record, write_model
from distill.models.pixels import Pixels
from distill.models.student import first_weights
from distill.models.view import ModelView
from distill.recipe.schema import StudentSpec
from distill.rng import hash64, seeded
from distill.student import (
    Averages,
    BuildOptimizer,
    Partitioned,
    Placement,
    Replicated,
    Tensors,
)
from distill.student.learner import Learner, MaskedLearner
from distill.student.loss_sums import Losses

# The order of the sums in checkpoints that hold them as a list; the first ones end before "kept".
_OLD_LOSSES = ("total", "hard", "soft", "hint", "kept")


@dataclass
class Best:
    """The best evaluation so far.

    Attributes:
        value: of the metric; None without an evaluation set.
        step: of the evaluation.
        weights: those evaluated: RAW, or the name of an average.
        metric: the figure that is compared, by name.
    """

    value: float | None
    step: int
    weights: str
    metric: str = "top1"

    def as_dict(self) -> dict[str, Any]:
        """Return what records and reports hold; the value under the name of its metric."""
        return {
            self.metric: self.value,
            "step": self.step,
            "weights": self.weights,
            "metric": self.metric,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Return what a record of this or an earlier version holds."""
        metric = record.get("metric", "top1")
        return cls(record[metric], record["step"], record["weights"], metric)


@dataclass(frozen=True)
class StageSettings:
    """How a student learns in a stage."""

    spec: StudentSpec
    objective: Objective
    build_optimizer: BuildOptimizer


def _heads_key(settings: StageSettings) -> Hashable:
    term = settings.objective.with_heads
    return None if term is None else term.heads_key


@dataclass
class Student:
    """A model in training. `stopped_at` is the step, counted from 1, whose loss was not finite; a
    stopped student does nothing more.
    """

    name: str
    settings: StageSettings
    net: nn.Module
    view: ModelView
    lr_at: Callable[[int], float]
    engine: Engine
    micro_batch_size: int
    num_forwards: int
    group_size: int
    run_seed: int
    best: Best | None = None
    stopped_at: int | None = None

    def __post_init__(self) -> None:
        """Place the model, build its optimizer and its averages. Collective: every rank."""
        self.net = self._synchronised(self.net)
        self.num_parameters = sum(parameter.numel() for parameter in self.net.parameters())
        self._drop_path = DropPathKeys(self.net)
        self._drop_key = hash64(self.run_seed, "drop path", self.spec.seed)
        # Once: averages and optimizers hold the model's tensors, and a second move could copy them.
        pixels = Pixels(self.view.mean, self.view.std)
        self.engine.place(Learner(self.net, pixels), partitioned=self.engine.partitioned)
        self._pixels = pixels
        self.learner = self._new_learner()
        averages = Averages(self.spec.ema.decays, self.spec.ema.warmup)
        self.averages = tuple(averages.by_name())
        clip = self.spec.optimizer.clip_grad_norm
        self.placement: Placement
        if self.engine.partitioned:
            self.placement = Partitioned(
                self.learner,
                self.settings.build_optimizer,
                self.engine,
                clip_grad_norm=clip,
                averages=averages,
                micro_batch_size=self.micro_batch_size,
                num_forwards=self.num_forwards,
            )
        else:
            self.placement = Replicated(
                self.learner,
                self.settings.build_optimizer,
                self.engine,
                clip_grad_norm=clip,
                averages=averages,
            )
        self._statistics = self._new_statistics()
        self._forwards_done = 0
        self._measuring = False
        self._gradient_norms: dict[str, torch.Tensor] = {}
        self.losses = self._no_losses()

    def _synchronised(self, module: nn.Module) -> nn.Module:
        """Return the module with BatchNorm over the statistics group."""
        if self.group_size == 1:
            return module
        group = self.engine.statistics_group(self.group_size)
        return synchronise(module, self.engine.device, group)

    def _new_learner(self) -> Learner:
        """Return the model with new heads, in train mode, on the device. The first weights of heads
        are a pure function of the seeds.
        """
        term = self.settings.objective.with_heads
        if term is None:
            learner = Learner(self.net, self._pixels)
        else:
            with seeded(hash64(self.run_seed, "heads", self.spec.seed)):
                heads = term.build_heads()
            self._synchronised(heads)
            self.engine.place(heads, partitioned=self.engine.partitioned)
            learner = (
                MaskedLearner(self.net, self._pixels, heads)
                if isinstance(term, MaskedTerm)
                else Learner(self.net, self._pixels, heads, term.student_features)
            )
        count = sum(parameter.numel() for parameter in learner.trained_parameters().values())
        self.num_head_parameters = count - self.num_parameters
        return learner.train()

    def _new_statistics(self) -> StepStatistics | None:
        return StepStatistics(self.learner) if self.num_forwards > 1 else None

    @property
    def spec(self) -> StudentSpec:
        """The student's part of the recipe, in this stage."""
        return self.settings.spec

    @property
    def is_backbone(self) -> bool:
        """Whether it has no classifier, so that it is not evaluated."""
        return self.spec.objective.trains_backbone

    def enter(self, settings: StageSettings, *, new_optimizer: bool, new_averages: bool) -> None:
        """Begin a stage. Optimizer state and averages start again, or continue; so do heads, if the
        stage before had the same. Collective: every rank.
        """
        before, self.settings = self.settings, settings
        new_heads = _heads_key(before) != _heads_key(settings)
        if new_heads:
            self.learner = self._new_learner()
            self._statistics = self._new_statistics()
        self.placement.restart(
            settings.build_optimizer,
            settings.spec.optimizer.clip_grad_norm,
            new_optimizer=new_optimizer,
            new_averages=new_averages,
            learner=self.learner if new_heads else None,
        )

    def _no_losses(self) -> Losses:
        return Losses(torch.zeros(len(Losses.NAMES), device=self.engine.device))

    @property
    def running(self) -> bool:
        """Whether the student still learns."""
        return self.stopped_at is None

    def measure_gradients(self) -> None:
        """Measure the norms of the next step's gradients, for `take_gradient_norms`."""
        self._measuring = True

    def learn(self, batch: Batch, lessons: Lessons) -> torch.Tensor:
        """Run forward and backward of one micro-batch; gradients add up until `update`. Collective
        on the last micro-batch of a step, and on the first one if gradients are measured.

        Returns:
            bool scalar on the device: the loss was not finite, or the gradients of the previous
            step were not.
        """
        if self._statistics and self._forwards_done == 0:
            self._statistics.before_step()
        self._forwards_done += 1
        more_to_come = self._forwards_done < self.num_forwards
        rank_slice = batch.micro * self.engine.world_size + self.engine.rank
        self.engine.seed_forward(
            hash64(self.run_seed, "forward", self.spec.seed, batch.step, rank_slice)
        )
        self._drop_path.set(self._drop_key, batch.positions)
        with self.placement.accumulating(more_to_come):
            objective = self.settings.objective
            teacher = objective.read(lessons)
            given = objective.given(teacher, batch)
            outputs = self.placement.forward(batch.images, given)
            terms = objective(outputs, teacher, batch, self.learner.heads)
            if self._measuring and self._forwards_done == 1:
                weighted = objective.weighted(terms)
                self._gradient_norms = self.placement.term_norms(weighted, self.group_size)
            self.placement.backward(terms.total / self.num_forwards, more_to_come)
        if self._statistics:
            self._statistics.after_forward(more_to_come)
        self.losses.add(terms, 1 / (self.num_forwards * self.engine.world_size))
        return ~torch.isfinite(terms.total.detach()) | self.placement.failed

    def update(self, step: int) -> None:
        """Take one optimizer step at this step's learning rate."""
        norm = self.placement.step(self.lr_at(step), measured=self._measuring)
        if norm is not None:
            self._gradient_norms = {"total": norm, **self._gradient_norms}
        self._measuring = False
        if self._statistics:
            self._statistics.after_step(self.num_forwards)
        if self.learner.heads is not None:
            self.learner.heads.after_step()
        self._forwards_done = 0
        self.losses.steps += 1
        self.placement.update_averages()

    def stop(self, step: int) -> None:
        """Stop learning, and free the memory."""
        self.stopped_at = step
        self.placement.clear()

    def take_losses(self) -> dict[str, float]:
        """Return the mean loss terms since the last call, over all processes. Waits for the device.
        Collective: every rank.
        """
        losses, self.losses = self.losses, self._no_losses()
        if not losses.steps:
            return {}
        sums = self.engine.sum_(losses.sums).tolist()
        return {
            name: value / losses.steps
            for name, value in zip(Losses.NAMES, sums, strict=True)
            if name in losses.present
        }

    def take_gradient_norms(self) -> dict[str, float]:
        """Return the norms of the gradients of the step that was measured last, on this process:
        in total, then of each loss term. Waits for the device.
        """
        norms, self._gradient_norms = self._gradient_norms, {}
        return {name: float(norm) for name, norm in norms.items()}

    # ---- evaluated and saved ---------------------------------------------------------------------

    def average_statistics(self) -> None:
        """Average BatchNorm's running statistics of model, heads and weight averages over the
        processes. Collective: every rank.
        """
        if self.group_size < self.engine.world_size:
            running = {id(buffer) for buffer in running_statistics(self.net)}
            names = [name for name, buffer in self.net.named_buffers() if id(buffer) in running]
            of_net = [buffers[name] for buffers in self.placement.statistics() for name in names]
            heads = self.learner.heads
            self.engine.average_(of_net + (running_statistics(heads) if heads else []))

    def evaluation_models(self) -> dict[str, Model]:
        """Return the models that an evaluation runs: the weights under the student's name, each
        average under "name/ema-0.999". Collective: every rank.
        """
        models = self.placement.evaluation_models()
        return {self._model_name(which): model for which, model in models.items()}

    def _model_name(self, which: str) -> str:
        return self.name if which == RAW else f"{self.name}/{which}"

    def improved(self, accuracies: Mapping[str, Accuracy], step: int, metric: Metric) -> bool:
        """Return whether an evaluation found better weights than all before; `best` then names
        them.

        Weights whose loss is not finite are never the best: they predict the first class for every
        image.
        """
        names = [self._model_name(which) for which in (RAW, *self.averages)]
        scores = {name: metric.of(accuracies[name]) for name in names if accuracies[name].finite}
        name = metric.best_of(scores)
        if name is None:
            return False
        value = scores[name]
        assert value is not None
        if not metric.better(value, self.best.value if self.best else None):
            return False
        self.best = Best(value, step, name.partition("/")[2] or RAW, metric.name)
        return True

    def best_weights(self) -> Tensors:
        """Return the state dict of the timm model that `best` names. Collective: every rank."""
        assert self.best
        return self.placement.weights(self.best.weights)

    def write(
        self, folder: Path, weights: Tensors, *, classes: tuple[str, ...], record: dict[str, Any]
    ) -> None:
        """Export `best_weights` to `folder` in timm's format."""
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
                **self.best.as_dict(),
                **record,
            },
        )

    def load_best(self, folder: Path) -> None:
        """Set `best` from the files that `write` left in `folder`. A checkpoint does not say it: a
        run that is killed may have written one and not the other.
        """
        self.best = None
        # Files that are damaged are written again by the next evaluation.
        with suppress(OSError, ValueError, KeyError):
            if record := read_current_record(folder):
                self.best = Best.from_dict(record)

    def state(self) -> tuple[dict[str, Tensors], dict[str, Any]]:
        """Return what a resumed run needs: tensors by file, and plain values. A stopped student has
        no tensors. Collective: every rank.
        """
        values: dict[str, Any] = {"stopped_at": self.stopped_at}
        if not self.running:
            return {}, values
        sums = self.engine.sum_(self.losses.sums.clone()).tolist()
        values["losses"] = {
            "sums": dict(zip(Losses.NAMES, sums, strict=True)),
            "steps": self.losses.steps,
            "present": self.losses.present,
        }
        tensors, placed = self.placement.state()
        return tensors, {**values, **placed}

    def load(self, tensors: dict[str, Tensors], values: dict[str, Any]) -> None:
        """Load what `state` returned."""
        if values["stopped_at"] is not None:
            self.stop(values["stopped_at"])
            return
        self.placement.load(tensors, values)
        sums, steps, present = (values["losses"][key] for key in ("sums", "steps", "present"))
        if isinstance(sums, list):
            sums = dict(zip(_OLD_LOSSES, sums, strict=False))
        self.losses = self._no_losses()
        if self.engine.is_main:  # they are the sums of all processes
            in_order = [sums.get(name, 0.0) for name in Losses.NAMES]
            self.losses.sums += torch.tensor(in_order, device=self.engine.device)
        self.losses.steps, self.losses.present = steps, tuple(present)
