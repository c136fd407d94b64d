"""The part of a recipe that says what comes after what: stages, each with its own data, budget and
objectives.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from distill.recipe.data import AugmentSpec, MixingSpec, SourceSpec
from distill.recipe.duration import Interval
from distill.recipe.learning import OptimizerSpec, ScheduleSpec, StudentSpec
from distill.recipe.objective import ObjectiveSpec
from distill.recipe.values import Fraction, Section

# What of `data` and of a student a stage may have of its own. Models, batch and evaluation are the
# run's.
STAGE_DATA = ("train", "fraction", "keep_classes", "augment", "mixing", "unreadable")
STAGE_STUDENT = ("objective", "optimizer", "schedule")


class StageDataSpec(Section):
    """What a stage trains on; in a file it is laid over `data`, whose fraction and keep_classes a
    stage with its own `train` leaves behind.
    """

    train: SourceSpec
    """The training images."""
    fraction: Fraction = 1.0
    """The part of each class's training images that is used."""
    keep_classes: Literal["all", "shared", "unshared"] = "all"
    """Which classes' samples are kept: as in `data`."""
    augment: AugmentSpec = AugmentSpec()
    """The training view of one image."""
    mixing: MixingSpec = MixingSpec()
    """What is mixed between images."""
    unreadable: Literal["error", "skip"] = "error"
    """What an unreadable image does."""


class StageStudentSpec(Section):
    """How a student learns in a stage; in a file, `student` and `students` of the stage are laid
    over the run's.
    """

    objective: ObjectiveSpec
    """What it learns from in this stage."""
    optimizer: OptimizerSpec
    """How its weights move."""
    schedule: ScheduleSpec = ScheduleSpec()
    """How its learning rate moves."""


class StageSpec(Section):
    """One of several stages. Where its data has classes of its own (ImageNet-21K before 1K), it
    teaches soft labels alone.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=100)]
    """What the stage is called."""
    budget: Interval
    """How long the stage trains."""
    optimizer: Literal["carry", "reset"] = "carry"
    """Whether it begins with the optimizer state of the stage before, or without the past."""
    averages: Literal["carry", "reset"] = "carry"
    """Whether it begins with the averages of the stage before, or with the weights as they are."""
    data: StageDataSpec
    """What it trains on, laid over `data`."""
    students: dict[str, StageStudentSpec]
    """Name -> how a student learns in this stage, laid over the run's."""


def stage_problems(
    stages: Sequence[StageSpec],
    students: Mapping[str, StudentSpec],
    zero_stage: int,
    batch_size_global: int,
) -> Iterator[str]:
    """What is wrong between stages: names given twice, students that one lacks, settings that
    cannot change on the way.
    """
    names = [stage.name for stage in stages]
    for name in names:
        if names.count(name) > 1:
            yield f"stages: two are named {name!r}: give each a name of its own"
    for stage in stages:
        for name in students:
            if name not in stage.students:
                yield (
                    f"stages.{stage.name}.students: {name!r} is missing: every student takes part"
                    " in every stage"
                )
    for name in students:
        learning = [
            (stage, _at_batch(stage.students[name], batch_size_global))
            for stage in stages
            if name in stage.students
        ]
        for (_, before), (stage, now) in pairwise(learning):
            yield from _changes(f"stages.{stage.name}", name, stage, before, now, zero_stage)


def _at_batch(spec: StageStudentSpec, batch_size_global: int) -> StageStudentSpec:
    """A student's settings with the learning rate that it has at this batch size."""
    return spec.model_copy(update={"optimizer": spec.optimizer.at_batch(batch_size_global)})


def _changes(
    key: str,
    name: str,
    stage: StageSpec,
    before: StageStudentSpec,
    now: StageStudentSpec,
    zero_stage: int,
) -> Iterator[str]:
    """What a student's settings may not do between two stages."""
    if "run" in (before.schedule.over, now.schedule.over) and (
        before.schedule != now.schedule or before.optimizer.lr != now.optimizer.lr
    ):
        yield (
            f"{key}.students.{name}: schedule.over: run is one schedule through all stages, and"
            " this stage has another schedule or lr: set over: stage, or give no stage its own"
        )
    changed = [
        field
        for field in OptimizerSpec.model_fields
        if field != "lr" and getattr(before.optimizer, field) != getattr(now.optimizer, field)
    ]
    if changed and stage.optimizer == "carry":
        yield (
            f"{key}.students.{name}.optimizer.{changed[0]}: another than in the stage before, whose"
            f" optimizer is carried on: set {key}.optimizer: reset, or leave it as it was (lr may"
            " change)"
        )
    if changed and zero_stage:
        yield (
            f"{key}.students.{name}.optimizer.{changed[0]}: another than in the stage before, which"
            f" train.zero_stage {zero_stage} cannot do: use zero_stage: 0, or leave it as it was"
            " (lr may change)"
        )
