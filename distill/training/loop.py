"""train(recipe): the acts in order, and one step on one screen."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from distill.checkpoint import Signals
from distill.engine import (
    Engine,
    check_launch,
)
from distill.engine.agreement import BatchBarrier, StepFlags, StopRequestedError
from distill.recipe import Recipe
from distill.student.student import Student
from distill.training import header
from distill.training.build import (
    Models,
    build_engine,
    build_models,
    place_teacher,
    stage_settings,
    start_students,
    train_loader,
)
from distill.training.evaluations import Evaluations
from distill.training.logging import RunLogger
from distill.training.output_folder import refuse_foreign_output
from distill.training.plan import Plan, StagePlan, make_plan
from distill.training.run_state import load_student, save_run
from distill.training.rundir import METRICS_FILE, RunLock, begin, reopen
from distill.training.share import Share, share_of_process
from distill.training.streams import check_streams
from distill.training.summary import Summary

# Exit codes of a run; bad input is 2, anything else that goes wrong 1.
DONE = 0
ALL_STOPPED = 3
INTERRUPTED = 75  # EX_TEMPFAIL: stopped by a signal with its state saved; the same command goes on


def train(recipe: Recipe) -> int:
    """Run a recipe to its end, or to a signal. Returns the exit code.

    Raises:
        InputError: anything wrong with recipe, data, models or the environment, before a device is
            taken where it can be known.
    """
    refuse_foreign_output(recipe)
    with Signals() as signals:  # from the start: one during it is answered at the first step
        return _train(recipe, signals)


def _train(recipe: Recipe, signals: Signals) -> int:
    num_processes = check_launch(
        dict(os.environ),
        precision=recipe.train.precision,
        zero_stage=recipe.train.zero_stage,
        zero_offload=recipe.train.zero_offload,
    )
    share = share_of_process(
        recipe.train.batch_size_global, recipe.train.micro_batch_size, num_processes
    )
    plan = make_plan(recipe)
    header.show_data(plan)
    check_streams(plan, num_processes, int(os.environ.get("LOCAL_WORLD_SIZE", num_processes)))
    models = build_models(plan)
    header.show_views(models.describe())
    engine = build_engine(plan)
    header.show("device", f"{engine.world_size} x {engine.device_name()}, {recipe.train.precision}")
    claim, failed = RunLock(), True
    try:
        code = Run(plan, share, models, engine, claim).go(signals)
        failed = False
        return code
    finally:
        claim.release()
        engine.close(failed)


class Run:
    """A run in progress: its students, the stage it is in, and where it stands."""

    def __init__(
        self, plan: Plan, share: Share, models: Models, engine: Engine, claim: RunLock
    ) -> None:
        """Start or go on. Collective: every rank."""
        recipe = plan.recipe
        self.plan, self.share, self.engine = plan, share, engine
        self.step = 0
        self.stage = plan.stages[0]  # whose steps these are; at a stage's end still that one
        self.num_skipped = 0  # over all processes, up to the last log or save
        self._skipped_here = 0
        self._sat = False  # this sitting has trained
        # The newest checkpoint: its step, and its path.
        self._saved: tuple[int, str] | None = None
        self.journal = RunLogger(plan, engine)
        placing = (
            recipe.teacher.model_dump(include={"placement", "offload"}) if recipe.teacher else {}
        )
        self.teacher = place_teacher(models.teacher, engine, **placing)
        if self.teacher and self.teacher.match and self.teacher.match.how in ("numbers", "order"):
            self.journal.screen.say(self.teacher.match.describe())
        self.students = start_students(models, plan, share, engine)
        self._views = models.views
        self.evaluations = Evaluations(plan, models.frame, engine, self.journal, self.teacher)
        self._resume(claim)

    @property
    def running(self) -> list[Student]:
        return [student for student in self.students if student.running]

    def go(self, signals: Signals) -> int:
        """Train to the end of the budget, or to a signal. Collective: every rank."""
        plan, journal = self.plan, self.journal
        if self.step >= plan.total_steps and not self._evaluation_due:
            journal.screen.say(
                f"{plan.output}: this run is complete; resume: never starts it again"
            )
            return self._finish()
        with ExitStack() as stack:
            stack.callback(journal.close)
            journal.open(plan.output / METRICS_FILE, self.step)
            stack.enter_context(self.evaluations.open())
            stack.enter_context(journal.screen)
            try:
                return self._train(StepFlags(self.engine, len(self.students)), signals)
            except StopRequestedError:  # and repeated by the next sitting
                return self._interrupted(signals)
            except Exception as error:
                error.add_note(f"after step {self.step}")
                raise

    def _train(self, step_flags: StepFlags, signals: Signals) -> int:
        """Stage after stage."""
        plan = self.plan
        self._sat = True
        self.journal.go(self.step, self.running)
        self.evaluations.connect(signals)

        def check_stop() -> None:
            if step_flags.agree_to_stop(self.step, signals.received is not None):
                raise StopRequestedError

        if self._evaluation_due:  # the signal that ended the last sitting came before its end
            self._evaluate(check_stop)
            self._save()
        while self.step < plan.total_steps and self.running:
            if self.step == self.stage.last_step:
                self._enter(plan.stage_at(self.step))
            with train_loader(plan, self.stage, self.share, self.engine, self.step) as loader:
                barrier = BatchBarrier(
                    loader,
                    self.engine,
                    signals,
                    may_wait=bool(self.stage.source.shards),
                )
                if self._loop(iter(loader), barrier, step_flags, signals, check_stop):
                    return self._interrupted(signals)
        return self._finish()

    def _loop(
        self,
        batches: Any,
        barrier: BatchBarrier,
        step_flags: StepFlags,
        signals: Signals,
        check_stop: Callable[[], None],
    ) -> bool:
        """To the end of the stage; True when all agreed to stop before it."""
        stage = self.stage
        while self.step < stage.last_step and self.running:
            with self.journal.clock.waiting_for_data():
                opened = barrier.wait()
            if not opened:
                self._stop_students(step_flags.drain())
                return True
            self._step(batches, step_flags, signals)
            self.journal.stepped(self.step, self.running)
            if stage.due(stage.log_every, self.step):
                self._stop_students(step_flags.drain())
                self._log()
            if step_flags.stop_agreed:
                self._stop_students(step_flags.drain())
                return True
            if self._evaluation_due:
                self._stop_students(step_flags.drain())
                self._evaluate(check_stop)
            if stage.due(stage.checkpoint_every, self.step):
                self._stop_students(step_flags.drain())
                self._save()
        return False

    def _enter(self, stage: StagePlan) -> None:
        """Go over to a stage, before its first step: a checkpoint at the border holds what the
        stage before left.
        """
        self.stage = stage
        index = self.plan.stages.index(stage)
        spec = self.plan.recipe.stages[index]
        for student in self.running:
            student.enter(
                stage_settings(stage, student.name, self.share, self.engine),
                new_optimizer=spec.optimizer == "reset",
                new_averages=spec.averages == "reset",
            )
        self._record_stage()

    def _record_stage(self) -> None:
        """Say which stage it is, where there are several. Collective: every rank."""
        stage = self.stage
        if self.plan.recipe.stages:
            space = (
                ""
                if stage.labelled
                else "; its labels are of another space, or none: nothing reads them"
            )
            self.journal.screen.say(
                f"stage {stage.name}: steps {stage.first_step} to {stage.last_step}{space}"
            )

    def _interrupted(self, signals: Signals) -> int:
        """Save for the same command to go on. Collective: every rank."""
        # Once for a step: what was saved at a border is what the stage before left.
        if self.step and (self._saved is None or self._saved[0] < self.step):
            self._save()
        saved = f"saved in {self._saved[1]}" if self._saved else "nothing to save"
        self.journal.screen.say(
            f"{signals.received or 'a signal'}: stopped after step {self.step}, {saved}; the same"
            " command goes on"
        )
        return INTERRUPTED

    def _step(self, batches: Any, step_flags: StepFlags, signals: Signals) -> None:
        """One optimizer step of every running student, behind one teacher forward a micro-batch.

        No wait for the device, but once a student under fp16 and ZeRO: torch's GradScaler and
        DeepSpeed ask whether to skip its step.
        """
        not_finite: dict[str, torch.Tensor] = {}
        needs_teacher = any(student.spec.objective.soft for student in self.running)
        for _ in range(self.share.num_forwards):
            with self.journal.clock.waiting_for_data():
                batch = next(batches)
            self._skipped_here += batch.num_skipped
            teacher_logits = self.teacher(batch.images) if self.teacher and needs_teacher else None
            for student in self.running:
                bad = student.learn(batch, teacher_logits)
                not_finite[student.name] = (
                    not_finite[student.name] | bad if student.name in not_finite else bad
                )
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
                self.journal.screen.rows[student.name].note = f"stopped at step {step}"
                self.journal.warn(
                    f"{student.name}: the loss of step {step} is not finite; this student stops"
                    " here, the others go on. Lower"
                    f" {self.stage.key}students.{student.name}.optimizer.lr, or set clip_grad_norm"
                    " or another train.precision"
                )
                self.journal.record("stopped", step, {"student": student.name})

    def _inputs(self) -> dict[str, str | int]:
        """What data and teacher came to: a continuation must have the same."""
        teacher = {"teacher (SHA-256)": self.teacher.fingerprint} if self.teacher else {}
        seen = {f"{name} sees": view.values for name, view in self._views.items()}
        return {**self.plan.inputs(), **teacher, **seen}

    @property
    def _evaluation_due(self) -> bool:
        """Whether the step that the run stands at wants an evaluation and has not had it."""
        return bool(self.running) and self.evaluations.due(self.stage, self.step)

    # ---- log, judge, save ------------------------------------------------------------------------

    def _count_skipped(self) -> None:
        """Add the unreadable images of all processes. Collective: every rank."""
        self.num_skipped += int(
            self.engine.sum_(torch.tensor(self._skipped_here, device=self.engine.device))
        )
        self._skipped_here = 0

    def _log(self) -> None:
        """Fetch losses, show and record them. Collective: every rank. Waits for the device."""
        self._count_skipped()
        stage = {"stage": self.stage.name} if self.plan.recipe.stages else {}
        self.journal.trained(
            self.step,
            {**stage, "epoch": self.plan.epochs(self.step), "num_skipped": self.num_skipped},
            {
                student.name: (student.take_losses(), student.lr_at(self.step - 1))
                for student in self.running
            },
        )

    def _evaluate(self, check_stop: Callable[[], None]) -> None:
        """Evaluate at this step. `check_stop` may abandon it. Collective: every rank."""
        with self.journal.pausing("evaluating"):
            self.evaluations.run(self.step, self.stage, self.running, check_stop)

    def _finish(self) -> int:
        """Write the report and show the final table. Collective: every rank."""
        if not self.evaluations.possible:
            self.evaluations.keep_last(self.step, self.running)
        recipe, clock = self.plan.recipe, self.journal.clock
        summary = Summary(
            run=recipe.name,
            output=self.plan.output,
            steps=self.step,
            epochs=self.plan.epochs(self.step),
            seconds=clock.seconds,
            device_hours=clock.device_seconds / 3600,
            num_processes=self.engine.world_size,
            device=self.engine.device_name(),
            num_skipped=self.num_skipped,
            stages=self.plan.stages if recipe.stages else (),
            stage_ends=self.evaluations.stage_ends,
            students=self.students,
            accuracies=self.evaluations.accuracies,
            views=self._views,
            data=self.plan.described_data(),
            throughput=clock.throughput(recipe.train.batch_size_global),
            warnings=self.journal.warnings,
        )
        self.engine.on_main(lambda: summary.write(again=not self._sat))
        if self.engine.is_main:
            summary.show(self.journal.screen.console)
        return DONE if self.running else ALL_STOPPED

    def _save(self) -> None:
        """Write a checkpoint and let old ones go. Collective: every rank."""
        self._count_skipped()
        clock = self.journal.clock
        values = {
            "classes": list(self.plan.classes),
            "inputs": self._inputs() if self.engine.is_main else {},  # the main process writes
            "seconds": clock.seconds,
            "device_seconds": clock.device_seconds,
            "training": clock.training(),
            "warnings": self.journal.warnings,
            "num_skipped": self.num_skipped,
            "views": {name: view.as_dict() for name, view in self._views.items()},
            **self.evaluations.state(),
        }
        with self.journal.pausing("saving"):
            self._saved = (
                self.step,
                save_run(self.plan, self.step, values, self.students, self.engine),
            )

    def _resume(self, claim: RunLock) -> None:
        """Go on from the newest whole checkpoint, if there is one. Collective: every rank."""
        journal = self.journal
        plan = self.plan
        path = self.engine.on_main(
            lambda: begin(plan.output, plan.recipe, claim, journal.screen.say, self._inputs())
        )
        if path is None:
            self._record_stage()
            return
        checkpoint = reopen(path)
        self.step = checkpoint.state.step
        self.stage = self.plan.stage_at(self.step - 1)
        self._saved = self.step, str(path)
        values = checkpoint.values
        journal.clock.add_earlier(
            values["seconds"], values["device_seconds"], values.get("training")
        )
        journal.warnings += values.get(
            "warnings", []
        )  # checkpoints of earlier versions have neither
        self.num_skipped = values["num_skipped"]
        self.evaluations.load(values)
        for student in self.students:
            if self.stage is not self.plan.stages[0]:
                settings = stage_settings(self.stage, student.name, self.share, self.engine)
                student.enter(settings, new_optimizer=True, new_averages=False)
            load_student(student, checkpoint, self.plan.output)
            if not student.running:
                journal.screen.rows[student.name].note = f"stopped at step {student.stopped_at}"
        best = {student.name: student.best.top1 for student in self.students if student.best}
        journal.show_accuracies(self.evaluations.accuracies, best)
        journal.screen.say(f"going on from {path}")
