"""Pushes of a run to the Hub while it trains: best weights, card, recipe and log.

The main process takes a snapshot (links to files, so it is instant), and a thread uploads it. Only
the newest snapshot waits; a push that fails is a warning, and the next push has all that it had.
"""

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from distill.checkpoint.layout import (
    METRICS_FILE,
    RECIPE_FILE,
    REPORT_FILE,
    best_dir,
    step_of,
)
from distill.engine.signals import Signals
from distill.errors import InputError
from distill.evaluation.metric import METRICS
from distill.files import current_directory, sha256_of
from distill.models.export_format import RECORD_FILE, WEIGHTS_FILE, read_record
from distill.models.hub.card import CARD_FILE, LICENCE_FILE, CardFacts, model_card
from distill.models.hub.commit import (
    Target,
    upload,
    without_progress_bars,
)
from distill.models.hub.derived import base_model, datasets_of, noted_licences, teachers_of
from distill.models.hub.faults import redacted
from distill.models.hub.figures import own_score
from distill.models.hub.licences import licence_text
from distill.models.hub.secrets import refuse_secrets
from distill.models.origin import CONFIG_FILE
from distill.recipe import dump_recipe
from distill.student.student import Student
from distill.training.hub_owner import HubOwner
from distill.training.hub_resume import HUB_BEST, HUB_CHECKPOINTS, HUB_ID
from distill.training.logging import RunLogger
from distill.training.plan import Plan, StagePlan

# How long the end of a run waits for its last push, and a run that was stopped by a signal, whose
# machine may be taken away soon.
LAST_PUSH_S = 300.0
STOPPED_PUSH_S = 20.0
_NOTICE_AFTER_S = 1.0  # a line says that the end of the run waits
_POLL_S = 0.1
_FOLDER = ".tmp-publish-"


@dataclass(frozen=True)
class _Push:
    """What is pushed: copies or links in a folder of its own, by their names in the repository."""

    step: int
    folder: Path
    files: Mapping[str, Path | bytes]
    student: Student | None  # the best one; None before the first evaluation
    report: Mapping[str, Any] | None
    checkpoint: str | None = None  # the name of its folder


class Publisher:
    """Pushes the state of a run. Only the main process has one.

    Args:
        logger: prints the first failure after a success as a warning, in the thread of the run.
    """

    def __init__(self, plan: Plan, logger: RunLogger) -> None:
        assert plan.recipe.log.publish is not None
        self._plan, self._spec, self._logger = plan, plan.recipe.log.publish, logger
        self._changed = threading.Condition()
        self._waiting: _Push | None = None
        self._pushing: _Push | None = None
        self._closed = False
        self._pushed_step: int | None = None
        self._failure: str | None = None
        self._has_warned = False  # since the last push that succeeded
        for old in plan.output.glob(f"{_FOLDER}*"):  # of a session that was killed
            shutil.rmtree(old, ignore_errors=True)
        self._owner = HubOwner(plan.output)
        self._thread = threading.Thread(target=self._run, name="publish", daemon=True)
        self._thread.start()

    def is_due(self, stage: StagePlan, step: int) -> bool:
        """Whether to push after a step. The end of the run pushes with its report instead."""
        due = stage.publish_every is not None and stage.due(stage.publish_every, step)
        return due and step < self._plan.total_steps

    def stopped(self, step: int, students: Sequence[Student], newest: Path | None) -> None:
        """Push the checkpoint of a run that a signal stops, if checkpoints are published."""
        if self._spec.checkpoint and newest is not None:
            self.push(step, students, newest)
            self.finish()

    def push(
        self,
        step: int,
        students: Sequence[Student],
        newest: Path | None,
        report: Mapping[str, Any] | None = None,
    ) -> None:
        """Push the best student so far and the newest checkpoint, as far as there are. Returns at
        once.

        Args:
            newest: the newest checkpoint.
            report: of a finished run.
        """
        self.warn_once()
        metric = METRICS[self._plan.recipe.evaluate.metric]
        found = {each.name: each.best.value for each in students if each.best is not None}
        name = metric.best_of(found) or next(iter(found), None)
        if not self._spec.checkpoint:
            newest = None
        if name is None and newest is None:
            return
        student = next((each for each in students if each.name == name), None)
        try:
            push = self._snapshot(step, student, report)
            if newest is not None:
                push = self._with_checkpoint(push, students, newest)
        except OSError as error:  # a full disk does not end a run that needs no more of it
            self._failure = f"{error}"
            return
        with self._changed:
            if self._waiting is not None:
                shutil.rmtree(self._waiting.folder, ignore_errors=True)
            self._waiting = push
            self._changed.notify_all()

    def finish(self, signals: Signals | None = None) -> bool:
        """Wait for the last push: for LAST_PUSH_S, or to the first signal, or for STOPPED_PUSH_S
        after an earlier one.

        Args:
            signals: None of a run that a signal stops.

        Returns:
            Whether it succeeded.
        """
        may_end = signals is not None and signals.received is None
        timeout_s = LAST_PUSH_S if may_end else STOPPED_PUSH_S
        start, has_notified = time.monotonic(), False
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while self._waiting or self._pushing:
                waited = time.monotonic() - start
                if may_end and signals is not None and signals.received:
                    self._failure = f"{signals.received} ended the wait for the last push"
                    break
                if waited >= timeout_s:
                    self._failure = f"the last push took longer than {timeout_s:g} s"
                    break
                if may_end and not has_notified and waited >= _NOTICE_AFTER_S:
                    self._logger.screen.say(
                        f"waiting for the last push to {self._spec.repo}, Ctrl-C ends the wait"
                    )
                    has_notified = True
                self._changed.wait(_POLL_S)
            for push in (self._waiting, self._pushing):
                if push is not None:  # given up; the thread ends with the process
                    shutil.rmtree(push.folder, ignore_errors=True)
            self._waiting = None
        self.warn_once()
        if self._failure is None and self._pushed_step is not None:
            self._logger.screen.say(
                f"published in {self._spec.repo}, which has step {self._pushed_step}"
            )
        return self._failure is None

    def warn_once(self) -> None:
        """Print the first failure after a success, if there is one that was not printed yet."""
        failure = self._failure
        if failure is not None and not self._has_warned:
            self._has_warned = True
            last = "nothing yet" if self._pushed_step is None else f"step {self._pushed_step}"
            self._logger.warn(
                f"log.publish: {failure}; {self._spec.repo} has {last}, and the run continues"
            )

    # ---- in the thread of the run: a snapshot ----------------------------------------------------

    def _snapshot(
        self, step: int, student: Student | None, report: Mapping[str, Any] | None
    ) -> _Push:
        output = self._plan.output
        folder = output / f"{_FOLDER}{os.getpid()}-{time.monotonic_ns()}"
        folder.mkdir(parents=True)
        files: dict[str, Path | bytes] = {RECIPE_FILE: dump_recipe(self._plan.recipe).encode()}
        if student is not None:
            best = current_directory(best_dir(output, student.name))
            if best is None:
                raise FileNotFoundError(f"{best_dir(output, student.name)}: is not there")
            for name in (WEIGHTS_FILE, CONFIG_FILE, RECORD_FILE):
                files[name] = _link(best / name, folder / name)
        for name in (METRICS_FILE, *([REPORT_FILE] if report is not None else [])):
            if (output / name).is_file():
                files[name] = folder / name
                shutil.copyfile(output / name, folder / name)
        return _Push(step, folder, files, student, report)

    def _with_checkpoint(self, push: _Push, students: Sequence[Student], newest: Path) -> _Push:
        """Add what a resume on another machine needs."""
        files = dict(push.files)
        places = {f"{HUB_CHECKPOINTS}/{newest.name}": newest}
        for student in students:
            best = current_directory(best_dir(self._plan.output, student.name))
            if best is not None:
                places[f"{HUB_BEST}/{student.name}"] = best
        for place, source in places.items():
            (push.folder / place).mkdir(parents=True)
            for file in sorted(source.iterdir()):
                name = f"{place}/{file.name}"
                files[name] = _link(file, push.folder / name)
        return replace(push, files=files, checkpoint=newest.name)

    # ---- in the thread of the pushes -------------------------------------------------------------

    def _run(self) -> None:
        failure = self._failure_of(self._look_first)
        with self._changed:
            self._failure = self._failure or failure
        while True:
            with self._changed:
                while self._waiting is None:
                    if self._closed:
                        return
                    self._changed.wait()
                push = self._pushing = self._waiting
                self._waiting = None
            failure = self._failure_of(partial(self._upload, push))
            shutil.rmtree(push.folder, ignore_errors=True)
            with self._changed:
                self._failure, self._pushing = failure, None
                if failure is None:
                    self._pushed_step, self._has_warned = push.step, False
                    self._owner.pushed()
                self._changed.notify_all()

    def _failure_of(self, work: Callable[[], None]) -> str | None:
        try:
            work()
        except InputError as error:
            return str(error)
        except Exception as error:  # whatever fails here must not end a run
            return redacted(f"{type(error).__name__}: {error}")
        return None

    def _look_first(self) -> None:
        """Find out before the first push if it cannot succeed."""
        with without_progress_bars(), _without_log():
            self._owner.look(self._target)

    @property
    def _target(self) -> Target:
        return Target(self._spec.repo, private=self._spec.private)

    def _upload(self, push: _Push) -> None:
        spec, target = self._spec, self._target
        files, message = dict(push.files), f"step {push.step}"
        if push.student is not None:
            record = read_record(push.folder)
            files[CARD_FILE] = self._card(push, push.student, record).encode()
            top1 = record.get("top1")
            score = "" if top1 is None else f", top-1 {top1:.2f} %"
            message = f"step {push.step}: {push.student.name}{score}"
        if spec.license is not None:
            files[LICENCE_FILE] = licence_text(spec.license, spec.repo.split("/")[0]).encode()
        files[HUB_ID] = self._owner.content
        refuse_secrets(files)
        with without_progress_bars(), _without_log():
            head, paths = self._owner.look(target)
            delete = _old_checkpoints(paths, push.checkpoint)
            upload(target, head, files, message, delete=delete, in_turn=True)

    def _card(self, push: _Push, student: Student, record: Mapping[str, Any]) -> str:
        recipe, classes = self._plan.recipe, self._plan.classes_of(student.name)
        score, teachers = own_score(record), teachers_of(record, recipe, {})
        config = json.loads((push.folder / CONFIG_FILE).read_text(encoding="utf-8"))
        facts = CardFacts(
            repo=self._spec.repo,
            architecture=config["architecture"],
            parameters=student.num_parameters,
            classes=classes,
            num_classes=len(classes),
            view=config["pretrained_cfg"],
            record=record,
            weights_sha256=sha256_of(push.folder / WEIGHTS_FILE),
            licence=self._spec.license,
            noted=noted_licences(record, teachers.values(), recipe, classes),
            scores=[score] if score else [],
            recipe=recipe,
            student=student.name,
            report=push.report or {},
            base_model=base_model(str(record.get("began_with", ""))),
            datasets=datasets_of(recipe),
            finished=push.report is not None,
        )
        return model_card(facts)


def _old_checkpoints(paths: Sequence[str], newest: str | None) -> list[str]:
    """Return the folders of the checkpoints of earlier steps than the newest one."""
    parts = [path.split("/") for path in paths if path.startswith(f"{HUB_CHECKPOINTS}/")]
    steps = {part[2]: step_of(part[2]) for part in parts if len(part) > 3}
    last = None if newest is None else step_of(newest)
    return [
        f"{HUB_CHECKPOINTS}/{name}/"
        for name, step in steps.items()
        if step is not None and last is not None and step < last
    ]


@contextmanager
def _without_log() -> Iterator[None]:
    """Keep huggingface_hub from printing each attempt into the run's screen."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _link(source: Path, target: Path) -> Path:
    """Link a file that is replaced and never changed; copy it where links are not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target
