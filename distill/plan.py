"""What a recipe comes to on given data and processes: sources, steps, intervals, the share of a process. No device is touched."""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from distill.data.augment import TrainTransform
from distill.data.order import Order
from distill.data.sources import Source, open_source, stratified_subset
from distill.engine import TRACKERS
from distill.errors import InputError, nearest
from distill.recipe import DurationValue, Recipe


@dataclass(frozen=True)
class Share:
    """How one global batch is spread: `num_forwards` micro-batches of `micro_batch_size` samples on each process."""

    micro_batch_size: int
    num_forwards: int


def share_of_process(batch_size_global: int, micro_batch_size: int | None, num_processes: int) -> Share:
    """The micro-batches of each process.

    Raises:
        InputError: the batch does not divide; names the numbers of processes that would do.
    """
    unit = micro_batch_size or 2
    if batch_size_global % (unit * num_processes):
        good = [n for n in range(1, batch_size_global // unit + 1) if batch_size_global % (unit * n) == 0]
        around = sorted(sorted(good, key=lambda n: abs(n - num_processes))[:4])
        what = f"micro-batches of {unit}" if micro_batch_size else "an even share for each"
        raise InputError(
            f"train.batch_size_global {batch_size_global} does not divide into {what} on {num_processes} processes: "
            f"start {' or '.join(map(str, around))} processes, or change the batch size"
        )
    share = batch_size_global // num_processes
    size = micro_batch_size or share
    return Share(size, share // size)


def setting_problems(recipe: Recipe) -> list[str]:
    """What this version or this machine cannot do of a recipe, beyond its schema: known before data and models are touched."""
    problems = []
    for name in recipe.log.trackers:
        if name not in TRACKERS:
            problems.append(
                f"log.trackers: no tracker {name!r}{nearest(name, TRACKERS)}; known are {', '.join(TRACKERS)}"
            )
        elif importlib.util.find_spec(name) is None:
            problems.append(f"log.trackers: the package {name} is not installed: pip install {name}, or leave it out")
    try:
        TrainTransform(image_size=recipe.data.image_size, **recipe.data.augment.model_dump(exclude={"repeats"}))
    except InputError as error:
        problems.append(str(error))
    uses = {
        "train.zero_stage": recipe.train.zero_stage > 0,
        "teacher.placement": bool(recipe.teacher and recipe.teacher.placement == "zero3"),
    }
    if any(uses.values()) and importlib.util.find_spec("deepspeed") is None:
        keys = " and ".join(key for key, used in uses.items() if used)
        problems.append(f"{keys}: the package deepspeed is not installed: pip install deepspeed, or shard nothing")
    return problems


@dataclass(frozen=True)
class Plan:
    """Sources and numbers of a run, all in steps.

    Attributes:
        total_steps: optimizer steps of the run.
        evaluate_every, checkpoint_every, log_every: intervals in steps, at least 1.
    """

    recipe: Recipe
    train_source: Source
    eval_source: Source | None
    order: Order
    total_steps: int
    evaluate_every: int
    checkpoint_every: int
    log_every: int

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train_source.classes

    def inputs(self) -> dict[str, str | int]:
        """What the data came to, for a continuation to compare: another root must hold the same data."""
        labels = hashlib.sha256(self.train_source.labels.tobytes())
        return {
            "training images": len(self.train_source),
            "evaluation images": len(self.eval_source) if self.eval_source else 0,
            "classes (SHA-256)": hashlib.sha256("\n".join(self.classes).encode()).hexdigest(),
            "training labels (SHA-256)": labels.hexdigest(),
            "steps": self.total_steps,
        }

    @property
    def output(self) -> Path:
        return Path(self.recipe.output_dir).expanduser()


def make_plan(recipe: Recipe) -> Plan:
    """Open the sources and turn every duration into steps.

    Raises:
        InputError: data that is missing or does not fit, with the key or path; settings that cannot be had here.
    """
    if problems := setting_problems(recipe):
        raise InputError("\n".join(problems))
    root = Path(recipe.data.root).expanduser()
    train_source = open_source(recipe.data.train, root)
    eval_source = open_source(recipe.data.eval, root, "data.eval") if recipe.data.eval else None
    if eval_source is not None:
        same_classes(train_source.classes, eval_source.classes)
    subset = (
        stratified_subset(train_source.labels, recipe.data.fraction, recipe.seed) if recipe.data.fraction < 1 else None
    )
    order = Order(len(train_source), recipe.train.batch_size_global, recipe.seed, recipe.data.augment.repeats, subset)

    def steps(duration: DurationValue) -> int:
        return duration.steps(steps_per_epoch=order.steps_per_epoch, batch_size_global=recipe.train.batch_size_global)

    total_steps = steps(recipe.train.budget)
    if total_steps < 1:
        raise InputError(f"train.budget {recipe.train.budget} comes to no step at all on {order.num_samples} images")
    return Plan(
        recipe=recipe,
        train_source=train_source,
        eval_source=eval_source,
        order=order,
        total_steps=total_steps,
        evaluate_every=max(1, steps(recipe.evaluate.every)),
        checkpoint_every=max(1, steps(recipe.checkpoint.every)),
        log_every=max(1, steps(recipe.log.every)),
    )


def same_classes(train: tuple[str, ...], other: tuple[str, ...]) -> None:
    """Raises InputError when two class lists differ, naming the first difference."""
    if train == other:
        return
    missing, extra = sorted(set(train) - set(other)), sorted(set(other) - set(train))
    if missing or extra:
        what = "; ".join(
            f"{len(names)} only in data.{where}, such as {names[0]!r}"
            for names, where in ((missing, "train"), (extra, "eval"))
            if names
        )
    else:
        what = "the same names in another order"
    raise InputError(
        f"data.train has {len(train)} classes and data.eval {len(other)}, and the lists differ: {what}. "
        "Give both the same list with data.train.classes and data.eval.classes"
    )
