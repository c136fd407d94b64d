"""Passes of models over a set of images: one for each view, at a batch size that fits."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

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
_MOST_IMAGES = 65536  # in a batch


@dataclass(frozen=True)
class Settings:
    """How images are evaluated.

    Attributes:
        batch_size: of each process; None: the largest power of two that fits, up to 1,024.
        num_workers: decoding processes; None: this process's share of the cores.
        unreadable: what to do with an image that cannot be read.

    Raises:
        InputError: a value is not one of these: Python does not check what the command line does.
    """

    batch_size: int | None = 256
    num_workers: int | None = None
    unreadable: Unreadable = "error"

    def __post_init__(self) -> None:
        size, workers = self.batch_size, self.num_workers
        if size is not None and not (isinstance(size, int) and 1 <= size <= _MOST_IMAGES):
            raise InputError(
                f"--batch-size {size}: give a number from 1 to {_MOST_IMAGES}, or auto"
                " (in Python: None)"
            )
        if workers is not None and not (isinstance(workers, int) and workers >= 0):
            raise InputError(f"--num-workers {workers}: give a number of processes, 0 or more")
        known = get_args(Unreadable)
        if self.unreadable not in known:
            raise InputError(f"--unreadable {self.unreadable}: should be one of {', '.join(known)}")


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
        # The models of each view; the last one may be that of the teacher alone.
        self._models: dict[Frame, dict[str, Model]] = {}
        self._teacher = place_teacher(teacher, engine)
        self._teacher_logits = (
            None
            if teacher_logits is None
            else torch.as_tensor(teacher_logits, device=engine.device)
        )
        self._batch_size = settings.batch_size
        for each in found:
            network = engine.place(Network(each.net, each.pixels)).eval()
            self._models.setdefault(each.view.frame, {})[each.name] = network
            self._refuse_other_size(each, network)
        if teacher is not None:
            self._models.setdefault(teacher.view.frame, {})

    def _refuse_other_size(self, found: Found, network: Model) -> None:
        """Raise InputError if a model does not take images of its view's size."""
        try:
            self._forward(found.view.frame, [network], 1)
        except (AssertionError, RuntimeError, ValueError) as error:  # of timm and torch
            if is_out_of_memory(error):
                return  # the pass says so
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"--image-size: the model does not take images of {found.view.image_size} px"
                f" ({reason}): give another size"
            ) from error

    def answers(self, source: Source, choices: Choices | None = None) -> Answers:
        """Run all models over a set, and the teacher in its own view. Collective: every rank.

        Raises:
            InputError: the batch does not fit on the device; images that cannot be read.
        """
        choices = {ALL_CLASSES: None} if choices is None else choices
        of: dict[tuple[str, str], Predictions] = {}
        speeds: dict[str, float] = {}
        for frame in self._models:
            found, seconds = self._pass(source, frame, choices, self._size_for(source))
            of |= found
            images_per_s = len(source) / max(seconds, 1e-9)
            speeds |= dict.fromkeys((name for name, _ in found), images_per_s)
        return Answers(of, speeds, self._size_for(source))

    def _pass(
        self, source: Source, frame: Frame, choices: Choices, batch_size: int
    ) -> tuple[dict[tuple[str, str], Predictions], float]:
        """Return the predictions of one pass, and its seconds."""
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
                    self._models[frame],
                    loader,
                    self._engine,
                    teacher=None if self._teacher is None else self._answer_of_teacher,
                    teacher_rows=self._teacher is not None and self._teacher.view.frame == frame,
                    choices=choices,
                )
                return found, time.perf_counter() - start
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
        fits = self._largest_size(frame, batch_size // 2)
        automatic = self._settings.batch_size is None
        if fits and automatic and self._engine.world_size == 1:
            # The trial keeps no results and decodes no images, so that it needs less memory.
            self._batch_size = fits
            return self._pass(source, frame, choices, fits)
        if fits:
            advice = f"--batch-size {fits} does" + ("" if automatic else " (auto finds it)")
        else:
            advice = "not even one image does: use a device with more memory, or bf16"
        raise InputError(
            f"--batch-size {batch_size}: does not fit into the memory of"
            f" {self._engine.device}; {advice}"
        )

    def _answer_of_teacher(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, K] of the teacher, in the models' classes."""
        assert self._teacher is not None
        logits: torch.Tensor = self._teacher(images)
        return logits if self._teacher_logits is None else logits[:, self._teacher_logits]

    def _size_for(self, source: Source) -> int:
        """The batch size of each process, not larger than its part of the set."""
        most = -(-len(source) // self._engine.world_size)
        if self._batch_size is None:
            first = min(_LARGEST_BATCH, most)
            fits = min(self._largest_size(frame, first) for frame in self._models)
            common = -self._engine.max_(torch.tensor([-fits], device=self._engine.device)).item()
            if common < 1:
                raise InputError(
                    f"--batch-size auto: not even one image fits into the memory of"
                    f" {self._engine.device}: use a device with more memory, or bf16"
                )
            self._batch_size = int(common)
        return min(self._batch_size, most)

    def _largest_size(self, frame: Frame, first: int) -> int:
        """The largest of `first`, half of it, ... at which the models of a view fit."""
        models = list(self._models[frame].values())
        if self._teacher is not None:
            models.append(self._answer_of_teacher)
        return largest_that_fits(lambda size: self._forward(frame, models, size), first)

    def _forward(self, frame: Frame, models: Sequence[Model], size: int) -> None:
        """Run a batch of black images through models."""
        images = torch.zeros(
            size, 3, frame.image_size, frame.image_size, device=self._engine.device
        ).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), self._engine.autocast():
            for model in models:
                model(images)


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
