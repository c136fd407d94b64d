"""What a run is, complete and immutable. Every number that shapes the result stands here, none in
the environment.

Numbers carry their unit or scope in their name; optional is `X | None`. What can be checked without
data or models is checked here; the rest (model names, files, label spaces) in `distill.training.check`.
"""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from distill.recipe.data import (
    AugmentSpec,
    DataSpec,
    EvalSourceSpec,
    EvalViewSpec,
    FashionMnistSpec,
    HoldOutSpec,
    ImageFolderSpec,
    MixingSpec,
    SavedDatasetSpec,
    ShardsSpec,
    SourceSpec,
    StreamSpec,
    TableSpec,
)
from distill.recipe.learning import (
    EmaSpec,
    LrScalingSpec,
    OptimizerSpec,
    ScheduleSpec,
    StudentSpec,
    TeacherSpec,
)
from distill.recipe.objective import (
    BCESpec,
    BCETeacherSpec,
    BKLSpec,
    CESpec,
    DISTSpec,
    DKDSpec,
    HardSpec,
    KLSpec,
    ObjectiveSpec,
    SoftSpec,
)
from distill.recipe.stages import (
    STAGE_DATA,
    STAGE_STUDENT,
    StageSpec,
    StageStudentSpec,
    stage_problems,
)
from distill.recipe.training import CheckpointSpec, EvaluateSpec, LogSpec, TrainSpec
from distill.recipe.values import Section, Seed, as_tuple

__all__ = [
    "AugmentSpec",
    "BCESpec",
    "BCETeacherSpec",
    "BKLSpec",
    "CESpec",
    "CheckpointSpec",
    "DISTSpec",
    "DKDSpec",
    "DataSpec",
    "EmaSpec",
    "EvalSourceSpec",
    "EvalViewSpec",
    "EvaluateSpec",
    "FashionMnistSpec",
    "HardSpec",
    "HoldOutSpec",
    "ImageFolderSpec",
    "KLSpec",
    "LogSpec",
    "LrScalingSpec",
    "MixingSpec",
    "ObjectiveSpec",
    "OptimizerSpec",
    "Recipe",
    "SavedDatasetSpec",
    "ScheduleSpec",
    "ShardsSpec",
    "SoftSpec",
    "SourceSpec",
    "StageSpec",
    "StreamSpec",
    "StudentSpec",
    "TableSpec",
    "TeacherSpec",
    "TrainSpec",
]

# timm's Lion divides by a mean over the tensor when it is cautious, so what is not known is refused
ELEMENTWISE_ARGS = frozenset(
    {
        "betas",
        "eps",
        "amsgrad",
        "nesterov",
        "dampening",
        "maximize",
        "foreach",
        "fused",
        "layer_decay",
        "layer_decay_min_scale",
    }
)
# They treat each weight by itself, so flat shards of layers are as good as layers. A test holds
# each to it.
ELEMENTWISE_OPTIMIZERS = ("adamw", "adam", "sgd", "momentum", "lion")


class Recipe(Section):
    """A complete run. `student` holds what all `students` share; each student is merged over it
    when the file is read.
    """

    name: Annotated[str, Field(min_length=1)]
    """What the run is called; left out, the name of the file."""
    description: str = ""
    """A sentence for people."""
    output: Annotated[str, Field(min_length=1)] | None = None
    """The folder of the run; null is runs/NAME."""
    seed: Seed = 0
    """Of order, augmentation and mixing, and with a student's own seed of its weights."""
    resume: Literal["auto", "never"] = "auto"
    """Whether a run resumes from the newest whole checkpoint in its folder, or moves the earlier
    run aside.
    """
    data: DataSpec
    """Which images, and how they are seen."""
    teacher: TeacherSpec | None = None
    """Whom the students learn from; null where they learn from labels alone."""
    students: Annotated[
        dict[
            Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)],
            StudentSpec,
        ],
        Field(min_length=1, max_length=1000),
    ]
    """Name -> what each student has of its own, laid over `student`; null leaves a student out."""
    stages: Annotated[tuple[StageSpec, ...], BeforeValidator(as_tuple), Field(max_length=100)] = ()
    """Stages that follow each other, each laid over the run; none is a run of one."""
    train: TrainSpec
    """How long, in which batches."""
    evaluate: EvaluateSpec = EvaluateSpec()
    """When students are evaluated."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    """When the whole state is saved."""
    log: LogSpec = LogSpec()
    """When losses are written down."""

    @property
    def output_dir(self) -> str:
        return self.output or f"runs/{self.name}"

    @property
    def num_stages(self) -> int:
        return max(1, len(self.stages))

    @property
    def budgets(self) -> str:
        """How long it trains, for people."""
        if not self.stages:
            return str(self.train.budget)
        return " + ".join(f"{stage.budget} of {stage.name}" for stage in self.stages)

    @property
    def stage_keys(self) -> tuple[str, ...]:
        """What stands before the keys of each stage: "stages.NAME."; of a run without stages,
        nothing once.
        """
        return tuple(f"stages.{stage.name}." for stage in self.stages) or ("",)

    def at_stage(self, index: int) -> "Recipe":
        """The recipe as it stands in one of its stages: that of a run which has no other, with
        learning rates scaled to the batch.
        """
        learning = self.stages[index].students if self.stages else self.students
        keys = STAGE_STUDENT if self.stages else ()
        students = {}
        for name, student in self.students.items():
            own = {key: getattr(learning[name], key) for key in keys}
            own["optimizer"] = learning[name].optimizer.at_batch(self.train.batch_size_global)
            students[name] = student.model_copy(update=own)
        if not self.stages:
            return self.model_copy(update={"students": students})
        stage = self.stages[index]
        data = self.data.model_copy(update={key: getattr(stage.data, key) for key in STAGE_DATA})
        train = self.train.model_copy(update={"budget": stage.budget})
        return self.model_copy(
            update={"data": data, "students": students, "train": train, "stages": ()}
        )

    @model_validator(mode="after")
    def _names(self) -> Self:
        if "teacher" in self.students:
            raise ValueError(
                'students.teacher: the name "teacher" is taken by the teacher: give the student'
                " another"
            )
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.train.budget is None and not self.stages:
            raise ValueError("train.budget: missing, and it has no default")
        if self.train.budget is not None and self.stages:
            raise ValueError(
                "train.budget: each of stages has a budget of its own: leave this one out, or set"
                " it to null"
            )
        return self

    @model_validator(mode="after")
    def _stages(self) -> Self:
        for problem in stage_problems(
            self.stages, self.students, self.train.zero_stage, self.train.batch_size_global
        ):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _held_out_of_a_stage(self) -> Self:
        if (
            isinstance(self.data.eval, HoldOutSpec)
            and self.stages
            and self.data.train not in [stage.data.train for stage in self.stages]
        ):
            raise ValueError(
                "data.eval: kind: holdout takes a part of data.train, and no stage trains on"
                " data.train: give data.eval a source of its own"
            )
        return self

    @model_validator(mode="after")
    def _teacher_where_needed(self) -> Self:
        for key, student in self._settings():
            if self.teacher is None and student.objective.soft is not None:
                raise ValueError(
                    f"{key}.objective.soft learns from a teacher, and teacher is null: name a"
                    " teacher, or set objective.soft to null"
                )
        return self

    def _settings(self) -> list[tuple[str, StageStudentSpec]]:
        """How each student learns in each stage, with its key."""
        if not self.stages:
            return [
                (
                    f"students.{name}",
                    StageStudentSpec(
                        objective=spec.objective, optimizer=spec.optimizer, schedule=spec.schedule
                    ),
                )
                for name, spec in self.students.items()
            ]
        return [
            (f"stages.{stage.name}.students.{name}", spec)
            for stage in self.stages
            for name, spec in stage.students.items()
        ]

    @model_validator(mode="after")
    def _elementwise_under_zero(self) -> Self:
        for key, student in self._settings():
            if (
                self.train.zero_stage
                and student.optimizer.name.lower() not in ELEMENTWISE_OPTIMIZERS
            ):
                raise ValueError(
                    f"{key}.optimizer: {student.optimizer.name} looks at whole layers or is not"
                    " known to look at single weights, and train.zero_stage"
                    f" {self.train.zero_stage} hands it flat shards, which makes it silently wrong"
                    " (LAMB's trust ratio): use zero_stage: 0, or one of"
                    f" {', '.join(ELEMENTWISE_OPTIMIZERS)}"
                )
            if self.train.zero_stage and (
                odd := sorted(student.optimizer.args.keys() - ELEMENTWISE_ARGS)
            ):
                raise ValueError(
                    f"{key}.optimizer.args.{odd[0]}: not known to treat each weight by itself, as"
                    f" train.zero_stage {self.train.zero_stage} needs: leave it out, or use"
                    " zero_stage: 0"
                )
        return self
