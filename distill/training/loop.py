"""train(recipe): the phases of a run in order, and one step on one screen."""

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from distill.checkpoint.layout import METRICS_FILE
from distill.checkpoint.lock import FolderLock, refuse_locked
from distill.engine import Engine, check_launch
from distill.engine.agreement import BatchBarrier, StepFlags, StopRequestedError
from distill.engine.signals import Signals
from distill.evaluation.metric import METRICS
from distill.models.hub.download import pin_commits
from distill.models.student import first_weights
from distill.recipe import Recipe
from distill.student.student import Student
from distill.training import header
from distill.training.banks import described_banks
from distill.training.build import (
    Models,
    build_engine,
    build_models,
    refuse_other_commits,
    stage_settings,
    start_students,
    train_loader,
)
from distill.training.evaluations import Evaluations
from distill.training.hub_resume import resume_from_hub
from distill.training.logging import RunLogger, Trained
from distill.training.output_folder import refuse_foreign_output
from distill.training.plan import Plan, StagePlan, make_plan
from distill.training.publishing import Publisher
from distill.training.run_state import RunCheckpoints, recorded_commits
from distill.training.share import Share, share_of_process
from distill.training.streams import check_streams
from distill.training.summary import Summary
from distill.training.teachers import ask_teachers, place_teachers
from distill.training.trunk import start_from_trunk
from distill.training.verify_targets import start_targets

# Exit codes of a run; bad input is 2, anything else that goes wrong 1.
DONE = 0
ALL_STOPPED = 3
INTERRUPTED = 75  # EX_TEMPFAIL: stopped by a signal with its state saved; the same command resumes


def train(recipe: Recipe, trunk: Path | None = None) -> int:
    """Trains all students of a recipe, or resumes the run in its folder.

    Checkpoints, metrics.jsonl, report.json and the best weights are in `recipe.output_dir`.

    Args:
        recipe: from `load_recipe`.
        trunk: the folder of a run of a shorter budget, whose trunk is the start of this one.

    Returns:
        0 (done), 3 (every student stopped because its loss was not finite), or 75 (stopped by a
        signal with a checkpoint saved: the same call resumes).

    Raises:
        InputError: recipe, data, models or the environment do not fit; where possible, this raises
            before a device is used.
    """
    refuse_foreign_output(recipe)
    if os.environ.get("RANK", "0") == "0":  # at once, and not after data and models
        refuse_locked(Path(recipe.output_dir).expanduser())
    with Signals() as signals:  # from the start: a signal before the first step is answered there
        return _train(recipe, signals, trunk)


def _train(recipe: Recipe, signals: Signals, trunk: Path | None) -> int:
    num_processes = check_launch(
        dict(os.environ),
        precision=recipe.train.precision,
        zero_stage=recipe.train.zero_stage,
        zero_offload=recipe.train.zero_offload,
    )
    share = share_of_process(
        recipe.train.batch_size_global, recipe.train.micro_batch_size, num_processes
    )
    if found := resume_from_hub(recipe):
        header.show("resume", found)
    plan = make_plan(recipe)
    if trunk and (found := start_from_trunk(plan, trunk)):
        header.show("trunk", found)
    pin_commits(recorded_commits(plan))
    header.show_data(plan)
    header.show_all("bank", described_banks(plan.stages))
    check_streams(plan, num_processes, int(os.environ.get("LOCAL_WORLD_SIZE", num_processes)))
    models = build_models(plan)
    header.show_views(models.describe())
    engine = build_engine(plan)
    refuse_other_commits(engine)
    header.show("device", f"{engine.world_size} x {engine.device_name()}, {recipe.train.precision}")
    run_lock, failed = FolderLock(), True
    try:
        code = Run(plan, share, models, engine, run_lock).train(signals)
        failed = False
        return code
    finally:
        run_lock.release()
        engine.close(failed)


class Run:
    """A run in progress: its students, its stage and its step."""

    def __init__(
        self, plan: Plan, share: Share, models: Models, engine: Engine, run_lock: FolderLock
    ) -> None:
        """Start or resume. Collective: every rank."""
        recipe = plan.recipe
        self.plan, self.share, self.engine = plan, share, engine
        self._skipped_here = 0
        self._has_trained = False  # in this session
        compared = [name for name, teacher in models.teachers.items() if teacher.has_classes]
        self.logger = RunLogger(plan, engine, teachers=compared)
        self._targets = start_targets(models, plan, share, engine)
        self.teachers = place_teachers(models.teachers, engine, recipe.teacher_rows)
        for teacher in self.teachers.values():
            if teacher.match and teacher.match.how in ("numbers", "order"):
                self.logger.screen.say(teacher.match.describe())
        self._settings = stage_settings(models, plan, share, engine)
        self.students = start_students(models, plan, share, engine, self._settings[0])
        self._views, self._records = models.views, models.records
        self.evaluations = Evaluations(
            plan, models.frame, engine, self.logger, self.teachers, models.records
        )
        self.checkpoints = RunCheckpoints(
            plan,
            engine,
            self._settings,
            self.students,
            self.evaluations,
            self.logger,
            models,
        )
        # num_skipped: over all processes, up to the last log or save.
        self.step, self.num_skipped = self.checkpoints.restore(run_lock)
        publishes = recipe.log.publish is not None and engine.is_main
        self.publisher = Publisher(plan, self.logger) if publishes else None
        self.stage = plan.stage_at(max(self.step - 1, 0))  # at its end still this one
        if self.step == 0:
            self._announce_stage()

    @property
    def running(self) -> list[Student]:
        return [student for student in self.students if student.running]

    def train(self, signals: Signals) -> int:
        """Train to the end of the budget, or to a signal. Collective: every rank."""
        plan, logger = self.plan, self.logger
        if self.step >= plan.total_steps and not self._evaluation_due:
            logger.screen.say(f"{plan.output}: this run is complete; resume: never starts it again")
            return self._finish(signals)
        with ExitStack() as stack:
            stack.callback(logger.close)
            logger.open(plan.output / METRICS_FILE, self.step)
            stack.enter_context(self.evaluations.open())
            stack.enter_context(logger.screen)
            try:
                return self._train(StepFlags(self.engine, len(self.students)), signals)
            except StopRequestedError:  # the next session repeats the evaluation
                return self._interrupted(signals)
            except Exception as error:
                error.add_note(f"after step {self.step}")
                raise

    def _train(self, step_flags: StepFlags, signals: Signals) -> int:
        """Train the stages one after the other."""
        plan = self.plan
        self._has_trained = True
        self.logger.start(self.step, self.running)
        self.evaluations.connect(signals)

        def check_stop() -> None:
            if step_flags.agree_to_stop(self.step, signals.received is not None):
                raise StopRequestedError

        if self._evaluation_due:  # a signal ended the last session before it
            self._evaluate(check_stop)
            self._save()
        while self.step < plan.total_steps and self.running:
            if self.step == self.stage.last_step:
                self._enter(plan.stage_at(self.step))
            with train_loader(plan, self.stage, self.share, self.engine, self.step) as loader:
                may_wait = bool(self.stage.source.shards)
                barrier = BatchBarrier(loader, self.engine, signals, may_wait=may_wait)
                if self._loop(iter(loader), barrier, step_flags, signals, check_stop):
                    return self._interrupted(signals)
        return self._finish(signals)

    def _loop(
        self,
        batches: Any,
        barrier: BatchBarrier,
        step_flags: StepFlags,
        signals: Signals,
        check_stop: Callable[[], None],
    ) -> bool:
        """Train to the end of the stage. Returns True if all ranks agreed to stop before it."""
        stage = self.stage
        while self.step < stage.last_step and self.running:
            with self.logger.clock.waiting_for_data():
                opened = barrier.wait()
            if not opened:
                self._stop_students(step_flags.drain())
                return True
            self._step(batches, step_flags, signals)
            self.logger.stepped(self.step, self.running)
            if stage.due(stage.log_every, self.step):
                self._stop_students(step_flags.drain())
                self._record_losses()
            if step_flags.stop_agreed:
                self._stop_students(step_flags.drain())
                return True
            if self._evaluation_due:
                self._stop_students(step_flags.drain())
                self._evaluate(check_stop)
            if stage.due(stage.checkpoint_every, self.step) or self.step == self.plan.trunk_step:
                self._stop_students(step_flags.drain())
                self._save()
            if self.publisher and self.publisher.is_due(stage, self.step):
                self.publisher.push(self.step, self.students, self.checkpoints.newest_path)
        return False

    def _enter(self, stage: StagePlan) -> None:
        """Enter a stage, before its first step: a checkpoint at the boundary holds the state at the
        end of the previous stage.
        """
        self.stage = stage
        index = self.plan.stages.index(stage)
        spec = self.plan.recipe.stages[index]
        for student in self.running:
            student.enter(
                self._settings[index][student.name],
                new_optimizer=spec.optimizer == "reset",
                new_averages=spec.averages == "reset",
            )
        self._announce_stage()

    def _announce_stage(self) -> None:
        """Print the stage, if there are several. Collective: every rank."""
        stage = self.stage
        if self.plan.recipe.stages:
            space = (
                ""
                if stage.labelled
                else "; its labels are of another space, or none: nothing reads them"
            )
            self.logger.screen.say(
                f"stage {stage.name}: steps {stage.first_step} to {stage.last_step}{space}"
            )

    def _interrupted(self, signals: Signals) -> int:
        """Save, so that the same command resumes. Collective: every rank."""
        # Do not overwrite a checkpoint of this step: at a stage boundary it holds the state at the
        # end of the previous stage.
        newest = self.checkpoints.newest
        if self.step and (newest is None or newest[0] < self.step):
            self._save()
            newest = self.checkpoints.newest
        if self.publisher:
            self.publisher.stopped(self.step, self.students, self.checkpoints.newest_path)
        saved = f"saved in {newest[1]}" if newest else "nothing to save"
        self.logger.screen.say(
            f"{signals.received or 'a signal'}: stopped after step {self.step}, {saved}; the same"
            " command resumes the run"
        )
        return INTERRUPTED

    def _step(self, batches: Any, step_flags: StepFlags, signals: Signals) -> None:
        """One optimizer step of every running student, after one forward a micro-batch of each
        teacher that one of them reads.

        It waits for the device once a student under fp16 and ZeRO, where torch's GradScaler and
        DeepSpeed ask whether to skip the step; else never.
        """
        not_finite: dict[str, torch.Tensor] = {}
        objectives = [student.settings.objective for student in self.running]
        logged = self.stage.due(self.stage.log_every, self.step + 1)
        if logged and self.plan.recipe.log.gradient_norms:
            for student in self.running:
                student.measure_gradients()
        for _ in range(self.share.num_forwards):
            with self.logger.clock.waiting_for_data():
                batch = next(batches)
            self._skipped_here += batch.num_skipped
            lessons = ask_teachers(self.teachers, objectives, batch, self._targets)
            for student in self.running:
                bad = student.learn(batch, lessons)
                before = not_finite.get(student.name)
                not_finite[student.name] = bad if before is None else before | bad
        flags = [not_finite.get(student.name) for student in self.students]
        self._stop_students(step_flags.exchange(self.step + 1, flags, signals.received is not None))
        for student in self.running:
            student.update(self.step)
        self.step += 1

    def _stop_students(self, stopped: list[tuple[int, int]]) -> None:
        """Stop the students that the step flags name, (index, step) each."""
        for index, step in stopped:
            student = self.students[index]
            if student.running:
                student.stop(step)
                self.logger.screen.rows[student.name].note = f"stopped at step {step}"
                self.logger.warn(
                    f"{student.name}: the loss of step {step} is not finite; this student stops"
                    " here, the others continue. Lower"
                    f" {self.stage.key}students.{student.name}.optimizer.lr, or set clip_grad_norm"
                    " or another train.precision"
                )
                self.logger.record("stopped", step, {"student": student.name})

    @property
    def _evaluation_due(self) -> bool:
        """Whether an evaluation is due at this step and not done yet."""
        return bool(self.running) and self.evaluations.due(self.stage, self.step)

    def _count_skipped(self) -> None:
        """Add up the unreadable images of all processes. Collective: every rank."""
        self.num_skipped += int(
            self.engine.sum_(torch.tensor(self._skipped_here, device=self.engine.device))
        )
        self._skipped_here = 0

    def _record_losses(self) -> None:
        """Show and record the losses. Waits for the device. Collective: every rank."""
        self._count_skipped()
        stage = {"stage": self.stage.name} if self.plan.recipe.stages else {}
        self.logger.trained(
            self.step,
            {**stage, "epoch": self.plan.epochs(self.step), "num_skipped": self.num_skipped},
            {
                student.name: Trained(
                    student.take_losses(),
                    student.lr_at(self.step - 1),
                    student.take_gradient_norms(),
                )
                for student in self.running
            },
        )
        if self.publisher:
            self.publisher.warn_once()

    def _evaluate(self, check_stop: Callable[[], None]) -> None:
        """Evaluate at this step, until `check_stop` raises. Collective: every rank."""
        with self.logger.pausing("evaluating"):
            self.evaluations.run(self.step, self.stage, self.running, check_stop)

    def _finish(self, signals: Signals) -> int:
        """Write the report and show the final table. Collective: every rank."""
        self.evaluations.write_last(self.step, self.running)
        recipe, clock = self.plan.recipe, self.logger.clock
        summary = Summary(
            run=recipe.name,
            output=self.plan.output,
            steps=self.step,
            epochs=self.plan.epochs(self.step),
            seconds=clock.seconds,
            device_hours=clock.device_seconds / 3600,
            energy_j=self.logger.energy.joules(),
            num_processes=self.engine.world_size,
            device=self.engine.device_name(),
            num_skipped=self.num_skipped,
            stages=self.plan.stages if recipe.stages else (),
            stage_ends=self.evaluations.stage_ends,
            students=self.students,
            accuracies=self.evaluations.accuracies,
            metric=METRICS[recipe.evaluate.metric],
            views=self._views,
            origins=self._origins(),
            data=self.plan.described_data(),
            throughput=clock.throughput(recipe.train.batch_size_global),
            warnings=self.logger.warnings,
        )
        self.engine.on_main(lambda: summary.write(again=not self._has_trained))
        if self.engine.is_main:
            summary.show(self.logger.screen.console)
        if self.publisher:
            newest = self.checkpoints.newest_path
            self.publisher.push(self.step, self.students, newest, summary.as_dict())
            self.publisher.finish(signals)
        return DONE if self.running else ALL_STOPPED

    def _origins(self) -> dict[str, Mapping[str, str]]:
        """Where the weights of the teachers and the first weights of the students are from."""
        return {**self._records, **{each.name: first_weights(each.spec) for each in self.students}}

    def _save(self) -> None:
        """Write a checkpoint. Collective: every rank."""
        self._count_skipped()
        with self.logger.pausing("saving"):
            self.checkpoints.save(self.step, self.num_skipped)
