"""Runs to be measured: built by the functions that `train` calls, on the images that come with the
package, stepped from outside.
"""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill.checkpoint.layout import METRICS_FILE
from distill.checkpoint.lock import FolderLock
from distill.data.loading.loader import Batch, TrainLoader
from distill.engine import Engine
from distill.engine.agreement import StepFlags
from distill.engine.signals import Signals
from distill.recipe import Recipe
from distill.training.build import Models, build_models, train_loader
from distill.training.loop import Run
from distill.training.plan import Plan, make_plan
from distill.training.share import share_of_process

LR, WEIGHT_DECAY, MOMENTUM = 0.01, 5e-4, 0.9


def kd_recipe(
    output: Path,
    *,
    model: str,
    teacher: str,
    objectives: dict[str, dict[str, Any]],
    image_size: int,
    batch_size: int,
    total_steps: int,
    precision: str,
    compile: bool,
) -> Recipe:
    """Students of one model, CE + the terms of each, behind one teacher with random weights; mixed
    labels, decoding in this process.
    """
    student = {
        "model": model,
        "optimizer": {
            "name": "momentum",
            "lr": LR,
            "weight_decay": WEIGHT_DECAY,
            "momentum": MOMENTUM,
        },
        "schedule": {"name": "constant"},
    }
    return Recipe.model_validate(
        {
            "name": output.name,
            "output": str(output),
            "data": {
                "train": {"kind": "fashion_mnist", "split": "train"},
                "image_size": image_size,
                "mixing": {"mixup": 0.1, "cutmix": 1.0},
                "num_workers": 0,
            },
            "teacher": {"model": teacher, "weights": "random", "image_size": image_size},
            "students": {
                name: {**student, "objective": {"hard": {"loss": "ce"}, **terms}}
                for name, terms in objectives.items()
            },
            "train": {
                "budget": f"{total_steps} iterations",
                "batch_size_global": batch_size,
                "micro_batch_size": batch_size,
                "precision": precision,
                "compile": compile,
            },
        }
    )


@contextmanager
def engine_on(device: str, *, precision: str, compile: bool) -> Iterator[Engine]:
    """Return an engine on the CPU, or on the device that Accelerate chooses."""
    before = os.environ.get("ACCELERATE_USE_CPU")
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        engine = Engine(precision=precision, compile=compile)
    finally:
        os.environ.pop("ACCELERATE_USE_CPU", None)
        if before is not None:
            os.environ["ACCELERATE_USE_CPU"] = before
    try:
        if device == "cuda" and engine.device.type != "cuda":
            raise SystemExit("--device cuda: torch sees no GPU")
        yield engine
    finally:
        engine.close()


def plan_and_models(recipe: Recipe) -> tuple[Plan, Models]:
    """Return what `train` makes before it takes a device."""
    plan = make_plan(recipe)
    return plan, build_models(plan)


class SteppedRun:
    """A run that takes a step on demand, with what a step of `Run._loop` does between
    logs, evaluations and saves.
    """

    def __init__(self, plan: Plan, models: Models, engine: Engine) -> None:
        train = plan.recipe.train
        share = share_of_process(train.batch_size_global, train.micro_batch_size, engine.world_size)
        assert share.num_forwards == 1
        self.run = Run(plan, share, models, engine, FolderLock())
        self.run.logger.open(plan.output / METRICS_FILE, 0)
        self.run.logger.start(0, self.run.running)
        self.loader: TrainLoader = train_loader(plan, plan.stages[0], share, engine, 0)
        self._step_flags = StepFlags(engine, len(self.run.students))

    def take(self, count: int) -> list[Batch]:
        """Return the next batches, on the device."""
        return list(itertools.islice(self.loader, count))

    def step(self, batches: Iterator[Batch]) -> None:
        """Take one step on the next of `batches`."""
        self.run._step(batches, self._step_flags, Signals())
        self.run.logger.stepped(self.run.step, self.run.running)

    def close(self) -> None:
        """Read the last flags, and end the loader.

        Raises:
            SystemExit: a student's loss was not finite, so that the times are not those of its
                training.
        """
        self.run._stop_students(self._step_flags.drain())
        self.loader.close()
        if len(self.run.running) < len(self.run.students):
            raise SystemExit("a loss was not finite: these figures would mean nothing")
