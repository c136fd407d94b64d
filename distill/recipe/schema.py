"""What a run is, complete and immutable. Every number that shapes the result stands here, none in the environment.

Numbers carry their unit or scope in their name; optional is `X | None`. What can be checked without data or models is
checked here; the rest (model names, files, label spaces) in `distill.check`.
"""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from distill.recipe.data import (
    Augment,
    Data,
    EvalSource,
    EvalView,
    FashionMnist,
    HoldOut,
    ImageFolder,
    Mixing,
    SavedDataset,
    Shards,
    Source,
    Stream,
    Table,
)
from distill.recipe.duration import DurationValue, Interval
from distill.recipe.learning import (
    BCE,
    BKL,
    CE,
    DIST,
    DKD,
    KL,
    BCETeacher,
    Ema,
    Hard,
    LrScaling,
    Objective,
    Optimizer,
    Schedule,
    Soft,
    Student,
    Teacher,
)
from distill.recipe.stages import STAGE_DATA, STAGE_STUDENT, Stage, StageStudent, stage_problems
from distill.recipe.values import Count, Names, Section, Seed, as_tuple

__all__ = [
    "BCE",
    "BKL",
    "CE",
    "DIST",
    "DKD",
    "KL",
    "Augment",
    "BCETeacher",
    "Checkpoint",
    "Data",
    "Ema",
    "EvalSource",
    "EvalView",
    "Evaluate",
    "FashionMnist",
    "Hard",
    "HoldOut",
    "ImageFolder",
    "Log",
    "LrScaling",
    "Mixing",
    "Objective",
    "Optimizer",
    "Recipe",
    "SavedDataset",
    "Schedule",
    "Shards",
    "Soft",
    "Source",
    "Stage",
    "Stream",
    "Student",
    "Table",
    "Teacher",
    "Train",
]

ELEMENTWISE_ARGS = (
    frozenset(  # timm's Lion divides by a mean over the tensor when it is cautious, so what is not known is refused
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
)
# They treat each weight by itself, so flat shards of layers are as good as layers. A test holds each to it.
ELEMENTWISE_OPTIMIZERS = ("adamw", "adam", "sgd", "momentum", "lion")


class Train(Section):
    """`budget` is left out where `stages` have their own.

    `batch_size_global` and `micro_batch_size` shape the result; the number of processes does not.

    `micro_batch_size`: the samples of one forward and backward. What looks at a batch as a whole (BatchNorm's statistics,
    DIST's relations) looks at exactly these, so 1 to batch_size_global / micro_batch_size processes compute the same run; each
    accumulates what its share needs. Null: every process takes its whole share at once, BatchNorm is synchronised and
    relations are gathered over the global batch.

    `zero_stage` and `zero_offload` say where weights, gradients and optimizer state lie, not what is computed: 0 is DDP, 1 shards
    the optimizer's state over processes, 2 gradients too, 3 weights too; offloading keeps what is sharded in host memory. One process
    alone shards nothing unless it offloads. A process
    that waits `timeout_s` for the others gives up, and the run ends.
    """

    budget: Interval | None = None
    batch_size_global: Annotated[int, Field(ge=2, multiple_of=2)]
    micro_batch_size: Annotated[int, Field(ge=2, multiple_of=2)] | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = True
    compile: bool = False
    zero_stage: Literal[0, 1, 2, 3] = 0
    zero_offload: bool = False
    timeout_s: Count = 600

    @model_validator(mode="after")
    def _zero(self) -> Self:
        if self.zero_offload and not self.zero_stage:
            raise ValueError("zero_offload: true goes with zero_stage 1, 2 or 3; under DDP nothing is sharded")
        if self.zero_stage and self.precision == "fp16":
            raise ValueError(
                f"precision: fp16 needs a loss scale of each student's own, which zero_stage {self.zero_stage} has no place for: use bf16, "
                "or zero_stage: 0"
            )
        if self.zero_stage and self.compile:
            raise ValueError("compile: true goes with zero_stage: 0; what DeepSpeed wraps is not compiled here")
        return self

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.micro_batch_size is not None and self.batch_size_global % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide batch_size_global {self.batch_size_global}"
            )
        return self


class Evaluate(Section):
    every: Interval = DurationValue(1, "epochs")
    batch_size_process: Count = 256


class Checkpoint(Section):
    every: Interval = DurationValue(1, "epochs")
    keep_last: Count = 2


class Log(Section):
    every: Interval = DurationValue(50, "iterations")
    trackers: Names = ()


class Recipe(Section):
    """A complete run. `student` holds what all `students` share; each student is merged over it when the file is read."""

    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    output: Annotated[str, Field(min_length=1)] | None = None
    seed: Seed = 0
    resume: Literal["auto", "never"] = "auto"
    data: Data
    teacher: Teacher | None = None
    students: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], Student], Field(min_length=1)
    ]
    stages: Annotated[tuple[Stage, ...], BeforeValidator(as_tuple)] = ()
    train: Train
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()

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
        """What stands before the keys of each stage: "stages.NAME."; of a run without stages, nothing once."""
        return tuple(f"stages.{stage.name}." for stage in self.stages) or ("",)

    def at_stage(self, index: int) -> "Recipe":
        """The recipe as it stands in one of its stages: that of a run which has no other, with learning rates scaled to the batch."""
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
        return self.model_copy(update={"data": data, "students": students, "train": train, "stages": ()})

    @model_validator(mode="after")
    def _names(self) -> Self:
        if "teacher" in self.students:
            raise ValueError('students.teacher: the name "teacher" is taken by the teacher: give the student another')
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.train.budget is None and not self.stages:
            raise ValueError("train.budget: missing, and it has no default")
        if self.train.budget is not None and self.stages:
            raise ValueError(
                "train.budget: each of stages has a budget of its own: leave this one out, or set it to null"
            )
        return self

    @model_validator(mode="after")
    def _stages(self) -> Self:
        for problem in stage_problems(self.stages, self.students, self.train.zero_stage, self.train.batch_size_global):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _held_out_of_a_stage(self) -> Self:
        if (
            isinstance(self.data.eval, HoldOut)
            and self.stages
            and self.data.train not in [stage.data.train for stage in self.stages]
        ):
            raise ValueError(
                "data.eval: kind: holdout takes a part of data.train, and no stage trains on data.train: give data.eval a source of its own"
            )
        return self

    @model_validator(mode="after")
    def _teacher_where_needed(self) -> Self:
        for key, student in self._settings():
            if self.teacher is None and student.objective.soft is not None:
                raise ValueError(
                    f"{key}.objective.soft learns from a teacher, and teacher is null: name a teacher, or set objective.soft to null"
                )
        return self

    def _settings(self) -> list[tuple[str, StageStudent]]:
        """How each student learns in each stage, with its key."""
        if not self.stages:
            return [
                (
                    f"students.{name}",
                    StageStudent(objective=spec.objective, optimizer=spec.optimizer, schedule=spec.schedule),
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
            if self.train.zero_stage and student.optimizer.name.lower() not in ELEMENTWISE_OPTIMIZERS:
                raise ValueError(
                    f"{key}.optimizer: {student.optimizer.name} looks at whole layers or is not known to look at single weights, and "
                    f"train.zero_stage {self.train.zero_stage} hands it flat shards, which makes it silently wrong (LAMB's trust ratio): use "
                    f"zero_stage: 0, or one of {', '.join(ELEMENTWISE_OPTIMIZERS)}"
                )
            if self.train.zero_stage and (odd := sorted(student.optimizer.args.keys() - ELEMENTWISE_ARGS)):
                raise ValueError(
                    f"{key}.optimizer.args.{odd[0]}: not known to treat each weight by itself, as train.zero_stage "
                    f"{self.train.zero_stage} needs: leave it out, or use zero_stage: 0"
                )
        return self
