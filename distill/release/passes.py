"""Passes of models over a set of images: one for each view, at a batch size that fits."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from distill.data.sources import Source
from distill.engine import Engine
from distill.errors import InputError
from distill.evaluation.accuracy import Model
from distill.evaluation.predictions import ALL_CLASSES, Choices, Predictions, predict
from distill.evaluation.sets import eval_loader
from distill.models.pixels import Network
from distill.models.teacher import Teacher
from distill.models.view import Frame
from distill.release.find import Found
from distill.training.teachers import place_teacher

Unreadable = Literal["error", "skip"]
# The first batch size that --batch-size auto tries.
_LARGEST_BATCH = 1024


@dataclass(frozen=True)
class Settings:
    """How images are evaluated.

    Attributes:
        batch_size: of each process; None: the largest power of two that fits, up to 1,024.
        num_workers: decoding processes; None: this process's share of the cores.
        unreadable: what to do with an image that cannot be read.
    """

    batch_size: int | None = 256
    num_workers: int | None = None
    unreadable: Unreadable = "error"


@dataclass(frozen=True)
class Answers:
    """The predictions of several models for one set.

    Attributes:
        of: (model, choice of logits) -> its predictions.
        images_per_s: model -> the speed of its pass, over all processes.
        batch_size: of each process.
    """

    of: dict[tuple[str, str], Predictions]
    images_per_s: dict[str, float]
    batch_size: int


class Evaluator:
    """Models on the device, and a teacher to compare them with. Collective: every rank."""

    def __init__(
        self,
        found: list[Found],
        teacher: Teacher | None,
        engine: Engine,
        settings: Settings,
        teacher_logits: Sequence[int] | None = None,
    ) -> None:
        """Place the models on the device.

        Args:
            teacher_logits: the teacher's logit of each class of the models; None where their
                classes are the same in the same order.
        """
        self._engine, self._settings = engine, settings
        self._views = {each.name: each.view.frame for each in found}
        self._networks = {
            each.name: engine.place(Network(each.net, each.pixels)).eval() for each in found
        }
        self._teacher = place_teacher(teacher, engine)
        self._teacher_logits = (
            None
            if teacher_logits is None
            else torch.as_tensor(teacher_logits, device=engine.device)
        )
        self._batch_size = settings.batch_size
        for each in found:
            self._refuse_other_size(each)

    def _refuse_other_size(self, found: Found) -> None:
        """Raise InputError if a model does not take images of its view's size."""
        try:
            self._forward(found.view.frame, {found.name: self._networks[found.name]}, 1)
        except AssertionError as error:  # timm's
            raise InputError(
                f"--image-size: the model does not take images of {found.view.image_size} px"
                f" ({error}): give another size"
            ) from error

    def answers(self, source: Source, choices: Choices | None = None) -> Answers:
        """Run all models over a set, and the teacher in its own view. Collective: every rank.

        Raises:
            InputError: the batch does not fit on the device; images that cannot be read.
        """
        choices = {ALL_CLASSES: None} if choices is None else choices
        of: dict[tuple[str, str], Predictions] = {}
        speeds: dict[str, float] = {}
        frames = list(dict.fromkeys(self._views.values()))
        batch_size = self._size_for(source, frames)
        for frame in frames:
            models: dict[str, Model] = {
                name: network
                for name, network in self._networks.items()
                if self._views[name] == frame
            }
            own = self._teacher is not None and self._teacher.view.frame == frame
            self._pass(source, frame, models, own, choices, batch_size, of, speeds)
        if self._teacher is not None and self._teacher.view.frame not in frames:
            frame = self._teacher.view.frame
            self._pass(source, frame, {}, True, choices, batch_size, of, speeds)
        return Answers(of, speeds, batch_size)

    def _pass(
        self,
        source: Source,
        frame: Frame,
        models: dict[str, Model],
        teacher_rows: bool,
        choices: Choices,
        batch_size: int,
        of: dict[tuple[str, str], Predictions],
        speeds: dict[str, float],
    ) -> None:
        """Add the predictions of one pass and its speed."""
        teacher = None if self._teacher is None else self._answer_of_teacher
        with eval_loader(
            source,
            frame,
            self._engine,
            batch_size=batch_size,
            num_workers=self._settings.num_workers,
            unreadable=self._settings.unreadable,
        ) as loader:
            start = time.perf_counter()
            try:
                found = predict(
                    models,
                    loader,
                    self._engine,
                    teacher=teacher,
                    teacher_rows=teacher_rows,
                    choices=choices,
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                fits = None
            else:
                fits = batch_size
            seconds = time.perf_counter() - start
        if fits is None:
            fits = largest_that_fits(
                lambda size: self._forward(frame, models, size), batch_size // 2
            )
            advice = f"--batch-size {fits} does" if fits else "not even one image does"
            raise InputError(
                f"--batch-size {batch_size}: does not fit into the memory of"
                f" {self._engine.device}; {advice}"
                + (" (auto finds it)" if fits else ": use a device with more memory, or bf16")
            )
        of |= found
        speeds |= dict.fromkeys((name for name, _ in found), len(source) / max(seconds, 1e-9))

    def _answer_of_teacher(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, K] of the teacher, in the models' classes."""
        assert self._teacher is not None
        logits: torch.Tensor = self._teacher(images)
        return logits if self._teacher_logits is None else logits[:, self._teacher_logits]

    def _size_for(self, source: Source, frames: list[Frame]) -> int:
        """The batch size of each process, not larger than its part of the set."""
        most = -(-len(source) // self._engine.world_size)
        if self._batch_size is None:
            fits = min(
                largest_that_fits(
                    lambda size, frame=frame: self._forward(  # type: ignore[misc]
                        frame,
                        {n: m for n, m in self._networks.items() if self._views[n] == frame},
                        size,
                    ),
                    min(_LARGEST_BATCH, most),
                )
                for frame in frames
            )
            common = -self._engine.max_(torch.tensor([-fits], device=self._engine.device)).item()
            if common < 1:
                raise InputError(
                    f"--batch-size auto: not even one image fits into the memory of"
                    f" {self._engine.device}: use a device with more memory, or bf16"
                )
            self._batch_size = int(common)
        return min(self._batch_size, most)

    def _forward(self, frame: Frame, models: dict[str, Model], size: int) -> None:
        """Run a batch of black images through the models, to see whether it fits."""
        images = torch.zeros(
            size, 3, frame.image_size, frame.image_size, device=self._engine.device
        ).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), self._engine.autocast():
            for model in models.values():
                model(images)
            if self._teacher is not None:
                self._answer_of_teacher(images)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the memory of the device or of this machine is full."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def largest_that_fits(forward: Callable[[int], None], first: int) -> int:
    """Return the largest of `first`, half of it, ... for which `forward` has enough memory; 0 for
    none.
    """
    size = first
    while size:
        try:
            forward(size)
            return size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size //= 2
    return 0
