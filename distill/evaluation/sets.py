"""Evaluation sets as models see them: the students' shared view, and the teacher's own."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, Self

from distill.data.augment import EvalTransform
from distill.data.loading.loader import EvalBatch, EvalLoader
from distill.data.sources import Source
from distill.engine import Engine
from distill.engine.agreement import BatchBarrier, StopRequestedError
from distill.engine.signals import Signals
from distill.evaluation.accuracy import Accuracy, Model, TeacherAnswers, evaluate
from distill.losses.teachers import Combination
from distill.models.plausible import doubts
from distill.models.teacher import Teacher
from distill.models.view import Frame
from distill.recipe import Recipe


def eval_loader(
    source: Source,
    frame: Frame,
    engine: Engine,
    *,
    batch_size: int,
    num_workers: int | None,
    unreadable: Literal["error", "skip"],
) -> EvalLoader:
    """This process's part of an evaluation set, as models of one frame see it."""
    return EvalLoader(
        source,
        EvalTransform(**vars(frame)),
        batch_size=batch_size,
        rank=engine.rank,
        world_size=engine.world_size,
        num_workers=decoders(num_workers),
        device=engine.device,
        unreadable=unreadable,
    )


def decoders(num_workers: int | None) -> int:
    """The number of decoding processes: as given, or this process's share of the cores."""
    if num_workers is not None:
        return num_workers
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(16, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


class AwaitedBatches:
    """The batches of an evaluation, each after the barrier.

    Iteration raises StopRequestedError on all ranks if one gets a signal while another waits for
    its batch.
    """

    def __init__(self, loader: EvalLoader, barrier: BatchBarrier) -> None:
        self._loader, self._barrier = loader, barrier

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[EvalBatch]:
        batches = iter(self._loader)
        for _ in range(len(self)):
            if not self._barrier.wait():
                raise StopRequestedError
            yield next(batches)


class EvaluationSet:
    """A run's evaluation set in the students' view, and once in that of each teacher that has
    another.

    Args:
        teachers: those that have classes.
        compared: what each student is compared with.
    """

    def __init__(
        self,
        source: Source,
        frame: Frame,
        teachers: Mapping[str, Teacher],
        compared: Mapping[str, Combination],
        engine: Engine,
        recipe: Recipe,
        labelled: bool,
    ) -> None:
        self._labelled = labelled
        self._source, self._teachers, self._engine, self._recipe = source, teachers, engine, recipe
        # Without labels there is nothing to measure in a teacher's own view.
        self._own_frames = {
            name: teacher.view.frame
            for name, teacher in teachers.items()
            if labelled and teacher.view.frame != frame
        }
        self._answers = TeacherAnswers(teachers, compared) if teachers else None
        self._shared = self._loader(frame)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._shared.close()

    def start(self, signals: Signals) -> None:
        """Answer these signals from now on. Collective: every rank."""
        self._signals = signals
        self._batches = self._awaited(self._shared)

    def evaluate(
        self,
        models: Mapping[str, Model],
        known: Mapping[str, Accuracy],
        check_stop: Callable[[], None],
    ) -> dict[str, Accuracy]:
        """Accuracies by name, a teacher's in its own view, as timm evaluates it. Collective: every
        rank.

        Agreement with a teacher and KL to it are measured on the students' view, resized on the
        device for the teacher. The teacher's accuracy there differs from its own, so that takes one
        more pass in a run.

        Args:
            known: of the teachers, what this run has measured before.
            check_stop: called every few batches; if it raises, the evaluation ends there.
        """
        own = {
            name: known[name]
            if name in known
            else self._of_teacher(name, self._teachers[name], frame, check_stop)
            for name, frame in self._own_frames.items()
        }
        found = evaluate(
            models, self._batches, self._engine, self._answers, check_stop, labelled=self._labelled
        )
        return found | own

    def _of_teacher(
        self, name: str, teacher: Teacher, frame: Frame, check_stop: Callable[[], None]
    ) -> Accuracy:
        with self._loader(frame) as loader:
            return evaluate(
                {name: teacher}, self._awaited(loader), self._engine, check_stop=check_stop
            )[name]

    def _awaited(self, loader: EvalLoader) -> AwaitedBatches:
        may_wait = bool(self._source.shards)
        return AwaitedBatches(
            loader, BatchBarrier(loader, self._engine, self._signals, may_wait=may_wait)
        )

    def _loader(self, frame: Frame) -> EvalLoader:
        return eval_loader(
            self._source,
            frame,
            self._engine,
            batch_size=self._recipe.evaluate.batch_size_process,
            num_workers=self._recipe.data.num_workers,
            unreadable=self._recipe.data.unreadable,
        )


def teacher_doubts(name: str, teacher: Teacher, accuracy: Accuracy | None) -> list[str]:
    """Warnings about a teacher's accuracy in its own view, a sentence each."""
    if accuracy is None or accuracy.top1 is None:
        return []
    return doubts(
        name,
        accuracy.top1,
        accuracy.num_samples,
        teacher.num_classes,
        sees=teacher.view.describe(),
        promise=teacher.promised,
    )
