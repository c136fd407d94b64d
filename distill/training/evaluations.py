"""The evaluations of a run: when one is due, its results, and the best weights."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from distill.checkpoint.layout import best_dir
from distill.engine import Engine
from distill.engine.signals import Signals
from distill.evaluation.accuracy import Accuracy, Model
from distill.evaluation.metric import METRICS
from distill.evaluation.sets import EvaluationSet, teacher_doubts
from distill.models.export_format import RAW
from distill.models.hub.derived import recorded_teachers
from distill.models.teacher import Teacher
from distill.models.view import Frame
from distill.student.student import Best, Student
from distill.training.logging import RunLogger
from distill.training.plan import Plan, StagePlan
from distill.training.teachers import references


class Evaluations:
    """Evaluates teacher and students together on the plan's evaluation set.

    Args:
        records: what is recorded of each teacher of the recipe, also if it is not built.

    Attributes:
        accuracies: of each model at its last evaluation, by name.
        stage_ends: the accuracies at the end of each stage, by stage and model.
        last_step: the step of the last evaluation.
    """

    def __init__(
        self,
        plan: Plan,
        frame: Frame,
        engine: Engine,
        logger: RunLogger,
        teachers: Mapping[str, Teacher],
        records: Mapping[str, Mapping[str, str]],
    ) -> None:
        self._plan, self._engine, self._logger, self._teachers = plan, engine, logger, teachers
        self._records = records
        self._metric = METRICS[plan.recipe.evaluate.metric]
        self.accuracies: dict[str, Accuracy] = {}
        self.stage_ends: dict[str, dict[str, Any]] = {}
        self.last_step = 0
        source = plan.eval_source
        having = {name: teacher for name, teacher in teachers.items() if teacher.has_classes}
        compared = references(plan.recipe, having)
        self._set = (
            EvaluationSet(source, frame, having, compared, engine, plan.recipe, plan.eval_labelled)
            if source
            else None
        )

    @property
    def possible(self) -> bool:
        """Whether there is an evaluation set."""
        return self._set is not None

    def open(self) -> AbstractContextManager[object]:
        """Return the context in which evaluations read their images."""
        return nullcontext() if self._set is None else self._set

    def connect(self, signals: Signals) -> None:
        """Answer signals while an evaluation waits for images. Collective: every rank."""
        if self._set is not None:
            self._set.start(signals)

    def due(self, stage: StagePlan, step: int) -> bool:
        """Whether an evaluation is due after `step` steps and not done yet."""
        return self.possible and stage.due(stage.evaluate_every, step) and step > self.last_step

    def run(
        self,
        step: int,
        stage: StagePlan,
        students: Sequence[Student],
        check_stop: Callable[[], None],
    ) -> None:
        """Evaluate teacher and students, and write their best weights; backbones are left out.
        Collective: every rank.

        Args:
            check_stop: called every few batches; if it raises, the evaluation ends there.
        """
        assert self._set is not None
        students = [student for student in students if not student.is_backbone]
        models: dict[str, Model] = {}
        for student in students:
            student.average_statistics()
            student.learner.eval()
            models.update(student.evaluation_models())
        known = {name: each for name, each in self.accuracies.items() if name in self._teachers}
        self.accuracies |= self._set.evaluate(models, known, check_stop)
        for name, teacher in self._teachers.items():
            if name not in known:
                for doubt in teacher_doubts(name, teacher, self.accuracies.get(name)):
                    self._logger.warn(doubt)
        self.last_step = step
        for student in students:
            student.learner.train()
            if student.improved(self.accuracies, step, self._metric):
                self._write_best(student)
        names = [*models, *(name for name in self._teachers if name in self.accuracies)]
        best = {student.name: student.best.value for student in students if student.best}
        self._logger.evaluated(step, {name: self.accuracies[name] for name in names}, best)
        if self._plan.recipe.stages and step == stage.last_step:
            self.stage_ends[stage.name] = {name: self.accuracies[name].as_dict() for name in models}

    def write_last(self, step: int, students: Sequence[Student]) -> None:
        """Write the weights of the last step as the best of what is not evaluated: backbones, and
        every student of a run without evaluation set. Collective: every rank.
        """
        for student in students:
            if self.possible and not student.is_backbone:
                continue
            student.average_statistics()
            student.best = Best(None, step, RAW, self._metric.name)
            self._write_best(student)

    def _write_best(self, student: Student) -> None:
        """Export the weights that `student.best` names. Collective: every rank."""
        assert student.best
        recipe = self._plan.recipe
        average = "" if student.best.weights == RAW else f"/{student.best.weights}"
        taught = {row: self._records[row] for row in recipe.teachers_of(student.name)}
        record = {}
        if student.best.value is not None:
            record = self.accuracies[f"{student.name}{average}"].as_dict()
        weights = student.best_weights()
        self._engine.on_main(
            lambda: student.write(
                best_dir(self._plan.output, student.name),
                weights,
                classes=self._plan.classes_of(student.name),
                record={"run": recipe.name, **recorded_teachers(taught), **record},
            )
        )
