"""The state of a run: saved in a checkpoint, and restored from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from distill.checkpoint.layout import best_dir, checkpoints_dir
from distill.checkpoint.lock import FolderLock
from distill.checkpoint.store import TrainState, load, load_newest, prune, save
from distill.engine import Engine
from distill.errors import InputError
from distill.evaluation.accuracy import Accuracy
from distill.models.hub.derived import recorded_teachers
from distill.models.hub.download import pinned_commits
from distill.recipe import dump_recipe, recipe_fingerprint
from distill.student.student import StageSettings, Student
from distill.training.build import Models
from distill.training.evaluations import Evaluations
from distill.training.logging import RunLogger
from distill.training.plan import Plan
from distill.training.rundir import open_run_folder
from distill.training.trunk import keep_trunk


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The JSON values of a run's checkpoint. The field names are the keys of state.json.

    Attributes:
        inputs: what data, their order and teacher are; a resumed run must have the same.
        seconds, device_seconds: wall time of the run, and wall time times processes.
        energy_j: joules of all GPUs; None if they were not measured from the start.
        training: what `Clock.training` returned; checkpoints of earlier versions lack it, and
            `warnings`, `views`, `teacher` and `teachers`.
        views: what each teacher and each student see.
        teacher: where its weights are from, and their licence, for exports of the checkpoint.
        teachers: the same of several teachers, by name.
        hub: the commit of each model of the Hub that the run reads, by its name in the recipe.
        evaluated_step: the step of the last evaluation; checkpoints of earlier versions call it
            `judged_step`.
        accuracies: of each model at the last evaluation.
        stage_ends: the accuracies at the end of each stage; None of a run without stages.
        students: what `Student.state` returned, less the tensors.
    """

    classes: list[str]
    inputs: dict[str, str | int]
    seconds: float
    device_seconds: float
    energy_j: float | None = None
    training: dict[str, float] | None = None
    warnings: list[str] = field(default_factory=list)
    num_skipped: int
    views: dict[str, dict[str, Any]] | None = None
    teacher: Mapping[str, Any] | None = None
    teachers: Mapping[str, Mapping[str, Any]] | None = None
    hub: dict[str, str] | None = None
    evaluated_step: int
    accuracies: dict[str, dict[str, Any]]
    stage_ends: dict[str, dict[str, Any]] | None = None
    students: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """The JSON values of a checkpoint."""
        return {key: value for key, value in vars(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The state that a checkpoint of this or an earlier version holds."""
        if "judged_step" in values:
            values = {**values, "evaluated_step": values["judged_step"]}
        keys = [key.name for key in fields(cls)]
        return cls(**{key: values[key] for key in keys if key in values})


def recorded_commits(plan: Plan) -> dict[str, str]:
    """The commits of the Hub that a run began with, which it keeps when it resumes; none if the run
    starts at step 0.
    """
    if plan.recipe.resume == "never":
        return {}
    try:
        newest = load_newest(checkpoints_dir(plan.output), verify=False)
        return RunState.from_dict(newest.values).hub or {}
    except (InputError, TypeError):  # no checkpoint, or a damaged one, which the resume reports
        return {}


@dataclass
class RunCheckpoints:
    """Saves and restores students, evaluations, clock and warnings of a run.

    Attributes:
        settings: for each stage, how each student learns in it.
        newest: the step and the path of the newest checkpoint; None before the first.
    """

    plan: Plan
    engine: Engine
    settings: Sequence[Mapping[str, StageSettings]]
    students: Sequence[Student]
    evaluations: Evaluations
    logger: RunLogger
    models: Models
    newest: tuple[int, str] | None = None

    @property
    def newest_path(self) -> Path | None:
        """The newest checkpoint."""
        return None if self.newest is None else Path(self.newest[1])

    def save(self, step: int, num_skipped: int) -> None:
        """Write a checkpoint after `step` steps, and delete old ones. Collective: every rank."""
        tensors: dict[str, Any] = {}
        student_values: dict[str, Any] = {}
        for student in self.students:
            student.average_statistics()
            student_tensors, student_values[student.name] = student.state()
            tensors |= {f"{student.name}.{key}": value for key, value in student_tensors.items()}
        recipe, clock, evaluations = self.plan.recipe, self.logger.clock, self.evaluations
        taught = recorded_teachers(self.models.records)
        state = RunState(
            classes=list(self.plan.classes),
            inputs=self._inputs() if self.engine.is_main else {},  # the main process writes
            seconds=clock.seconds,
            device_seconds=clock.device_seconds,
            energy_j=self.logger.energy.joules(),
            training=clock.training(),
            warnings=self.logger.warnings,
            num_skipped=num_skipped,
            views={name: view.as_dict() for name, view in self.models.views.items()},
            teacher=taught.get("teacher"),
            teachers=taught.get("teachers"),
            hub=pinned_commits() or None,
            evaluated_step=evaluations.last_step,
            accuracies={name: each.as_dict() for name, each in evaluations.accuracies.items()},
            stage_ends=evaluations.stage_ends if recipe.stages else None,
            students=student_values,
        )

        def write() -> str:
            root = checkpoints_dir(self.plan.output)
            path = save(
                root,
                TrainState(step, step * recipe.train.batch_size_global),
                tensors=tensors,
                values=state.to_dict(),
                recipe_text=dump_recipe(recipe),
                recipe_digest=recipe_fingerprint(recipe),
                world_size=self.engine.world_size,
            )
            prune(root, recipe.checkpoint.keep_last, newest=path)
            if step == self.plan.trunk_step:
                keep_trunk(self.plan.output, path)
            return str(path)

        self.newest = step, self.engine.on_main(write)

    def restore(self, run_lock: FolderLock) -> tuple[int, int]:
        """Lock the run's folder, and restore its newest intact checkpoint, if there is one.
        Collective: every rank.

        Returns:
            The steps done, and the unreadable images skipped in them.
        """
        plan, screen = self.plan, self.logger.screen
        path = self.engine.on_main(
            lambda: open_run_folder(plan.output, plan.recipe, run_lock, screen.say, self._inputs())
        )
        if path is None:
            return 0, 0
        checkpoint = load(path, verify=False)  # the main process has verified it
        state, step = RunState.from_dict(checkpoint.values), checkpoint.state.step
        self.newest = step, str(path)
        self.logger.clock.add_earlier(state.seconds, state.device_seconds, state.training)
        self.logger.energy.add_earlier(state.energy_j)
        self.logger.warnings += state.warnings
        self.evaluations.last_step = state.evaluated_step
        self.evaluations.accuracies = {
            name: Accuracy.from_dict(values) for name, values in state.accuracies.items()
        }
        self.evaluations.stage_ends = state.stage_ends or {}
        for student in self.students:
            # A stopped student stays in the stage in which it stopped.
            stage = plan.stage_at((state.students[student.name]["stopped_at"] or step) - 1)
            if stage is not plan.stages[0]:
                settings = self.settings[plan.stages.index(stage)][student.name]
                student.enter(settings, new_optimizer=True, new_averages=False)
            prefix = f"{student.name}."
            names = [name for name in checkpoint.tensor_names if name.startswith(prefix)]
            tensors = {name.removeprefix(prefix): checkpoint.tensors(name) for name in names}
            student.load(tensors, state.students[student.name])
            student.load_best(best_dir(plan.output, student.name))
            if not student.running:
                screen.rows[student.name].note = f"stopped at step {student.stopped_at}"
        best = {student.name: student.best.value for student in self.students if student.best}
        self.logger.show_accuracies(self.evaluations.accuracies, best)
        screen.say(f"resuming from {path}")
        return step, state.num_skipped

    def _inputs(self) -> dict[str, str | int]:
        models = self.models
        found = {f"{name} (SHA-256)": each["sha256"] for name, each in models.records.items()}
        if models.store is not None:
            found["targets (SHA-256)"] = models.store.fingerprint
        seen = {f"{name} sees": view.values for name, view in models.views.items()}
        return {**self.plan.inputs(), **found, **seen}
