"""What a run tells: the screen for people, metrics.jsonl and trackers for programs, and the time it took."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.clock import Clock
from distill.console import MetricsFile, Screen
from distill.engine import Engine
from distill.evaluate import TEACHER, Accuracy
from distill.recipe import Recipe


class Journal:
    """One for the life of a run in this process. `open` comes before anything is recorded."""

    def __init__(self, recipe: Recipe, total_steps: int, engine: Engine) -> None:
        self._recipe, self._total_steps, self._engine = recipe, total_steps, engine
        self.clock = Clock(engine.world_size)
        self.screen = Screen(
            title=recipe.name, students=list(recipe.students), total_steps=total_steps, show=engine.is_main
        )
        self._logged_step = 0

    def open(self, metrics: Path) -> None:
        """Open metrics.jsonl and start the trackers. Collective: every rank."""
        self._metrics = MetricsFile(metrics, self._engine.is_main, self.screen.say)
        self._engine.start_trackers(self._recipe.name, self._recipe.model_dump(mode="json"))

    def close(self) -> None:
        """Close metrics.jsonl."""
        self._metrics.close()

    def go(self, step: int) -> None:
        """Training starts here, with `step` steps done."""
        self._logged_step = step
        self.clock.go()

    def record(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Write a line of metrics.jsonl. Collective: every rank, so that all end together when the disk is full."""
        self._engine.on_main(lambda: self._metrics.write(event, step, values))

    def trained(
        self, step: int, general: dict[str, Any], students: Mapping[str, tuple[dict[str, float], float]]
    ) -> None:
        """A log interval has passed. Collective: every rank.

        Args:
            general: what is recorded of the run beside speed and memory.
            students: mean loss terms and learning rate of each that learns.
        """
        records: dict[str, Any] = {}
        for name, (losses, lr) in students.items():
            row = self.screen.rows[name]
            row.loss, row.lr = losses.get("total"), lr
            records[name] = {**{f"loss_{key}": value for key, value in losses.items()}, "lr": lr}
        num_steps, seconds = step - self._logged_step, self.clock.lap()
        self._logged_step = step
        images_per_s = num_steps * self._recipe.train.batch_size_global / max(seconds, 1e-9)
        memory = self._engine.peak_memory_bytes()
        general = {
            **general,
            "images_per_s": images_per_s,
            "memory_bytes": memory,
            "seconds": self.clock.seconds,
        }
        self.record("train", step, {**general, "students": records})
        scalars = {key: value for key, value in general.items() if not isinstance(value, str)}
        self._engine.track({**_flat(records), **scalars}, step)
        eta_s = (self._total_steps - step) * seconds / max(num_steps, 1)
        self.screen.training(step, images_per_s=images_per_s, memory_bytes=memory, eta_s=eta_s)

    def judged(self, step: int, accuracies: Mapping[str, Accuracy]) -> None:
        """An evaluation has passed. Collective: every rank."""
        records = {name: accuracy.as_dict() for name, accuracy in accuracies.items()}
        self.record("evaluate", step, {"models": records})
        self._engine.track(_flat(records), step)
        teacher = f"; teacher {accuracies[TEACHER].top1:.2f}" if TEACHER in accuracies else ""
        self.screen.evaluated(step, teacher)


def _flat(records: dict[str, Any]) -> dict[str, float]:
    return {f"{name}/{key}": value for name, values in records.items() for key, value in values.items()}
