"""Exact evaluation: every sample counts once, for any number of processes and any size of the set.

Teacher, students and their averages share one pass: each image is decoded once, and the teacher
runs once.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

import torch
from torch.nn import functional as F

from distill.data.loading.loader import EvalBatch
from distill.engine import Engine
from distill.errors import InputError
from distill.losses.kl import divergence
from distill.losses.teachers import Combination, combined_logits
from distill.recipe.teachers import TEACHER as TEACHER

Model = Callable[[torch.Tensor], torch.Tensor]

_CACHE_LIMIT_BYTES = 1 << 30
# Batches between two calls of check_stop, each a message of some bytes: a few seconds with a large
# teacher.
_CHECK_STOP_EVERY = 4


class EvalBatches(Protocol):
    """Batches of an evaluation set; the same number on every rank."""

    def __iter__(self) -> Iterator[EvalBatch]: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of one model on a set.

    Attributes:
        top1, top5: percent of the samples; top-5 means all classes when there are fewer than five.
            None without labels.
        loss: mean cross-entropy in nats; None without labels.
        agreement: percent of the samples where the model and the teacher name the same class.
        teacher_kl: mean KL(teacher || model) in nats at temperature 1.
        num_samples: images evaluated.
        num_skipped: unreadable images left out.
    """

    top1: float | None
    top5: float | None
    loss: float | None
    num_samples: int
    num_skipped: int = 0
    agreement: float | None = None
    teacher_kl: float | None = None

    @classmethod
    def from_dict(cls, figures: Mapping[str, Any]) -> Self:
        """Return what `as_dict` returned."""
        return cls(**{**dict.fromkeys(("top1", "top5", "loss")), **figures})

    @property
    def finite(self) -> bool:
        """Whether the logits were finite, as far as the loss shows it, or without labels the KL."""
        shown = self.loss if self.loss is not None else self.teacher_kl
        return shown is not None and math.isfinite(shown)

    def as_dict(self) -> dict[str, float]:
        """The figures that are known, for metrics and reports."""
        return {key: value for key, value in asdict(self).items() if value is not None}


class TeacherAnswers:
    """The logits of frozen teachers on an evaluation set, kept in host memory if they are small.

    Args:
        teachers: by the names of their rows.
        compared: for each student, by name, what it is compared with; of a student that is not
            here, the only teacher.
    """

    def __init__(
        self, teachers: Mapping[str, Model], compared: Mapping[str, Combination] | None = None
    ) -> None:
        self._teachers = teachers
        self._compared = compared or {}
        self._cached: list[dict[str, torch.Tensor]] = []
        self._complete = False

    @property
    def names(self) -> tuple[str, ...]:
        """The rows of the teachers."""
        return tuple(self._teachers)

    def answers(self, index: int, batch: EvalBatch, num_batches: int) -> dict[str, torch.Tensor]:
        """Logits [B, K] of batch `index` of the pass, by teacher."""
        if self._complete:
            device = batch.images.device
            return {
                name: logits.to(device, non_blocking=True)
                for name, logits in self._cached[index].items()
            }
        if index == 0:
            self._cached.clear()  # of a pass that was interrupted
        found = {name: teacher(batch.images) for name, teacher in self._teachers.items()}
        size = sum(logits.numel() * logits.element_size() for logits in found.values())
        if size * num_batches <= _CACHE_LIMIT_BYTES:
            self._cached.append({name: logits.cpu() for name, logits in found.items()})
            self._complete = index == num_batches - 1
        return found

    def references(
        self, models: Iterable[str], answers: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return the logits [B, K] float32 that each model is compared with. Models of the same
        combination share them.
        """
        (one,) = answers if len(answers) == 1 else (TEACHER,)
        usual = Combination(((one, 1.0),))
        found: dict[Combination, torch.Tensor] = {}
        result = {}
        for name in models:
            how = self._compared.get(name.partition("/")[0], usual)
            if how not in found:
                logits = [answers[row].float() for row, _ in how.weights]
                weights = [weight for _, weight in how.weights]
                found[how] = combined_logits(logits, weights, how.how, how.temperature)
            result[name] = found[how]
        return result


@torch.no_grad()
def evaluate(
    models: Mapping[str, Model],
    batches: EvalBatches,
    engine: Engine,
    teacher: TeacherAnswers | None = None,
    check_stop: Callable[[], None] | None = None,
    *,
    labelled: bool = True,
) -> dict[str, Accuracy]:
    """Evaluate all models, and each teacher under its own name, in one pass. Collective: every
    rank.

    Args:
        models: name -> images [B, 3, H, W] in [0, 1] -> logits [B, K]; in evaluation mode.
        batches: the set; yields the same number of batches on every rank.
        engine: processes and precision.
        teacher: adds rows of the teachers, and agreement with them and KL to them.
        check_stop: called every few batches, at the same ones on every rank; if it raises, the
            evaluation ends there.
        labelled: the labels are classes of the models; else only `teacher` is compared with.

    Raises:
        InputError: all images were unreadable and skipped, on every rank.
    """
    names = [*models, *(teacher.names if teacher else ())]
    # columns: top-1, top-5, cross-entropy, agreement, KL to the teacher
    sums = torch.zeros(len(names), 5, dtype=torch.float64, device=engine.device)
    counts = torch.zeros(2, dtype=torch.float64, device=engine.device)
    for index, batch in enumerate(batches):
        if check_stop and index % _CHECK_STOP_EVERY == 0:
            check_stop()
        counts[0] += batch.valid.sum()
        counts[1] += batch.num_skipped
        answers = teacher.answers(index, batch, len(batches)) if teacher else {}
        compared = teacher.references(models, answers) if teacher else {}
        for row, name in enumerate(names):
            if name in answers:
                logits = answers[name]
            else:
                with engine.autocast():
                    logits = models[name](batch.images)
            labels = batch.labels if labelled else None
            sums[row] += _score(logits.float(), compared.get(name), labels, batch.valid)
    engine.sum_(sums)
    engine.sum_(counts)
    num_samples, num_skipped = (round(value) for value in counts.tolist())
    if num_skipped and not num_samples:
        raise InputError(
            f"all {num_skipped} images to evaluate on are unreadable: where unreadable is error "
            "(data.unreadable, --unreadable), the first is named"
        )
    results = {}
    for name, row_sums in zip(names, sums.tolist(), strict=True):
        correct1, correct5, loss, agreed, teacher_kl = row_sums
        count = max(num_samples, 1)
        versus = (
            {"agreement": 100 * agreed / count, "teacher_kl": teacher_kl / count}
            if teacher is not None and name not in teacher.names
            else {}
        )
        results[name] = Accuracy(
            100 * correct1 / count if labelled else None,
            100 * correct5 / count if labelled else None,
            loss / count if labelled else None,
            num_samples,
            num_skipped,
            **versus,
        )
    return results


def _score(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    labels: torch.Tensor | None,
    valid: torch.Tensor,
) -> torch.Tensor:
    """[5] float64 sums over the valid samples of one batch; zeros for what is not known."""
    unknown = torch.zeros_like(logits[:, 0])
    if labels is not None:
        rank = rank_of(logits, labels)
        columns = [rank < 1, rank < 5, F.cross_entropy(logits, labels, reduction="none")]
    else:
        columns = [unknown] * 3
    if teacher_logits is not None:
        columns.append(rank_of(logits, teacher_logits.argmax(1)) < 1)
        columns.append(
            divergence(F.log_softmax(teacher_logits, dim=1), F.log_softmax(logits, dim=1))
        )
    else:
        columns += [unknown] * 2
    stacked = torch.stack([column.double() for column in columns])
    return torch.where(valid, stacked, 0).sum(1)


def rank_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[B] int64: how many classes are before the label. Of equal logits the lower index is first;
    NaN is before all.

    Half precision ties often: 1.4 % of rows of 1000 normal logits in bf16 tie at the top, and topk
    and argmax break ties differently.
    """
    own = logits.gather(1, labels[:, None])
    index = torch.arange(logits.shape[1], device=logits.device)
    before = ~(logits <= own) | ((logits == own) & (index < labels[:, None]))
    return before.sum(1)
