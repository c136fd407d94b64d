"""What a run reports: the screen for people, metrics.jsonl and trackers for programs, and its
time.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from distill.engine import Engine
from distill.evaluation.accuracy import Accuracy
from distill.evaluation.metric import METRICS
from distill.student.student import Student
from distill.training.clock import Clock
from distill.training.energy import EnergyMeter, counter_of
from distill.training.live_losses import LiveLosses
from distill.training.metrics import MetricsFile
from distill.training.plan import Plan
from distill.training.screen import Progressed, Screen

_SHOWN_EVERY_S = 0.25  # the screen is drawn four times a second


class Trained(NamedTuple):
    """What a student did since the last log.

    Attributes:
        losses: mean loss terms by name.
        lr: the learning rate of the last step.
        gradient_norms: of the last step, by name; empty unless the recipe asks for them.
    """

    losses: Mapping[str, float]
    lr: float
    gradient_norms: Mapping[str, float]


class RunLogger:
    """Reports a run in this process. Call `open` before anything is recorded.

    Args:
        teachers: those that have a row on the screen, beside how far students agree with them.

    Attributes:
        warnings: what the report repeats at the end, earlier sessions included.
    """

    def __init__(self, plan: Plan, engine: Engine, *, teachers: Sequence[str]) -> None:
        recipe = plan.recipe
        self._plan, self._recipe, self._engine = plan, recipe, engine
        self.clock = Clock(engine.world_size)
        self.energy = EnergyMeter(engine, counter_of(engine.device))
        self.screen = Screen(
            title=recipe.name,
            students=list(recipe.students),
            teachers=list(teachers),
            total_steps=plan.total_steps,
            total_epochs=plan.epochs(plan.total_steps),
            metric=METRICS[recipe.evaluate.metric],
            show=engine.is_main,
        )
        self.warnings: list[str] = []
        self._logged_step = 0
        self._live: LiveLosses | None = None
        self._next_shown_s = 0.0

    def open(self, metrics: Path, step: int) -> None:
        """Open metrics.jsonl and start the trackers, with `step` steps done. Collective: every
        rank.
        """
        self._metrics = MetricsFile(metrics, self._engine.is_main, self.warn)
        config = self._recipe.model_dump(mode="json")
        self._engine.start_trackers(self._recipe.name, self._plan.output, config, step)

    def close(self) -> None:
        """Close metrics.jsonl."""
        self._metrics.close()

    def start(self, step: int, students: Sequence[Student]) -> None:
        """Start to train, with `step` steps done."""
        self._logged_step = step
        self.clock.start(step)
        self.screen.advance(step)
        if self.screen.live:
            self._live = LiveLosses(self._engine, students)

    def warn(self, message: str) -> None:
        """Print a warning above the display, and repeat it in the report."""
        self.warnings.append(message)
        self.screen.say(f"warning: {message}")

    def record(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Write a line of metrics.jsonl. Collective: every rank, so that all end together if the
        disk is full.
        """
        self._engine.on_main(lambda: self._metrics.write(event, step, values))

    @contextmanager
    def pausing(self, what: str) -> Iterator[None]:
        """Training pauses inside, for "evaluating" or "saving"."""
        self.screen.doing(what)
        with self.clock.paused(what):
            yield

    def stepped(self, step: int, students: Sequence[Student]) -> None:
        """Show a step on a terminal. Never waits for the device."""
        self.clock.stepped(step)
        self.screen.advance(step)
        if self._live is None or time.monotonic() < self._next_shown_s:
            return
        self._next_shown_s = time.monotonic() + _SHOWN_EVERY_S
        for name, loss in self._live.poll(students).items():
            self.screen.rows[name].loss = loss
        for student in students:
            self.screen.rows[student.name].lr = student.lr_at(step - 1)
        step_s = self.clock.step_s
        self.screen.progress(
            self._progressed(step, self._images_per_s(1, step_s) if step_s else None)
        )

    def _images_per_s(self, num_steps: int, seconds: float) -> float:
        return num_steps * self._recipe.train.batch_size_global / max(seconds, 1e-9)

    def _progressed(self, step: int, images_per_s: float | None) -> Progressed:
        return Progressed(
            step,
            self._plan.epochs(step),
            images_per_s,
            self._engine.peak_memory_bytes(),
            self.clock.seconds,
            self.clock.left_s(self._plan.total_steps - step, self._plan.pauses_left(step)),
        )

    def trained(
        self,
        step: int,
        general: dict[str, Any],
        students: Mapping[str, Trained],
    ) -> None:
        """Record and show a log interval. Collective: every rank.

        Args:
            general: what is recorded besides speed and memory.
            students: the running ones, by name.
        """
        records: dict[str, Any] = {}
        for name, trained in students.items():
            row = self.screen.rows[name]
            row.loss, row.lr = trained.losses.get("total"), trained.lr
            records[name] = {
                **{f"loss_{key}": value for key, value in trained.losses.items()},
                "lr": trained.lr,
                **{f"gradient_norm_{key}": norm for key, norm in trained.gradient_norms.items()},
            }
        images_per_s = self._images_per_s(step - self._logged_step, self.clock.lap())
        self._logged_step = step
        now = self._progressed(step, images_per_s)
        general = {
            **general,
            "images_per_s": images_per_s,
            "data_wait_s": self.clock.take_data_wait_s(),
            "memory_bytes": now.memory_bytes,
            "seconds": now.elapsed_s,
        }
        self.record("train", step, {**general, "students": records})
        scalars = {
            f"run/{key}": value for key, value in general.items() if not isinstance(value, str)
        }
        self._engine.track({**_by_metric(records), **scalars}, step)
        self.screen.trained(now)

    def evaluated(
        self, step: int, accuracies: Mapping[str, Accuracy], best: Mapping[str, float | None]
    ) -> None:
        """Record and show an evaluation. Collective: every rank.

        Args:
            best: each student's best value of the metric so far.
        """
        self.show_accuracies(accuracies, best)
        records = {name: accuracy.as_dict() for name, accuracy in accuracies.items()}
        self.record("evaluate", step, {"models": records})
        self._engine.track(_by_metric(records), step)
        step_s = self.clock.step_s
        self.screen.evaluated(
            self._progressed(step, self._images_per_s(1, step_s) if step_s else None)
        )

    def show_accuracies(
        self, accuracies: Mapping[str, Accuracy], best: Mapping[str, float | None]
    ) -> None:
        """Show the last evaluation in the rows of teachers and students."""
        for name, row in self.screen.teachers.items():
            if name in accuracies:
                row.top1 = accuracies[name].top1
        for name, row in self.screen.rows.items():
            if name in accuracies:
                row.top1, row.agreement = accuracies[name].top1, accuracies[name].agreement
            if name in best:
                row.best = best[name]


def _by_metric(records: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Values by tag "METRIC/MODEL": trackers plot the models of one metric together."""
    return {
        f"{key}/{name}": value for name, values in records.items() for key, value in values.items()
    }
