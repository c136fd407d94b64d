"""The plan of a run: a recipe on given data, as sources, orders, steps and intervals.

No device is used.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.classes import chosen_samples
from distill.data.label_sets import same_space
from distill.data.order.lanes import (
    LaneOrder,
    default_block,
    default_lanes,
)
from distill.data.order.shuffled import Order, TrainOrder
from distill.data.sources import Source
from distill.errors import InputError
from distill.recipe import DurationValue, Recipe, schema
from distill.recipe.warmups import fit_inherited_warmups
from distill.rng import hash64
from distill.training.hints import refuse_long_warmup
from distill.training.inputs import contents_of, labels_of, shards_of
from distill.training.opened import Opened, open_sources
from distill.training.settings import refuse_lanes, setting_problems
from distill.training.sources import Sources, classified, order_given

_MOST_STEPS = 10**10  # more than any run takes; step x batch stays far below 2^63


@dataclass(frozen=True)
class StagePlan:
    """A stage of a run on given data, in steps of the run. A run without stages has one of these.

    Attributes:
        key: the prefix of its keys in the recipe: "stages.NAME.", or nothing.
        recipe: the settings of this stage, without stages.
        labelled: its labels are classes of the run; else nothing reads them.
        first_step, last_step: the stage does the steps from the first up to, not including, the
            last.
        evaluate_every, checkpoint_every, log_every: intervals from `first_step` on, at least 1.
        publish_every: such an interval; None if the run publishes nothing.
    """

    name: str
    key: str
    recipe: Recipe
    source: Source
    labelled: bool
    order: TrainOrder
    first_step: int
    last_step: int
    evaluate_every: int
    checkpoint_every: int
    log_every: int
    publish_every: int | None

    def due(self, every: int, step: int) -> bool:
        """Whether an interval ends after `step` steps of the run. All intervals end with the
        stage.
        """
        return step == self.last_step or (
            step > self.first_step and (step - self.first_step) % every == 0
        )

    def num_due(self, every: int, step: int) -> int:
        """How many steps after `step` are `due`."""
        length, done = self.last_step - self.first_step, max(step - self.first_step, 0)
        return 0 if done >= length else length // every - done // every + bool(length % every)

    def inputs(self) -> dict[str, str | int]:
        """What its data are; a resumed run must have the same."""
        some_classes = self.recipe.data.keep_classes != "all"
        chosen = {"training images kept": self.order.num_samples} if some_classes else {}
        return {
            "training images": len(self.source),
            **labels_of(self.source),
            **self._contents,
            **chosen,
            **self._resolved(),
        }

    @cached_property
    def _contents(self) -> dict[str, str | int]:
        return contents_of(self.source, "training")

    def _resolved(self) -> dict[str, str | int]:
        """The numbers that give the order of a stream, whether the recipe names them or not."""
        if not isinstance(self.order, LaneOrder):
            return {}
        return {"data.train.lanes": self.order.lanes, "data.train.block": self.order.block}


@dataclass(frozen=True)
class Plan:
    """Sources and numbers of a run.

    Attributes:
        eval_labelled: the labels of the evaluation set are classes of the run; else nothing reads
            them.
        classes: of the logits of students and teacher, in order; none if all students are
            backbones.
        order_given: the recipe gives their order; else it follows from the names of folders or
            labels.
        notes: what was changed in the recipe to fit the data, a sentence each.
    """

    recipe: Recipe
    stages: tuple[StagePlan, ...]
    eval_source: Source | None
    eval_labelled: bool
    classes: tuple[str, ...]
    order_given: bool
    notes: tuple[str, ...] = ()

    def classes_of(self, student: str) -> tuple[str, ...]:
        """The classes of a student's logits; none of a backbone."""
        return () if self.recipe.trains_backbone(student) else self.classes

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.stages[-1].last_step

    @cached_property
    def trunk_step(self) -> int | None:
        """The number of steps before the first cool-down, none of which depends on the budget; None
        if a learning rate does.
        """
        schedules = [student.schedule for student in self.recipe.students.values()]
        if self.recipe.stages or any(each.name != "constant" for each in schedules):
            return None
        longest = max(
            each.cooldown.steps(
                steps_per_epoch=self.stages[0].order.steps_per_epoch,
                batch_size_global=self.recipe.train.batch_size_global,
            )
            for each in schedules
        )
        return self.total_steps - longest if 0 < longest < self.total_steps else None

    def stage_at(self, step: int) -> StagePlan:
        """The stage of the step after `step` steps; the last stage at the end."""
        return next((stage for stage in self.stages if step < stage.last_step), self.stages[-1])

    def pauses_left(self, step: int) -> dict[str, int]:
        """How often training will pause after `step`, by reason."""
        evaluations = sum(stage.num_due(stage.evaluate_every, step) for stage in self.stages)
        saves = sum(stage.num_due(stage.checkpoint_every, step) for stage in self.stages)
        return {"evaluating": evaluations if self.eval_source else 0, "saving": saves}

    def epochs(self, step: int) -> float:
        """Passes over the data after `step` steps, summed over the stages."""
        return sum(
            (min(step, stage.last_step) - stage.first_step) / stage.order.steps_per_epoch
            for stage in self.stages
            if step > stage.first_step
        )

    def inputs(self) -> dict[str, str | int]:
        """What the data are; a resumed run must have the same, also under another root or other
        paths of shards.
        """
        stages: dict[str, str | int] = {}
        for stage in self.stages:
            prefix = f"{stage.name}: " if self.recipe.stages else ""
            stages |= {f"{prefix}{key}": value for key, value in stage.inputs().items()}
        return {
            **stages,
            "evaluation images": len(self.eval_source) if self.eval_source else 0,
            **shards_of(self.eval_source, "evaluation"),
            **self._eval_contents,
            "classes (SHA-256)": hashlib.sha256("\n".join(self.classes).encode()).hexdigest(),
            "steps": self.total_steps,
        }

    @cached_property
    def _eval_contents(self) -> dict[str, str | int]:
        return contents_of(self.eval_source, "evaluation")

    def described_data(self) -> dict[str, Any]:
        """Where the images come from and how many there are, JSON-able."""
        root = Path(self.recipe.data.root).expanduser()
        train = [
            {
                **({"stage": stage.name} if self.recipe.stages else {}),
                **_described(stage.recipe.data.train, root),
                "images": len(stage.source),
                "images_used": stage.order.num_samples,
            }
            for stage in self.stages
        ]
        spec, source = self.recipe.data.eval, self.eval_source
        eval_data = {**_described(spec, root), "images": len(source)} if spec and source else None
        return {"train": train, "eval": eval_data, "num_classes": len(self.classes)}

    @property
    def output(self) -> Path:
        return Path(self.recipe.output_dir).expanduser()


def _described(spec: schema.SourceSpec | schema.HoldOutSpec, root: Path) -> dict[str, Any]:
    """The recipe's keys of a source; a local path is absolute."""
    keys = spec.model_dump(mode="json", exclude_none=True)
    if "path" in keys and "://" not in keys["path"]:
        keys["path"] = str((root / Path(keys["path"]).expanduser()).absolute())
    return keys


def make_plan(recipe: Recipe, opened: Opened | None = None) -> Plan:
    """Open the sources and turn every duration into steps.

    Args:
        opened: the sources, where they are open already.

    Raises:
        InputError: data that is missing or does not fit, with the key or path; settings that do not
            work here.
    """
    if problems := setting_problems(recipe):
        raise InputError("\n".join(problems))
    recipes = [recipe.at_stage(index) for index in range(recipe.num_stages)]
    opened = opened or open_sources(recipe)
    sources = classified(recipe, recipes, opened)
    stages: list[StagePlan] = []
    for index in range(recipe.num_stages):
        first_step = stages[-1].last_step if stages else 0
        stages.append(_plan_stage(recipe, index, sources, first_step))
        _refuse_long_warmups(stages[-1])
    ordered = order_given(recipe, recipes, sources)
    recipe, notes = fit_inherited_warmups(
        recipe,
        [stage.last_step - stage.first_step for stage in stages],
        [stage.order.steps_per_epoch for stage in stages],
    )
    if recipe.backbones:
        notes = [
            *notes,
            f"{', '.join(recipe.backbones)}: learns features alone and has no"
            " classifier, so nothing evaluates it: its weights of the last step are its best",
        ]
    return Plan(
        recipe,
        tuple(replace(stage, recipe=recipe.at_stage(i)) for i, stage in enumerate(stages)),
        sources.eval,
        sources.eval_labelled,
        sources.classes,
        ordered,
        notes=tuple(notes),
    )


def _plan_stage(recipe: Recipe, index: int, sources: Sources, first_step: int) -> StagePlan:
    """Return the index-th stage of a recipe."""
    key, own, source = recipe.stage_keys[index], recipe.at_stage(index), sources.train[index]
    subset = chosen_samples(
        source,
        sources.classes,
        fraction=own.data.fraction,
        keep=own.data.keep_classes,
        seed=recipe.seed,
        key=f"{key}data.train",
    )
    # Stages over the same data have different orders.
    seed = hash64(recipe.seed, "stage", index) if index else recipe.seed
    order = make_order(own, source, subset, seed, f"{key}data.train")

    def steps(duration: DurationValue) -> int:
        return duration.steps(
            steps_per_epoch=order.steps_per_epoch, batch_size_global=own.train.batch_size_global
        )

    budget, budget_key = own.train.budget, f"{key}budget" if key else "train.budget"
    assert budget
    num_steps = steps(budget)
    if num_steps < 1:
        raise InputError(
            f"{budget_key} {budget} comes to no step at all on {order.num_samples} images"
        )
    if num_steps > _MOST_STEPS:
        raise InputError(
            f"{budget_key} {budget} comes to {num_steps:,} steps on {order.num_samples} images;"
            f" should be at most {_MOST_STEPS:,}"
        )
    publish = own.log.publish
    return StagePlan(
        name=recipe.stages[index].name if recipe.stages else recipe.name,
        key=key,
        recipe=own,
        source=source,
        labelled=recipe.trains_classifiers and same_space(source.classes, sources.classes),
        order=order,
        first_step=first_step,
        last_step=first_step + num_steps,
        evaluate_every=max(1, steps(own.evaluate.every)),
        checkpoint_every=max(1, steps(own.checkpoint.every)),
        log_every=max(1, steps(own.log.every)),
        publish_every=None if publish is None else max(1, steps(publish.every)),
    )


def _refuse_long_warmups(stage: StagePlan) -> None:
    """Raises InputError for a hint whose weight is still in its warm-up when the stage ends."""
    num_epochs = (stage.last_step - stage.first_step) / stage.order.steps_per_epoch
    for name, student in stage.recipe.students.items():
        if hint := student.objective.hint:
            refuse_long_warmup(hint, num_epochs, f"{stage.key}students.{name}.objective.hint")


def make_order(
    recipe: Recipe, source: Source, subset: np.ndarray | None, seed: int, key: str
) -> TrainOrder:
    """The order of the samples in a stage: any order over records, lanes over the shards of a
    stream.

    Raises:
        InputError: the batch is larger than the data, or does not divide into the lanes.
    """
    size, repeats = recipe.train.batch_size_global, recipe.data.augment.repeats
    if not source.shards:
        return Order(len(source), size, seed, repeats, subset)
    spec = recipe.data.train
    assert isinstance(spec, schema.StreamSpec)
    micro = recipe.train.micro_batch_size
    lanes = spec.lanes or default_lanes(size, micro)
    refuse_lanes(lanes, size, micro, key)
    block = spec.block or default_block(source.shard_sizes, subset)
    return LaneOrder(
        source.shard_sizes, size, seed, lanes=lanes, block=block, repeats=repeats, subset=subset
    )
