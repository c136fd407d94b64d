"""The `stages` section of a recipe: stages that follow each other, each with its own data, budget
and objectives.
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

# The keys of `data` and of a student that a stage may set. Models, batch size and evaluation are
# the same in all stages.
STAGE_DATA = ("train", "fraction", "keep_classes", "augment", "mixing", "unreadable")
STAGE_STUDENT = ("objective", "optimizer", "schedule")


class StageDataSpec(Section):
    """The data of a stage. Keys that a stage does not set are those of `data`; a stage with its own
    `train` does not inherit `fraction` and `keep_classes`.
    """

    train: SourceSpec
    """The training images."""
    fraction: Fraction = 1.0
    """The fraction of the training images of each class that is used."""
    keep_classes: Literal["all", "shared", "unshared"] = "all"
    """Which samples are used, as for `data.keep_classes`."""
    augment: AugmentSpec = AugmentSpec()
    """Augmentation of training images."""
    mixing: MixingSpec = MixingSpec()
    """Mixup and cutmix of training images."""
    unreadable: Literal["error", "skip"] = "error"
    """What happens if an image cannot be read, as for `data.unreadable`."""


class StageStudentSpec(Section):
    """How a student learns in a stage. In a file, `student` and `students` of a stage change those
    of the run.
    """

    objective: ObjectiveSpec
    """The losses that the student minimises in this stage."""
    optimizer: OptimizerSpec
    """The optimizer."""
    schedule: ScheduleSpec = ScheduleSpec()
    """The learning rate schedule."""


class StageSpec(Section):
    """One of several stages. A stage whose data has other classes than the run (ImageNet-21K before
    ImageNet-1K) can only use the soft loss.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=100)]
    """The name of the stage."""
    budget: Interval
    """The length of the stage."""
    optimizer: Literal["carry", "reset"] = "carry"
    """Whether the stage keeps the optimizer state of the previous stage or starts a new one."""
    averages: Literal["carry", "reset"] = "carry"
    """Whether the stage keeps the weight averages of the previous stage or starts new ones from the
    current weights.
    """
    data: StageDataSpec
    """Changes to `data` in this stage."""
    students: dict[str, StageStudentSpec]
    """Changes to students in this stage, by name."""


def stage_problems(
    stages: Sequence[StageSpec],
    students: Mapping[str, StudentSpec],
    zero_stage: int,
    batch_size_global: int,
) -> Iterator[str]:
    """Yields a message for each problem: a name that is used twice, a student that is missing in a
    stage, a setting that must not change between stages.
    """
    names = [stage.name for stage in stages]
    for name in names:
        if names.count(name) > 1:
            yield f"stages: two are named {name!r}: give each a different name"
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
    """A student's settings, with the learning rate scaled to a batch size."""
    return spec.model_copy(update={"optimizer": spec.optimizer.at_batch(batch_size_global)})


def _changes(
    key: str,
    name: str,
    stage: StageSpec,
    before: StageStudentSpec,
    now: StageStudentSpec,
    zero_stage: int,
) -> Iterator[str]:
    """Yields a message for each setting of a student that must not change between two stages."""
    if "run" in (before.schedule.over, now.schedule.over) and (
        before.schedule != now.schedule or before.optimizer.lr != now.optimizer.lr
    ):
        yield (
            f"{key}.students.{name}: schedule.over: run is one schedule for all stages, and this"
            " stage has another schedule or lr: set over: stage, or use the same in all stages"
        )
    objectives = now.objective, before.objective
    heads, heads_before = (
        (objective.hint and (objective.hint_teacher, objective.hint.heads))
        or (objective.masked and objective.masked.heads)
        for objective in objectives
    )
    if zero_stage and heads != heads_before:
        term = "masked" if any(objective.masked for objective in objectives) else "hint"
        yield (
            f"{key}.students.{name}.objective.{term}: trains other parts than the previous stage,"
            f" which is not possible with train.zero_stage {zero_stage}: use zero_stage: 0, or the"
            f" same {term} in all stages"
        )
    changed = [
        field
        for field in OptimizerSpec.model_fields
        if field != "lr" and getattr(before.optimizer, field) != getattr(now.optimizer, field)
    ]
    if changed and stage.optimizer == "carry":
        yield (
            f"{key}.students.{name}.optimizer.{changed[0]}: differs from the previous stage, whose"
            f" optimizer state is kept: set {key}.optimizer: reset, or use the same value (lr may"
            " change)"
        )
    if changed and zero_stage:
        yield (
            f"{key}.students.{name}.optimizer.{changed[0]}: differs from the previous stage, which"
            f" is not possible with train.zero_stage {zero_stage}: use zero_stage: 0, or the same"
            " value (lr may change)"
        )
