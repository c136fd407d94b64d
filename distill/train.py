"""train(recipe): the acts in order, and one step on one screen."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from distill.build import Models, build_models, eval_loader, place_teacher, start_students, train_loader
from distill.checkpoint import Signals, TrainState, prune, save
from distill.clock import Clock
from distill.console import MetricsFile, Screen
from distill.engine import Engine, check_rendezvous, launched_processes, refuse_contradictions
from distill.evaluate import TEACHER, Accuracy, EvaluationAbandoned, TeacherAnswers, evaluate
from distill.plan import Plan, Share, make_plan, share_of_process
from distill.recipe import Recipe, dump_recipe, recipe_digest
from distill.rundir import METRICS_FILE, Claim, begin, best_dir, checkpoints_dir, reopen, same_inputs
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
    with Signals() as signals:  # from the start: a signal during it is answered after the first step
        return _train(recipe, signals)


def _train(recipe: Recipe, signals: Signals) -> int:
    refuse_contradictions(
        dict(os.environ),
        precision=recipe.train.precision,
        zero_stage=recipe.train.zero_stage,
        zero_offload=recipe.train.zero_offload,
    )
    share = share_of_process(
        recipe.train.batch_size_global, recipe.train.micro_batch_size, launched_processes(dict(os.environ))
    )
    check_rendezvous(dict(os.environ))
    plan = make_plan(recipe)
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
    """A run in progress: its students, where it stands, and what it shows."""

    def __init__(self, plan: Plan, share: Share, models: Models, engine: Engine, claim: Claim) -> None:
        """Start or go on. Collective: every rank."""
        recipe = plan.recipe
        self.plan, self.share, self.engine = plan, share, engine
        self.step = 0
        self.clock = Clock(engine.world_size)
        self.num_skipped = 0  # over all processes, up to the last log or save
        self._skipped_here = 0
        self._sat = False  # this sitting has trained
        self._judged_step = 0
        self.accuracies: dict[str, Accuracy] = {}
        placing = recipe.teacher.model_dump(include={"placement", "offload"}) if recipe.teacher else {}
        self.teacher = place_teacher(models.teacher, engine, **placing)
        self.students = start_students(models, recipe, share, engine)
        self.screen = Screen(
            title=recipe.name, students=list(recipe.students), total_steps=plan.total_steps, show=engine.is_main
        )
        self._teacher_answers = TeacherAnswers(self.teacher) if self.teacher else None
        self._eval_loader = (
            eval_loader(
                plan.eval_source,
                recipe.data.eval_view,
                engine,
                image_size=recipe.data.image_size,
                batch_size=recipe.evaluate.batch_size_process,
                num_workers=recipe.data.num_workers,
                unreadable=recipe.data.unreadable,
            )
            if plan.eval_source
            else None
        )
        self._resume(claim)

    @property
    def running(self) -> list[Student]:
        return [student for student in self.students if student.running]

    def go(self, signals: Signals) -> int:
        """Train to the end of the budget, or to a signal. Collective: every rank."""
        plan, engine = self.plan, self.engine
        if self.step >= plan.total_steps and not self._evaluation_due:
            self.screen.say(f"{plan.output}: this run is complete; resume: never starts it again")
            return self._finish()
        with ExitStack() as stack:
            self.metrics = MetricsFile(plan.output / METRICS_FILE, engine.is_main)
            stack.callback(self.metrics.close)
            loader = stack.enter_context(train_loader(plan, self.share, engine, self.step))
            if self._eval_loader:
                stack.enter_context(self._eval_loader)
            stack.enter_context(self.screen)
            engine.start_trackers(plan.recipe.name, plan.recipe.model_dump(mode="json"))
            try:
                return self._loop(iter(loader), Verdicts(engine, len(self.students)), signals)
            except EvaluationAbandoned:  # and repeated by the next sitting
                return self._interrupted(signals)
            except Exception as error:
                error.add_note(f"after step {self.step}")
                raise

    def _loop(self, batches: Any, verdicts: Verdicts, signals: Signals) -> int:
        plan = self.plan
        self._logged_step, self._sat = self.step, True
        self.clock.go()

        def heed() -> None:
            if verdicts.agree_to_stop(self.step, signals.received is not None):
                raise EvaluationAbandoned

        if self._evaluation_due:  # the signal that ended the last sitting came before its end
            with self.clock.paused():
                self._evaluate(heed)
                self._save()
        while self.step < plan.total_steps and self.running:
            self._step(batches, verdicts, signals)
            self.screen.advance(self.step)
            last = self.step == plan.total_steps
            if self.step % plan.log_every == 0 or last:
                self._stop_students(verdicts.drain())
                self._log()
            if verdicts.stop_agreed:
                self._stop_students(verdicts.drain())
                return self._interrupted(signals)
            if self._evaluation_due:
                self._stop_students(verdicts.drain())
                with self.clock.paused():
                    self._evaluate(heed)
            if self.step % plan.checkpoint_every == 0 or last:
                self._stop_students(verdicts.drain())
                with self.clock.paused():
                    self._save()
        return self._finish()

    def _interrupted(self, signals: Signals) -> int:
        """Save for the same command to go on. Collective: every rank."""
        path = self._save()
        self.screen.say(
            f"{signals.received or 'a signal'}: stopped after step {self.step}, saved in {path}; the same command goes on"
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
        for index, step in stopped:
            student = self.students[index]
            if student.running:
                student.stop(step)
                self.screen.rows[student.name].note = f"stopped at step {step}: loss not finite"
                self.screen.say(
                    f"{student.name}: the loss of step {step} is not finite; this student stops here, the others go on. "
                    f"Lower students.{student.name}.optimizer.lr, or set clip_grad_norm or another train.precision"
                )
                self._record("stopped", step, {"student": student.name})

    def _inputs(self) -> dict[str, str | int]:
        """What data and teacher came to: a continuation must have the same."""
        return {**self.plan.inputs(), **({"teacher (SHA-256)": self.teacher.fingerprint} if self.teacher else {})}

    @property
    def _evaluation_due(self) -> bool:
        """Whether the step that the run stands at wants an evaluation and has not had it."""
        wanted = self.step % self.plan.evaluate_every == 0 or self.step == self.plan.total_steps
        return wanted and self.step > self._judged_step and self._eval_loader is not None and bool(self.running)

    # ---- log, judge, save --------------------------------------------------------------------------------------------

    def _record(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Write a line of metrics.jsonl. Collective: every rank, so that all end together when the disk is full."""
        self.engine.on_main(lambda: self.metrics.write(event, step, values))

    def _count_skipped(self) -> None:
        """Add the unreadable images of all processes. Collective: every rank."""
        self.num_skipped += int(self.engine.sum_(torch.tensor(self._skipped_here, device=self.engine.device)))
        self._skipped_here = 0

    def _log(self) -> None:
        """Fetch losses, show and record them. Collective: every rank. Waits for the device."""
        self._count_skipped()
        records: dict[str, Any] = {}
        for student in self.running:
            losses, lr = student.take_losses(), student.lr_at(self.step - 1)
            row = self.screen.rows[student.name]
            row.loss, row.lr = losses.get("total"), lr
            records[student.name] = {**{f"loss_{key}": value for key, value in losses.items()}, "lr": lr}
        num_steps, seconds = self.step - self._logged_step, self.clock.lap()
        self._logged_step = self.step
        images_per_s = num_steps * self.plan.recipe.train.batch_size_global / max(seconds, 1e-9)
        memory = self.engine.peak_memory_bytes()
        eta_s = (self.plan.total_steps - self.step) * seconds / max(num_steps, 1)
        general = {
            "epoch": self.step / self.plan.order.steps_per_epoch,
            "images_per_s": images_per_s,
            "memory_bytes": memory,
            "seconds": self.clock.seconds,
            "num_skipped": self.num_skipped,
        }
        self._record("train", self.step, {**general, "students": records})
        self.engine.track({**_flat(records), **general}, self.step)
        self.screen.training(self.step, images_per_s=images_per_s, memory_bytes=memory, eta_s=eta_s)

    def _evaluate(self, heed: Callable[[], None]) -> None:
        """Judge teacher and students, keep the best weights. `heed` may abandon it. Collective: every rank."""
        self.screen.doing("evaluating")
        assert self._eval_loader
        judged = {}
        for student in self.running:
            student.average_statistics()
            student.net.eval()
            judged.update(student.judged())
        self.accuracies |= evaluate(judged, self._eval_loader, self.engine, self._teacher_answers, heed)
        self._judged_step = self.step
        for student in self.running:
            student.net.train()
            if student.improved(self.accuracies, self.step):
                self._write_best(student)
            row = self.screen.rows[student.name]
            row.top1, row.best = self.accuracies[student.name].top1, student.best.top1 if student.best else None
        records = {name: self.accuracies[name].as_dict() for name in judged}
        if TEACHER in self.accuracies:
            records[TEACHER] = self.accuracies[TEACHER].as_dict()
        self._record("evaluate", self.step, {"models": records})
        self.engine.track(_flat(records), self.step)
        teacher = f"; teacher {self.accuracies[TEACHER].top1:.2f}" if TEACHER in self.accuracies else ""
        self.screen.evaluated(self.step, teacher)

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
                data=recipe.data,
                record={"run": recipe.name, **record},
            )
        )

    def _finish(self) -> int:
        """Write the report and show the final table. Collective: every rank."""
        for student in self.running:
            if self._eval_loader is None:  # nothing was judged: the last weights are all there is
                student.average_statistics()
                student.best = Best(None, self.step, "last")
                self._write_best(student)
        recipe = self.plan.recipe
        summary = Summary(
            run=recipe.name,
            output=self.plan.output,
            steps=self.step,
            epochs=self.step / self.plan.order.steps_per_epoch,
            seconds=self.clock.seconds,
            device_hours=self.clock.device_seconds / 3600,
            num_processes=self.engine.world_size,
            device=self.engine.device_name(),
            num_skipped=self.num_skipped,
            students=self.students,
            accuracies=self.accuracies,
        )
        self.engine.on_main(lambda: summary.write(again=not self._sat))
        if self.engine.is_main:
            summary.show(self.screen.console)
        return DONE if self.running else ALL_STOPPED

    def _save(self) -> str:
        """Write a checkpoint and let old ones go. Collective: every rank."""
        self.screen.doing("saving")
        self._count_skipped()
        tensors: dict[str, Any] = {}
        values: dict[str, Any] = {
            "classes": list(self.plan.classes),
            "inputs": self._inputs(),
            "seconds": self.clock.seconds,
            "device_seconds": self.clock.device_seconds,
            "num_skipped": self.num_skipped,
            "judged_step": self._judged_step,
            "accuracies": {name: accuracy.as_dict() for name, accuracy in self.accuracies.items()},
            "students": {},
        }
        for student in self.students:
            student.average_statistics()
            student_tensors, values["students"][student.name] = student.state()
            tensors |= {f"{student.name}.{key}": value for key, value in student_tensors.items()}
        recipe = self.plan.recipe

        def write() -> str:
            path = save(
                checkpoints_dir(self.plan.output),
                TrainState(self.step, self.step * recipe.train.batch_size_global),
                tensors=tensors,
                values=values,
                recipe_text=dump_recipe(recipe),
                recipe_digest=recipe_digest(recipe),
                world_size=self.engine.world_size,
            )
            prune(checkpoints_dir(self.plan.output), recipe.checkpoint.keep_last, newest=path)
            return str(path)

        return self.engine.on_main(write)

    def _resume(self, claim: Claim) -> None:
        """Go on from the newest whole checkpoint, if there is one. Collective: every rank."""
        path = self.engine.on_main(lambda: begin(self.plan.output, self.plan.recipe, claim, self.screen.say))
        if path is None:
            return
        checkpoint = reopen(path)
        self.engine.on_main(lambda: same_inputs(path, checkpoint.values["inputs"], self._inputs()))
        self.step = checkpoint.state.step
        values = checkpoint.values
        self.clock.add_earlier(values["seconds"], values["device_seconds"])
        self.num_skipped, self._judged_step = values["num_skipped"], values["judged_step"]
        self.accuracies = {name: Accuracy(**fields) for name, fields in values["accuracies"].items()}
        for student in self.students:
            prefix = f"{student.name}."
            names = [name for name in checkpoint.tensor_names if name.startswith(prefix)]
            tensors = {name.removeprefix(prefix): checkpoint.tensors(name) for name in names}
            student.load(tensors, values["students"][student.name])
            student.recall_best(best_dir(self.plan.output, student.name))
            row = self.screen.rows[student.name]
            row.best = student.best.top1 if student.best else None
            row.note = "" if student.running else f"stopped at step {student.stopped_at}: loss not finite"
        self.screen.say(f"going on from {path}")


def _flat(records: dict[str, Any]) -> dict[str, float]:
    return {f"{name}/{key}": value for name, values in records.items() for key, value in values.items()}
