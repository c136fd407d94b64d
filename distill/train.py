"""train(recipe): the acts in order, and one step on one screen."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from distill.build import Models, build_models, place_teacher, setting_of, start_students, train_loader
from distill.checkpoint import Signals
from distill.data.stream.source import StreamSource
from distill.dealing import check_streams
from distill.engine import Engine, check_rendezvous, launched_processes, refuse_contradictions
from distill.evaluate import TEACHER, Accuracy, EvaluationAbandoned
from distill.evaluation_views import EvaluationSet, teacher_doubts
from distill.gate import Gate
from distill.journal import Journal
from distill.output_folder import refuse_foreign_output
from distill.plan import Plan, Share, StagePlan, make_plan, share_of_process
from distill.recipe import Recipe
from distill.rundir import METRICS_FILE, Claim, begin, best_dir, reopen
from distill.saving import load_student, save_run
from distill.students import Best, Student
from distill.summary import Summary
from distill.verdicts import Verdicts

# Exit codes of a run; bad input is 2, anything else that goes wrong 1.
DONE = 0
ALL_STOPPED = 3
INTERRUPTED = 75  # EX_TEMPFAIL: stopped by a signal with its state saved; the same command goes on


def train(recipe: Recipe) -> int:
    """Run a recipe to its end, or to a signal. Returns the exit code.

    Raises:
        InputError: anything wrong with recipe, data, models or the environment, before a device is taken where it can be known.
    """
    refuse_foreign_output(recipe)
    with Signals() as signals:  # from the start: one during it is answered at the first step
        return _train(recipe, signals)


def _train(recipe: Recipe, signals: Signals) -> int:
    refuse_contradictions(
        dict(os.environ),
        precision=recipe.train.precision,
        zero_stage=recipe.train.zero_stage,
        zero_offload=recipe.train.zero_offload,
    )
    num_processes = launched_processes(dict(os.environ))
    share = share_of_process(recipe.train.batch_size_global, recipe.train.micro_batch_size, num_processes)
    check_rendezvous(dict(os.environ))
    plan = make_plan(recipe)
    check_streams(plan, num_processes, int(os.environ.get("LOCAL_WORLD_SIZE", num_processes)))
    models = build_models(plan)
    engine = Engine(
        precision=recipe.train.precision,
        zero_stage=recipe.train.zero_stage,
        zero_offload=recipe.train.zero_offload,
        channels_last=recipe.train.channels_last,
        compile=recipe.train.compile,
        trackers=recipe.log.trackers,
        directory=plan.output,
        timeout_s=recipe.train.timeout_s,
    )
    claim, failed = Claim(), True
    try:
        code = Run(plan, share, models, engine, claim).go(signals)
        failed = False
        return code
    finally:
        claim.release()
        engine.close(failed)


class Run:
    """A run in progress: its students, the stage it is in, and where it stands."""

    def __init__(self, plan: Plan, share: Share, models: Models, engine: Engine, claim: Claim) -> None:
        """Start or go on. Collective: every rank."""
        recipe = plan.recipe
        self.plan, self.share, self.engine = plan, share, engine
        self.step = 0
        self.stage = plan.stages[0]  # whose steps these are; at a stage's end still that one
        self.num_skipped = 0  # over all processes, up to the last log or save
        self._skipped_here = 0
        self._sat = False  # this sitting has trained
        self._judged_step = 0
        self._saved: tuple[int, str] | None = None  # the newest checkpoint: its step, and where it is
        self.accuracies: dict[str, Accuracy] = {}
        self.stage_ends: dict[str, dict[str, Any]] = {}  # accuracies at the end of each stage
        self.journal = Journal(recipe, plan.total_steps, engine)
        placing = recipe.teacher.model_dump(include={"placement", "offload"}) if recipe.teacher else {}
        self.teacher = place_teacher(models.teacher, engine, **placing)
        if self.teacher and self.teacher.match and self.teacher.match.how in ("numbers", "order"):
            self.journal.screen.say(self.teacher.match.describe())
        self.students = start_students(models, plan, share, engine)
        self._views = models.views
        self._set = (
            EvaluationSet(plan.eval_source, models.frame, self.teacher, engine, recipe) if plan.eval_source else None
        )
        self._resume(claim)
        for line in models.describe():
            self.journal.screen.say(line)

    @property
    def running(self) -> list[Student]:
        return [student for student in self.students if student.running]

    def go(self, signals: Signals) -> int:
        """Train to the end of the budget, or to a signal. Collective: every rank."""
        plan, journal = self.plan, self.journal
        if self.step >= plan.total_steps and not self._evaluation_due:
            journal.screen.say(f"{plan.output}: this run is complete; resume: never starts it again")
            return self._finish()
        with ExitStack() as stack:
            stack.callback(journal.close)
            journal.open(plan.output / METRICS_FILE)
            if self._set:
                stack.enter_context(self._set)
            stack.enter_context(journal.screen)
            try:
                return self._train(Verdicts(self.engine, len(self.students)), signals)
            except EvaluationAbandoned:  # and repeated by the next sitting
                return self._interrupted(signals)
            except Exception as error:
                error.add_note(f"after step {self.step}")
                raise

    def _train(self, verdicts: Verdicts, signals: Signals) -> int:
        """Stage after stage."""
        plan = self.plan
        self._sat = True
        self.journal.go(self.step)
        if self._set:
            self._set.start(signals)

        def heed() -> None:
            if verdicts.agree_to_stop(self.step, signals.received is not None):
                raise EvaluationAbandoned

        if self._evaluation_due:  # the signal that ended the last sitting came before its end
            with self.journal.clock.paused():
                self._evaluate(heed)
                self._save()
        while self.step < plan.total_steps and self.running:
            if self.step == self.stage.last_step:
                self._enter(plan.stage_at(self.step))
            with train_loader(plan, self.stage, self.share, self.engine, self.step) as loader:
                gate = Gate(loader, self.engine, signals, may_wait=isinstance(self.stage.source, StreamSource))
                if self._loop(iter(loader), gate, verdicts, signals, heed):
                    return self._interrupted(signals)
        return self._finish()

    def _loop(self, batches: Any, gate: Gate, verdicts: Verdicts, signals: Signals, heed: Callable[[], None]) -> bool:
        """To the end of the stage; True when all agreed to stop before it."""
        stage = self.stage
        while self.step < stage.last_step and self.running:
            if not gate.opens():
                self._stop_students(verdicts.drain())
                return True
            self._step(batches, verdicts, signals)
            self.journal.screen.advance(self.step)
            if stage.due(stage.log_every, self.step):
                self._stop_students(verdicts.drain())
                self._log()
            if verdicts.stop_agreed:
                self._stop_students(verdicts.drain())
                return True
            if self._evaluation_due:
                self._stop_students(verdicts.drain())
                with self.journal.clock.paused():
                    self._evaluate(heed)
            if stage.due(stage.checkpoint_every, self.step):
                self._stop_students(verdicts.drain())
                with self.journal.clock.paused():
                    self._save()
        return False

    def _enter(self, stage: StagePlan) -> None:
        """Go over to a stage, before its first step: a checkpoint at the border holds what the stage before left."""
        self.stage = stage
        index = self.plan.stages.index(stage)
        spec = self.plan.recipe.stages[index]
        for student in self.running:
            student.enter(
                setting_of(self.plan, stage, student.name),
                new_optimizer=spec.optimizer == "reset",
                new_averages=spec.averages == "reset",
            )
        self._record_stage()

    def _record_stage(self) -> None:
        """Say which stage it is, where there are several. Collective: every rank."""
        stage = self.stage
        if self.plan.recipe.stages:
            space = "" if stage.labelled else "; its labels are of another space, or none: nothing reads them"
            self.journal.screen.say(f"stage {stage.name}: steps {stage.first_step} to {stage.last_step}{space}")

    def _interrupted(self, signals: Signals) -> int:
        """Save for the same command to go on. Collective: every rank."""
        # Once for a step: what was saved at a border is what the stage before left.
        if self.step and (self._saved is None or self._saved[0] < self.step):
            self._save()
        saved = f"saved in {self._saved[1]}" if self._saved else "nothing to save"
        self.journal.screen.say(
            f"{signals.received or 'a signal'}: stopped after step {self.step}, {saved}; the same command goes on"
        )
        return INTERRUPTED

    def _step(self, batches: Any, verdicts: Verdicts, signals: Signals) -> None:
        """One optimizer step of every running student, behind one teacher forward a micro-batch.

        No wait for the device, but once a student under fp16 and ZeRO: torch's GradScaler and DeepSpeed ask whether to skip its step.
        """
        not_finite: dict[str, torch.Tensor] = {}
        needs_teacher = any(student.spec.objective.soft for student in self.running)
        for _ in range(self.share.num_forwards):
            batch = next(batches)
            self._skipped_here += batch.num_skipped
            targets = self.teacher(batch.images) if self.teacher and needs_teacher else None
            for student in self.running:
                bad = student.learn(batch, targets)
                not_finite[student.name] = not_finite[student.name] | bad if student.name in not_finite else bad
        flags = [not_finite.get(student.name) for student in self.students]
        self._stop_students(verdicts.exchange(self.step + 1, flags, signals.received is not None))
        for student in self.running:
            student.update(self.step)
        self.step += 1

    def _stop_students(self, stopped: list[tuple[int, int]]) -> None:
        """Stop the students that verdicts name, (index, step) each."""
        screen = self.journal.screen
        for index, step in stopped:
            student = self.students[index]
            if student.running:
                student.stop(step)
                screen.rows[student.name].note = f"stopped at step {step}: loss not finite"
                screen.say(
                    f"{student.name}: the loss of step {step} is not finite; this student stops here, the others go on. "
                    f"Lower {self.stage.key}students.{student.name}.optimizer.lr, or set clip_grad_norm or another train.precision"
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
        wanted = self.stage.due(self.stage.evaluate_every, self.step)
        return wanted and self.step > self._judged_step and self._set is not None and bool(self.running)

    # ---- log, judge, save --------------------------------------------------------------------------------------------

    def _count_skipped(self) -> None:
        """Add the unreadable images of all processes. Collective: every rank."""
        self.num_skipped += int(self.engine.sum_(torch.tensor(self._skipped_here, device=self.engine.device)))
        self._skipped_here = 0

    def _log(self) -> None:
        """Fetch losses, show and record them. Collective: every rank. Waits for the device."""
        self._count_skipped()
        stage = {"stage": self.stage.name} if self.plan.recipe.stages else {}
        self.journal.trained(
            self.step,
            {**stage, "epoch": self.plan.epochs(self.step), "num_skipped": self.num_skipped},
            {student.name: (student.take_losses(), student.lr_at(self.step - 1)) for student in self.running},
        )

    def _evaluate(self, heed: Callable[[], None]) -> None:
        """Judge teacher and students, keep the best weights. `heed` may abandon it. Collective: every rank."""
        screen = self.journal.screen
        screen.doing("evaluating")
        first = TEACHER not in self.accuracies
        assert self._set
        judged = {}
        for student in self.running:
            student.average_statistics()
            student.net.eval()
            judged.update(student.judged())
        self.accuracies |= self._set.evaluate(judged, self.accuracies.get(TEACHER), heed)
        for doubt in teacher_doubts(self.teacher, self.accuracies.get(TEACHER)) if first else ():
            screen.say(f"warning: {doubt}")
        self._judged_step = self.step
        for student in self.running:
            student.net.train()
            if student.improved(self.accuracies, self.step):
                self._write_best(student)
            row = screen.rows[student.name]
            row.top1, row.best = self.accuracies[student.name].top1, student.best.top1 if student.best else None
        names = [*judged, *([TEACHER] if TEACHER in self.accuracies else [])]
        self.journal.judged(self.step, {name: self.accuracies[name] for name in names})
        if self.plan.recipe.stages and self.step == self.stage.last_step:
            self.stage_ends[self.stage.name] = {name: self.accuracies[name].as_dict() for name in judged}

    def _write_best(self, student: Student) -> None:
        """Export what `student.best` names to the run's folder. Collective: every rank."""
        assert student.best
        recipe = self.plan.recipe
        judged = student.name if student.best.weights == "last" else f"{student.name}/{student.best.weights}"
        record = self.accuracies[judged].as_dict() if student.best.top1 is not None else {}
        weights = student.best_weights()
        self.engine.on_main(
            lambda: student.write(
                best_dir(self.plan.output, student.name),
                weights,
                classes=self.plan.classes,
                record={"run": recipe.name, **record},
            )
        )

    def _finish(self) -> int:
        """Write the report and show the final table. Collective: every rank."""
        for student in self.running:
            if self._set is None:  # nothing was judged: the last weights are all there is
                student.average_statistics()
                student.best = Best(None, self.step, "last")
                self._write_best(student)
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
            stage_ends=self.stage_ends,
            students=self.students,
            accuracies=self.accuracies,
            views=self._views,
            warnings=teacher_doubts(self.teacher, self.accuracies.get(TEACHER)),
        )
        self.engine.on_main(lambda: summary.write(again=not self._sat))
        if self.engine.is_main:
            summary.show(self.journal.screen.console)
        return DONE if self.running else ALL_STOPPED

    def _save(self) -> None:
        """Write a checkpoint and let old ones go. Collective: every rank."""
        self.journal.screen.doing("saving")
        self._count_skipped()
        clock = self.journal.clock
        values = {
            "classes": list(self.plan.classes),
            "inputs": self._inputs() if self.engine.is_main else {},  # the main process writes
            "seconds": clock.seconds,
            "device_seconds": clock.device_seconds,
            "num_skipped": self.num_skipped,
            "judged_step": self._judged_step,
            "views": {name: view.as_dict() for name, view in self._views.items()},
            "accuracies": {name: accuracy.as_dict() for name, accuracy in self.accuracies.items()},
            **({"stage_ends": self.stage_ends} if self.plan.recipe.stages else {}),
        }
        self._saved = self.step, save_run(self.plan, self.step, values, self.students, self.engine)

    def _resume(self, claim: Claim) -> None:
        """Go on from the newest whole checkpoint, if there is one. Collective: every rank."""
        journal = self.journal
        plan = self.plan
        path = self.engine.on_main(lambda: begin(plan.output, plan.recipe, claim, journal.screen.say, self._inputs()))
        if path is None:
            self._record_stage()
            return
        checkpoint = reopen(path)
        self.step = checkpoint.state.step
        self.stage = self.plan.stage_at(self.step - 1)
        self._saved = self.step, str(path)
        values = checkpoint.values
        journal.clock.add_earlier(values["seconds"], values["device_seconds"])
        self.num_skipped, self._judged_step = values["num_skipped"], values["judged_step"]
        self.accuracies = {name: Accuracy(**fields) for name, fields in values["accuracies"].items()}
        self.stage_ends = values["stage_ends"] if self.plan.recipe.stages else {}
        for student in self.students:
            if self.stage is not self.plan.stages[0]:
                setting = setting_of(self.plan, self.stage, student.name)
                student.enter(setting, new_optimizer=True, new_averages=False)
            load_student(student, checkpoint, self.plan.output)
            row = journal.screen.rows[student.name]
            row.best = student.best.top1 if student.best else None
            row.note = "" if student.running else f"stopped at step {student.stopped_at}: loss not finite"
        journal.screen.say(f"going on from {path}")
