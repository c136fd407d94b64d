"""The evaluations of a run: when one is due, what the last one found, and the best weights that are
kept.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from distill.checkpoint import Signals
from distill.engine import Engine
from distill.evaluation.accuracy import TEACHER, Accuracy
from distill.evaluation.sets import EvaluationSet, teacher_doubts
from distill.models.export_format import RAW
from distill.models.teacher import Teacher
from distill.models.view import Frame
from distill.student.student import Best, Student
from distill.training.logging import RunLogger
from distill.training.plan import Plan, StagePlan
from distill.training.rundir import best_dir


class Evaluations:
    """Evaluates teacher and students together on the plan's evaluation set.

    Attributes:
        accuracies: of each model at its last evaluation, by name.
        stage_ends: the accuracies at the end of each stage, by stage and model.
        last_step: the step of the last evaluation.
    """

    def __init__(
        self, plan: Plan, frame: Frame, engine: Engine, journal: RunLogger, teacher: Teacher | None
    ) -> None:
        self._plan, self._engine, self._journal, self._teacher = plan, engine, journal, teacher
        self.accuracies: dict[str, Accuracy] = {}
        self.stage_ends: dict[str, dict[str, Any]] = {}
        self.last_step = 0
        source = plan.eval_source
        self._set = EvaluationSet(source, frame, teacher, engine, plan.recipe) if source else None

    @property
    def possible(self) -> bool:
        """Whether there is an evaluation set."""
        return self._set is not None

    def open(self) -> AbstractContextManager[object]:
        """Return the context in which evaluations read their images."""
        return nullcontext() if self._set is None else self._set

    def connect(self, signals: Signals) -> None:
        """Let evaluations wait for their images as training does. Collective: every rank."""
        if self._set is not None:
            self._set.start(signals)

    def due(self, stage: StagePlan, step: int) -> bool:
        """Whether a step wants an evaluation and has not had it."""
        return self.possible and stage.due(stage.evaluate_every, step) and step > self.last_step

    def run(
        self,
        step: int,
        stage: StagePlan,
        students: Sequence[Student],
        check_stop: Callable[[], None],
    ) -> None:
        """Evaluate the teacher and the students, keep their best weights. Collective: every rank.

        Args:
            check_stop: called every few batches; what it raises abandons the evaluation.
        """
        assert self._set is not None
        judged = {}
        for student in students:
            student.average_statistics()
            student.net.eval()
            judged.update(student.evaluation_models())
        known = self.accuracies.get(TEACHER)
        self.accuracies |= self._set.evaluate(judged, known, check_stop)
        for doubt in (
            teacher_doubts(self._teacher, self.accuracies.get(TEACHER)) if known is None else ()
        ):
            self._journal.warn(doubt)
        self.last_step = step
        for student in students:
            student.net.train()
            if student.improved(self.accuracies, step):
                self._write_best(student)
        names = [*judged, *([TEACHER] if TEACHER in self.accuracies else [])]
        best = {student.name: student.best.top1 for student in students if student.best}
        self._journal.judged(step, {name: self.accuracies[name] for name in names}, best)
        if self._plan.recipe.stages and step == stage.last_step:
            self.stage_ends[stage.name] = {name: self.accuracies[name].as_dict() for name in judged}

    def keep_last(self, step: int, students: Sequence[Student]) -> None:
        """Keep the weights of the last step where there is no evaluation set. Collective: every
        rank.
        """
        for student in students:
            student.average_statistics()
            student.best = Best(None, step, RAW)
            self._write_best(student)

    def _write_best(self, student: Student) -> None:
        """Export what `student.best` names to the run's folder. Collective: every rank."""
        assert student.best
        recipe = self._plan.recipe
        judged = (
            student.name
            if student.best.weights == RAW
            else f"{student.name}/{student.best.weights}"
        )
        record = self.accuracies[judged].as_dict() if student.best.top1 is not None else {}
        weights = student.best_weights()
        self._engine.on_main(
            lambda: student.write(
                best_dir(self._plan.output, student.name),
                weights,
                classes=self._plan.classes,
                record={"run": recipe.name, **record},
            )
        )

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the evaluations."""
        accuracies = {name: accuracy.as_dict() for name, accuracy in self.accuracies.items()}
        stage_ends = {"stage_ends": self.stage_ends} if self._plan.recipe.stages else {}
        return {"judged_step": self.last_step, "accuracies": accuracies, **stage_ends}

    def load(self, values: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.last_step = values["judged_step"]
        self.accuracies = {
            name: Accuracy(**fields) for name, fields in values["accuracies"].items()
        }
        self.stage_ends = values["stage_ends"] if self._plan.recipe.stages else {}
