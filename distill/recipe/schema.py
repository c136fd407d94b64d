"""The recipe: the complete, immutable description of a run. Every number that changes the result
is here, and none in the environment.

Names of numbers contain their unit or scope; optional values are `X | None`. This module checks
what can be checked without data and models; `distill.training.check` checks the rest (model names,
files, classes).
"""

from typing import Annotated, Self

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
    Pipeline,
    SavedDatasetSpec,
    ShardsSpec,
    SourceSpec,
    StreamSpec,
    TableSpec,
)
from distill.recipe.elementwise import elementwise_problems
from distill.recipe.hints import (
    CCSpec,
    CRDSpec,
    FeatureSpec,
    FitNetSpec,
    HintSpec,
    ReviewKDSpec,
    RKDSpec,
)
from distill.recipe.hub_names import Resume
from distill.recipe.learning import (
    EmaSpec,
    LrScalingSpec,
    OptimizerSpec,
    ScheduleSpec,
    StudentSpec,
    TeacherSpec,
)
from distill.recipe.masked import FCMAESpec
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
from distill.recipe.targets import target_problems
from distill.recipe.teachers import TEACHER, choice_problems, row_name, teachers_read
from distill.recipe.training import CheckpointSpec, EvaluateSpec, LogSpec, PublishSpec, TrainSpec
from distill.recipe.values import Section, Seed, as_tuple

__all__ = [
    "AugmentSpec",
    "BCESpec",
    "BCETeacherSpec",
    "BKLSpec",
    "CCSpec",
    "CESpec",
    "CRDSpec",
    "CheckpointSpec",
    "DISTSpec",
    "DKDSpec",
    "DataSpec",
    "EmaSpec",
    "EvalSourceSpec",
    "EvalViewSpec",
    "EvaluateSpec",
    "FCMAESpec",
    "FashionMnistSpec",
    "FeatureSpec",
    "FitNetSpec",
    "HardSpec",
    "HintSpec",
    "HoldOutSpec",
    "ImageFolderSpec",
    "KLSpec",
    "LogSpec",
    "LrScalingSpec",
    "MixingSpec",
    "ObjectiveSpec",
    "OptimizerSpec",
    "Pipeline",
    "PublishSpec",
    "RKDSpec",
    "Recipe",
    "ReviewKDSpec",
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


class Recipe(Section):
    """A complete run. In a file, `student` contains what all `students` have in common."""

    name: Annotated[str, Field(min_length=1)]
    """The name of the run. Default: the name of the file."""
    description: str = ""
    """A sentence that describes the run."""
    output: Annotated[str, Field(min_length=1)] | None = None
    """The folder of the run; null: runs/NAME."""
    seed: Seed = 0
    """Seed of data order, augmentation and mixing; together with `student.seed` also of the initial
    weights.
    """
    resume: Resume = "auto"
    """auto: resume from the newest complete checkpoint in the folder of the run. never: rename the
    folder of an earlier run and start again. hf://OWNER/NAME: as auto, and if the folder has no
    checkpoint, resume from the one that a run published there (log.publish.checkpoint).
    """
    data: DataSpec
    """The images, and how they are preprocessed."""
    teacher: TeacherSpec | None = None
    """The model that students learn from; null: they learn only from labels, or from `teachers`."""
    teachers: Annotated[
        dict[
            Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)],
            TeacherSpec,
        ]
        | None,
        Field(min_length=1, max_length=100),
    ] = None
    """Several models to learn from, by name, instead of `teacher`, each with the keys of `teacher`;
    each student reads them as its objective says; null instead of a mapping removes an inherited
    one.
    """
    targets: Annotated[str, Field(min_length=1)] | None = None
    """The folder of stored outputs of `teacher`, from which the run learns without building the
    teacher; `distill targets` writes it; null: the teacher runs in each step.
    """
    students: Annotated[
        dict[
            Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)],
            StudentSpec,
        ],
        Field(min_length=1, max_length=1000),
    ]
    """The students by name, each with its changes to `student`; null instead of a mapping removes
    an inherited student.
    """
    stages: Annotated[tuple[StageSpec, ...], BeforeValidator(as_tuple), Field(max_length=100)] = ()
    """Stages that follow each other, each with its changes to the run."""
    train: TrainSpec
    """Budget, batches and precision."""
    evaluate: EvaluateSpec = EvaluateSpec()
    """When students are evaluated."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    """When the state of the run is saved."""
    log: LogSpec = LogSpec()
    """When and where losses are logged."""

    @property
    def output_dir(self) -> str:
        return self.output or f"runs/{self.name}"

    @property
    def teacher_rows(self) -> dict[str, TeacherSpec]:
        """The teachers by what tables and records call them: "teacher", or "teacher/NAME"."""
        if self.teachers:
            return {row_name(name): spec for name, spec in self.teachers.items()}
        return {} if self.teacher is None else {TEACHER: self.teacher}

    @property
    def live_teachers(self) -> dict[str, TeacherSpec]:
        """Those of `teacher_rows` that the run builds and runs: none with stored targets."""
        return {} if self.targets is not None else self.teacher_rows

    def teachers_of(self, student: str) -> tuple[str, ...]:
        """The teachers that a student learns from, in some stage."""
        rows = tuple(self.teacher_rows)
        stages = [self.at_stage(index) for index in range(self.num_stages)]
        read = {
            row for own in stages for row in teachers_read(own.students[student].objective, rows)
        }
        return tuple(row for row in rows if row in read)

    @property
    def num_stages(self) -> int:
        return max(1, len(self.stages))

    @property
    def budgets(self) -> str:
        """The budget of the run, or of each stage, as text."""
        if not self.stages:
            return str(self.train.budget)
        return " + ".join(f"{stage.budget} of {stage.name}" for stage in self.stages)

    @property
    def stage_keys(self) -> tuple[str, ...]:
        """The prefix of the keys of each stage: "stages.NAME."; one empty prefix without stages."""
        return tuple(f"stages.{stage.name}." for stage in self.stages) or ("",)

    def learns_from_teacher(self, student: str) -> bool:
        """Whether a loss of a student compares it with a teacher, in some stage."""
        return bool(self.teachers_of(student))

    def trains_backbone(self, student: str) -> bool:
        """Whether a student learns features or pixels alone: a backbone without classifier."""
        return self.at_stage(0).students[student].objective.trains_backbone

    @property
    def backbones(self) -> tuple[str, ...]:
        """The students that learn features or pixels alone."""
        return tuple(name for name in self.students if self.trains_backbone(name))

    @property
    def trains_classifiers(self) -> bool:
        """Whether a student has a classifier; else the run has no classes, and no evaluation."""
        return len(self.backbones) < len(self.students)

    def at_stage(self, index: int) -> "Recipe":
        """The recipe of one stage, as a recipe without stages, with learning rates scaled to the
        batch size.
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
    def _names_are_free(self) -> Self:
        if "teacher" in self.students:
            raise ValueError(
                'students.teacher: the name "teacher" belongs to the teacher: give the student'
                " another name"
            )
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.train.budget is None and not self.stages:
            raise ValueError("train.budget: missing, and it has no default")
        if self.train.budget is not None and self.stages:
            raise ValueError(
                "train.budget: each of stages has its own budget: remove train.budget or set it to"
                " null"
            )
        return self

    @model_validator(mode="after")
    def _stages_fit_together(self) -> Self:
        for problem in stage_problems(
            self.stages, self.students, self.train.zero_stage, self.train.batch_size_global
        ):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _streams_do_not_repeat(self) -> Self:
        trained = [self.at_stage(index).data.train for index in range(self.num_stages)]
        if self.data.distinct_epochs and any(isinstance(each, StreamSpec) for each in trained):
            raise ValueError(
                "data.distinct_epochs: epochs of folders, tables and saved data sets can repeat,"
                " and data.train is kind: stream: set it to null, or give another source"
            )
        return self

    @model_validator(mode="after")
    def _a_backbone_stays_one(self) -> Self:
        for key, student in self._settings():
            name = key.rpartition(".")[2]
            if student.objective.trains_backbone != self.trains_backbone(name):
                raise ValueError(
                    f"{key}.objective: learns features alone in one stage and not in another, and a"
                    " backbone has no classifier: give objective.hard or objective.soft in all"
                    " stages, or train the backbone in a run of its own, whose export"
                    " student.weights of the next run names"
                )
        return self

    @model_validator(mode="after")
    def _a_stage_holds_out_images(self) -> Self:
        if (
            isinstance(self.data.eval, HoldOutSpec)
            and self.stages
            and self.data.train not in [stage.data.train for stage in self.stages]
        ):
            raise ValueError(
                "data.eval: kind: holdout takes a part of data.train, and no stage trains on"
                " data.train: give data.eval its own source"
            )
        return self

    @model_validator(mode="after")
    def _teacher_or_teachers(self) -> Self:
        if self.teacher is not None and self.teachers is not None:
            raise ValueError(
                "teacher and teachers: give one of them, and set the other to null if it is"
                " inherited"
            )
        return self

    @model_validator(mode="after")
    def _losses_have_their_teacher(self) -> Self:
        for key, student in self._settings():
            for problem in choice_problems(f"{key}.objective", student.objective, self.teachers):
                raise ValueError(problem)
            for term in student.objective.teacher_terms if not self.teacher_rows else ():
                raise ValueError(
                    f"{key}.objective.{term} learns from a teacher, and teacher is null: name a"
                    f" teacher, or set objective.{term} to null"
                )
        return self

    @model_validator(mode="after")
    def _rkd_has_triples(self) -> Self:
        size = self.train.micro_batch_size or self.train.batch_size_global
        for key, student in self._settings():
            if size < 3 and isinstance(student.objective.hint, RKDSpec):
                name = "micro_batch_size" if self.train.micro_batch_size else "batch_size_global"
                raise ValueError(
                    f"train.{name}: {size}, and {key}.objective.hint rkd relates at least 3 samples"
                    " of a micro-batch to each other: raise it"
                )
        return self

    @model_validator(mode="after")
    def _the_metric_has_its_teacher(self) -> Self:
        if not self.teacher_rows and not self.evaluate.reads_labels:
            raise ValueError(
                f"evaluate.metric: {self.evaluate.metric} compares with a teacher, and teacher is"
                " null: name a teacher, or use top1, top5 or loss"
            )
        return self

    @model_validator(mode="after")
    def _targets_are_possible(self) -> Self:
        for problem in target_problems(self):
            raise ValueError(problem)
        return self

    def _settings(self) -> list[tuple[str, StageStudentSpec]]:
        """The settings of each student in each stage, with their keys."""
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
        for key, student in self._settings() if self.train.zero_stage else ():
            for problem in elementwise_problems(
                f"{key}.optimizer", student.optimizer, self.train.zero_stage
            ):
                raise ValueError(problem)
        return self
