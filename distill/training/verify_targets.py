"""The store of a run at its start, and its rows compared with what the live teacher says."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from distill.data.loading.loader import RankSlice
from distill.data.targets import PRE_LOGITS, TargetStore, draw_keys, gaps
from distill.engine import Engine, check_launch
from distill.errors import InputError
from distill.models.teacher import Teacher
from distill.recipe import Recipe
from distill.recipe.teachers import TEACHER
from distill.training import header
from distill.training.build import (
    Models,
    batch_loader,
    build_engine,
    rank_slice,
)
from distill.training.plan import Plan, make_plan
from distill.training.share import Share
from distill.training.stored_targets import StoredTargets, asked
from distill.training.targets import (
    FORWARD,
    check_targets,
    open_targets,
    refuse_other_rows,
    weights_here,
    without_repeats,
)
from distill.training.teachers import build_teachers, place_teachers

_AT_START = 32  # images of the sample with which a run starts: one forward


@dataclass(frozen=True)
class Sample:
    """A forward of the live teacher: `slots` of the batch of a step within an epoch."""

    epoch: int
    step: int
    slots: RankSlice


def verify_targets(recipe: Recipe, num_images: int, epochs: Sequence[int] = ()) -> None:
    """Compare rows of the store that `targets` names with the live teacher, in forwards of as many
    images as those that wrote them.

    Args:
        num_images: at least; spread evenly over the epochs.
        epochs: ascending, counted from 0; none: all that the store has in full.

    Raises:
        InputError: the store is of something else or has no epoch in full; a row differs by more
            than rounding; there are several processes.
    """
    if check_launch(dict(os.environ), precision=recipe.train.precision, zero_stage=0) > 1:
        raise InputError("--verify: runs in one process: start it without accelerate launch")
    plan = make_plan(without_repeats(recipe))
    header.show_data(plan)
    store = open_targets(plan)
    teacher = _teacher(plan)
    header.show_views([f"{TEACHER} sees {teacher.view.describe()}", *teacher.notes])
    engine, failed = build_engine(plan), True
    try:
        refuse_other_rows(store, plan)
        record = teacher.record["sha256"]
        if store.teacher["record"]["sha256"] != record:
            raise InputError(
                f"targets: {store.folder} is of a teacher with other weights"
                f" ({store.teacher['record']['sha256']}, and here {record}): put the earlier"
                " weights back, or write another store with distill targets"
            )
        if store.rows.kind == PRE_LOGITS:
            store.read_head()
        samples = _spread(store, _epochs(store, epochs), num_images)
        place_teachers({TEACHER: teacher}, engine, plan.recipe.teacher_rows)
        header.show("verified", _compare(store, plan, teacher, engine, samples))
        failed = False
    finally:
        engine.close(failed)


def start_targets(models: Models, plan: Plan, share: Share, engine: Engine) -> StoredTargets | None:
    """Check the store of a run, and return its part of this process; None without a store.
    Collective: every rank.

    Raises:
        InputError: its rows are not those of the run, or some are missing.
    """
    store = models.store
    if store is None:
        return None

    def check() -> str | None:
        check_targets(store, plan)
        if store.rows.kind == PRE_LOGITS:
            store.read_head()  # a damaged one is named once, by the main process
        return _verify_start(store, plan, engine)

    if found := engine.on_main(check):
        header.show("verified", found)
    head = None
    if store.rows.kind == PRE_LOGITS:
        head = {name: tensor.to(engine.device) for name, tensor in store.read_head().items()}
    distinct = plan.recipe.data.distinct_epochs
    return StoredTargets(store, rank_slice(share, engine), engine.device, distinct, head)


def _verify_start(store: TargetStore, plan: Plan, engine: Engine) -> str | None:
    """Compare the first rows of a run with the live teacher, if the file of its weights is on this
    machine and each process may hold the whole teacher. The main process alone calls this.

    Returns:
        What was verified, for the header.

    Raises:
        InputError: a row differs by more than rounding.
    """
    spec = plan.recipe.teacher
    assert spec is not None
    if weights_here(spec) is None or spec.placement != "replicated":
        return None
    teacher = _teacher(plan)
    weights = sum(each.nbytes for each in (*teacher.parameters(), *teacher.buffers()))
    free = engine.free_memory_bytes()
    if free is not None and free < 2 * weights:
        return None
    engine.place(teacher)
    forward = store.teacher[FORWARD]
    pairs = 2 if forward % 2 == 0 else 1  # mixed images come in pairs
    size = max(
        each
        for each in range(pairs, max(min(_AT_START, forward), pairs) + 1, pairs)
        if forward % each == 0
    )
    num_parts = store.batch_size_global // size
    sample = Sample(0, 0, RankSlice(0, num_parts, size, 1))
    return _compare(store, plan, teacher, engine, [sample])


def _teacher(plan: Plan) -> Teacher:
    live = replace(plan, recipe=plan.recipe.model_copy(update={"targets": None}))
    return build_teachers(live, Path())[TEACHER]


def _epochs(store: TargetStore, wanted: Sequence[int]) -> Sequence[int]:
    """Return the epochs to verify.

    Raises:
        InputError: one is not stored in full, or none is.
    """
    there = store.complete_epochs
    if missing := [epoch + 1 for epoch in wanted if epoch not in there]:
        raise InputError(f"--epochs {missing[0]}: {store.folder} does not have it in full")
    if not there:
        raise InputError(
            f"targets: {store.folder} has no epoch in full: write them with distill targets RECIPE"
        )
    return wanted or there


def _spread(store: TargetStore, epochs: Sequence[int], num_images: int) -> Iterator[Sample]:
    """Yield forwards of at least so many images, evenly from the first to the last of the epochs,
    or all of them.
    """
    size = store.teacher[FORWARD]
    per_step = store.batch_size_global // size
    per_epoch = store.steps_per_epoch * per_step
    total = per_epoch * len(epochs)
    wanted = min(-(-num_images // size), total)
    for number in np.linspace(0, total - 1, wanted).astype(int).tolist():
        place, forward = divmod(number, per_epoch)
        step, part = divmod(forward, per_step)
        yield Sample(epochs[place], step, RankSlice(part, per_step, size, 1))


def _compare(
    store: TargetStore, plan: Plan, teacher: Teacher, engine: Engine, samples: Iterable[Sample]
) -> str:
    """Compare samples in order and return what was found.

    Raises:
        InputError: names the first row that differs by more than rounding.
    """
    dtype = plan.recipe.teacher_rows[TEACHER].dtype
    num_images = num_same = 0
    largest = 0.0
    for sample in samples:
        slots = sample.slots.slots(0)
        images = _images(plan, sample, store.steps_per_epoch, engine.device)
        live = asked(teacher, store.rows, images)
        stored = store.rows_at(sample.epoch, sample.step, slots)
        rows = sample.step * store.batch_size_global + slots
        keys = draw_keys(plan.recipe.seed, sample.epoch, rows)
        found = gaps(store.rows, stored, live, dtype, keys)
        wrong = ~(found.gap <= found.allowed)
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            raise InputError(
                f"targets: {store.folder}: row {rows[at]} of epoch {sample.epoch + 1} is not what"
                " the teacher says of this image: a number differs by"
                f" {float(found.gap[at]):.3g}, and rounding explains"
                f" {float(found.allowed[at]):.2g}. The images, the teacher or the code of its model"
                " have changed: write another store with distill targets RECIPE targets=FOLDER"
            )
        num_images += len(slots)
        num_same += int(found.same.sum())
        largest = max(largest, float(found.gap.max()))
    same = "all" if num_same == num_images else f"{num_same:,} of them"
    return (
        f"{num_images:,} images of the store against the teacher: {same} bit for bit; numbers"
        f" differ by at most {largest:.2g}"
    )


def _images(plan: Plan, sample: Sample, steps_per_epoch: int, device: torch.device) -> torch.Tensor:
    """Return the images of a sample, decoded in this process."""
    stage = plan.stages[0]
    data = stage.recipe.data.model_copy(update={"num_workers": 0})
    stage = replace(stage, recipe=stage.recipe.model_copy(update={"data": data}))
    step = sample.epoch * steps_per_epoch + sample.step
    with batch_loader(plan, stage, sample.slots, device, step, step + 1) as batches:
        return next(batches).images
