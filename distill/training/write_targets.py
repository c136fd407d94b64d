"""Write what the teacher of a recipe says of every image of some epochs.

Each process forwards whole shards of the store by itself, in forwards of the recipe's micro-batch,
so that a row is the same on any number of processes. After each shard they exchange how far they
are and whether to stop. A shard is written in one step, and shards that are there are not computed
again.
"""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.checkpoint.lock import FolderLock
from distill.console import hours_minutes
from distill.data.loading.loader import Batch, RankSlice
from distill.data.targets import (
    ALL,
    PRE_LOGITS,
    Keep,
    RowFormat,
    ShardKey,
    TargetStore,
    draw_keys,
    steps_per_shard,
)
from distill.engine import Engine, check_launch
from distill.engine.signals import Signals
from distill.errors import InputError
from distill.models.head import head_of
from distill.models.teacher import Teacher
from distill.recipe import Recipe
from distill.recipe.teachers import TEACHER
from distill.training import header
from distill.training.build import batch_loader, build_engine, refuse_other_commits
from distill.training.plan import Plan, make_plan
from distill.training.prepare_targets import prepare_store
from distill.training.stored_targets import asked
from distill.training.targets import (
    FORWARD,
    identity_of,
    notes_on_rows,
    refuse_unserved,
    store_folder,
    without_repeats,
)
from distill.training.teachers import build_teachers, place_teachers

DEFAULT_KEEP = 14  # 48 bytes an image at 1,000 classes
INTERRUPTED = 75  # as of a run
# Micro-batches after the first one, whose pace gives the hours: the first waits for the workers.
_PACED = 3
_REPORT_EVERY_S = 30.0


def write_targets(
    recipe: Recipe,
    *,
    keep: Keep | None = None,
    num_draws: int | None = None,
    epochs: Sequence[int] = (),
) -> int:
    """Write the rows of some epochs into the folder that `targets` names. The same call resumes,
    and writes damaged shards again.

    Args:
        keep: what is kept of each image; None: 14 logits, or all of at most 14 classes.
        num_draws: how many classes are drawn from the other logits; None for none.
        epochs: ascending, counted from 0; none: those of the budget that differ.

    Returns:
        0 (done), or 75 (stopped by a signal).

    Raises:
        InputError: recipe, data or teacher do not fit, the folder has another store, or the disk is
            too small.
    """
    folder = store_folder(recipe)
    _refuse_settings(recipe)
    check_launch(dict(os.environ), precision=recipe.train.precision, zero_stage=0)
    with Signals() as signals:
        plan = make_plan(without_repeats(recipe).model_copy(update={"targets": None}))
        header.show_data(plan)
        teacher = build_teachers(plan, Path())[TEACHER]
        if not teacher.has_classes:
            raise InputError(
                f"teacher: {teacher.source} has no classifier, so that there are no logits to"
                " store: name a teacher with classes"
            )
        header.show_views([f"{TEACHER} sees {teacher.view.describe()}", *teacher.notes])
        if keep is None:
            keep = ALL if len(plan.classes) <= DEFAULT_KEEP else DEFAULT_KEEP
        dtype = plan.recipe.teacher_rows[TEACHER].dtype
        head, width = None, None
        if keep == PRE_LOGITS:
            head = head_of(teacher.net, teacher.view.image_size, f"teacher: {teacher.source}")
            width = head["weight"].shape[1]
        rows = RowFormat.chosen(keep, len(plan.classes), dtype, num_draws, width)
        refuse_unserved(rows, recipe, f"--keep {keep}" + (" --sampled" if num_draws else ""))
        for note in notes_on_rows(rows, recipe):
            header.show("note", note)
        stage = plan.stages[0]
        if not epochs:
            num_epochs = -(-stage.last_step // stage.order.steps_per_epoch)
            epochs = range(min(num_epochs, recipe.data.distinct_epochs or num_epochs))
        engine = build_engine(plan)
        lock, failed = FolderLock(), True
        try:
            refuse_other_commits(engine)
            work = engine.on_main(
                lambda: prepare_store(_new_store(folder, plan, rows, teacher), epochs, lock, head)
            )
            store = TargetStore.from_manifest(folder, work.manifest)
            code = 0
            if work.shards:
                place_teachers({TEACHER: teacher}, engine, plan.recipe.teacher_rows)
                writer = Writer(plan, store, teacher, engine, signals)
                code = writer.write(work.shards)
            failed = False
            return code
        finally:
            lock.release()
            engine.close(failed)


def _refuse_settings(recipe: Recipe) -> None:
    """Raises InputError for what training takes and the writer does not."""
    assert recipe.teacher is not None, "the schema refuses this"
    if recipe.teacher.placement != "replicated":
        raise InputError(
            f"teacher.placement: {recipe.teacher.placement}, and each process asks the whole"
            " teacher for rows of its own: set teacher.placement: replicated and teacher.offload:"
            " false"
        )


def _new_store(folder: Path, plan: Plan, rows: RowFormat, teacher: Teacher) -> TargetStore:
    """Return the store that the recipe asks for, whether it is there or not."""
    order, size = plan.stages[0].order, plan.recipe.train.batch_size_global
    return TargetStore(
        folder,
        rows,
        size,
        order.steps_per_epoch,
        steps_per_shard(rows, size, order.steps_per_epoch),
        identity_of(plan),
        {
            "record": dict(teacher.record),
            "view": teacher.view.as_dict(),
            FORWARD: plan.recipe.train.micro_batch_size or size,
        },
    )


class Writer:
    """Writes the shards that are missing."""

    def __init__(
        self, plan: Plan, store: TargetStore, teacher: Teacher, engine: Engine, signals: Signals
    ) -> None:
        self._stage, self._plan = plan.stages[0], plan
        self._store, self._teacher = store, teacher
        self._engine, self._signals = engine, signals
        self._batch_size = size = plan.recipe.train.batch_size_global
        micro = plan.recipe.train.micro_batch_size or size
        # As a run of one process: the rows do not depend on how many write.
        self._part = RankSlice(0, 1, micro, size // micro)
        self._total = 0  # images, of all processes
        self._paced = False

    def write(self, shards: Sequence[ShardKey]) -> int:
        """Write shards: a part of them here, the others on the other processes. Collective: every
        rank.

        Returns:
            0 (done), or 75 (a process received a signal).
        """
        engine = self._engine
        parts = np.array_split(np.arange(len(shards)), engine.world_size)
        mine = [shards[index] for index in parts[engine.rank]]
        self._total = sum(len(self._store.steps_of(key)) for key in shards) * self._batch_size
        begun = reported = time.monotonic()
        num_written, made = 0, self._shards(mine)
        for _ in range(len(parts[0])):
            if (shard := next(made, None)) is not None:
                key, rows = shard
                self._store.write(key, rows)
                num_written += len(self._store.steps_of(key)) * self._batch_size
            stopping = self._signals.received is not None
            progress = torch.tensor([num_written, stopping], device=engine.device)
            done, stops = engine.sum_(progress).tolist()
            if stops:
                header.show(
                    "stopped",
                    f"{self._signals.received or 'a signal'}: {done:,} of {self._total:,} images"
                    " written; the same command resumes",
                )
                return INTERRUPTED
            if (now := time.monotonic()) - reported > _REPORT_EVERY_S:
                reported = now
                left = (now - begun) / done * (self._total - done) if done else 0
                header.show("", f"{done:,} of {self._total:,} images, {hours_minutes(left)} to go")
        header.show(
            "written", f"{self._total:,} images in {hours_minutes(time.monotonic() - begun)}"
        )
        return 0

    def _shards(self, keys: Sequence[ShardKey]) -> Iterator[tuple[ShardKey, dict[str, Tensor]]]:
        """Yield the rows of each shard, with one loader for shards that follow each other. Ends
        early at a signal.
        """
        per_epoch = self._store.steps_per_epoch
        for run in _consecutive(self._store, keys):
            counts = [len(self._store.steps_of(key)) for key in run]
            first = run[0].epoch * per_epoch + self._store.steps_of(run[0]).start
            with batch_loader(
                self._plan,
                self._stage,
                self._part,
                self._engine.device,
                first,
                first + sum(counts),
            ) as batches:
                for key, count in zip(run, counts, strict=True):
                    rows = self._rows(batches, count * self._part.accumulation)
                    if rows is None:
                        return
                    yield key, rows

    def _rows(self, batches: Any, num_batches: int) -> dict[str, Tensor] | None:
        """Return the rows of the next micro-batches; None after a signal."""
        found: list[dict[str, Tensor]] = []
        begun = 0.0
        for number in range(num_batches):
            if self._signals.received is not None:
                return None
            batch = next(batches)
            numbers = asked(self._teacher, self._store.rows, batch.images)
            found.append(self._store.rows.encode(numbers, self._keys(batch)))
            if number == 0:
                begun = time.monotonic()
            elif not self._paced and number == min(_PACED, num_batches - 1):
                self._paced = True
                self._show_pace(number / (time.monotonic() - begun))
        return {name: torch.cat([each[name] for each in found]) for name in found[0]}

    def _keys(self, batch: Batch) -> np.ndarray:
        """Return the keys of the rows of a micro-batch."""
        epoch, step = divmod(batch.step, self._store.steps_per_epoch)
        rows = step * self._batch_size + self._part.slots(batch.micro)
        return draw_keys(self._plan.recipe.seed, epoch, rows)

    def _show_pace(self, batches_per_s: float) -> None:
        pace = batches_per_s * self._part.micro_batch * self._engine.world_size
        header.show(
            "time",
            f"about {self._total / pace / 3600:.2g} hours, at {pace:,.0f} images/s on"
            f" {self._engine.world_size} x {self._engine.device_name()}",
        )


def _consecutive(store: TargetStore, keys: Sequence[ShardKey]) -> Iterator[list[ShardKey]]:
    """Yield the runs of shards that follow each other without a gap, also across epochs."""
    run: list[ShardKey] = []
    for key in keys:
        if run and key != store.next_shard(run[-1]):
            yield run
            run = []
        run.append(key)
    if run:
        yield run
