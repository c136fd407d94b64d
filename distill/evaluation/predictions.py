"""What models answer to each image of an evaluation set. Every figure of `distill evaluate` follows
from it on the host.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F

from distill.engine import Engine
from distill.errors import InputError
from distill.evaluation.accuracy import TEACHER, EvalBatches, Model, rank_of
from distill.losses.kl import divergence

ALL_CLASSES = ""
"""The name of the choice that leaves out no logit."""
_MOST_TOP = 5
_BASE_COLUMNS = 9


@dataclass(frozen=True)
class Predictions:
    """What a model answers to N images of a set, in the order of the set: each image once.

    Attributes:
        indices: [N] int64, of the samples in the source.
        labels: [N] int64, the logit of each sample's class.
        top: [N, min(5, K)] int64, the classes with the largest logits, the largest first; of equal
            logits the lower class is first, and NaN is before all.
        rank: [N] int64, the number of classes before the label; K for a label that is none of the
            classes compared.
        confidence: [N] float64, the probability of the first class.
        finite: [N] bool, whether no logit is NaN or +inf; where one is, no answer is right.
        loss: [N] float64, the cross-entropy in nats; NaN for a label that is none of the classes.
        agrees: [N] bool, whether model and teacher name the same class; None without a teacher.
        teacher_kl: [N] float64, KL(teacher || model) in nats at temperature 1; None without one.
        num_skipped: unreadable images that were left out.
    """

    indices: np.ndarray
    labels: np.ndarray
    top: np.ndarray
    rank: np.ndarray
    confidence: np.ndarray
    finite: np.ndarray
    loss: np.ndarray
    agrees: np.ndarray | None
    teacher_kl: np.ndarray | None
    num_skipped: int

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def first(self) -> np.ndarray:
        """[N] int64, the class that the model names."""
        return self.top[:, 0]

    @property
    def right(self) -> np.ndarray:
        """[N] bool, whether it is the label."""
        return np.asarray((self.rank < 1) & self.finite)

    def where(self, chosen: np.ndarray) -> "Predictions":
        """Return the rows of `chosen`, [N] bool."""
        return Predictions(
            self.indices[chosen],
            self.labels[chosen],
            self.top[chosen],
            self.rank[chosen],
            self.confidence[chosen],
            self.finite[chosen],
            self.loss[chosen],
            None if self.agrees is None else self.agrees[chosen],
            None if self.teacher_kl is None else self.teacher_kl[chosen],
            self.num_skipped,
        )


Choices = Mapping[str, Sequence[int] | None]
"""Names of choices among the logits, compared before the largest one is taken; None: all."""
_EVERYTHING: Choices = {ALL_CLASSES: None}


@torch.inference_mode()
def predict(
    models: Mapping[str, Model],
    batches: EvalBatches,
    engine: Engine,
    *,
    teacher: Model | None = None,
    teacher_rows: bool = False,
    choices: Choices = _EVERYTHING,
) -> dict[tuple[str, str], Predictions]:
    """Run all models over a set in one pass. Collective: every rank.

    Args:
        models: name -> images [B, 3, H, W] in [0, 1] -> logits [B, K]; in evaluation mode.
        batches: the set; yields the same number of batches on every rank.
        engine: processes and precision.
        teacher: a model of the same classes to compare the others with.
        teacher_rows: also return the teacher's own predictions, under the name "teacher".
        choices: name -> logits that are compared, ascending.

    Returns:
        (model, choice) -> its predictions for all images, on every rank.

    Raises:
        InputError: all images were unreadable and skipped, on every rank.
    """
    chosen = {
        name: None if logits is None else torch.as_tensor(logits, device=engine.device)
        for name, logits in choices.items()
    }
    names = [*models, *([TEACHER] if teacher_rows else [])]
    rows: dict[tuple[str, str], list[torch.Tensor]] = {
        (name, choice): [] for name in names for choice in chosen
    }
    num_skipped = torch.zeros(1, dtype=torch.float64, device=engine.device)
    for batch in batches:
        num_skipped += batch.num_skipped
        compared = None if teacher is None else teacher(batch.images).float()
        for name in names:
            if compared is not None and name == TEACHER:
                logits = compared
            else:
                with engine.autocast():
                    logits = models[name](batch.images).float()
            for choice, classes in chosen.items():
                columns = _columns(logits, compared, batch.labels, classes)
                known = torch.stack([batch.indices, batch.valid], 1).double()
                rows[name, choice].append(torch.cat([known, columns], 1))
    skipped = round(engine.sum_(num_skipped).item())
    return {
        (name, choice): _collected(
            _all_rows(torch.cat(parts), engine), teacher is not None and name != TEACHER, skipped
        )
        for (name, choice), parts in rows.items()
    }


def _all_rows(own: torch.Tensor, engine: Engine) -> torch.Tensor:
    """Return the rows of all processes, rank by rank. Collective: every rank, in one shape."""
    if engine.world_size == 1:
        return own
    rows = own.new_empty(engine.world_size * len(own), *own.shape[1:])
    dist.all_gather_into_tensor(rows, own)
    return rows


def _columns(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    labels: torch.Tensor,
    classes: torch.Tensor | None,
) -> torch.Tensor:
    """[B, 7 + min(5, K)] float64: label, rank, confidence, finite, loss, agreement, KL, the top
    classes.
    """
    known = torch.ones_like(labels, dtype=torch.bool)
    own_labels = labels
    if classes is not None:
        logits = logits[:, classes]
        teacher_logits = None if teacher_logits is None else teacher_logits[:, classes]
        own_labels = torch.searchsorted(classes, labels).clamp(max=len(classes) - 1)
        known = classes[own_labels] == labels
    num_classes = logits.shape[1]
    log_probs = F.log_softmax(logits, dim=1)
    rank = torch.where(known, rank_of(logits, own_labels), num_classes)
    loss = torch.where(known, -log_probs.gather(1, own_labels[:, None])[:, 0], torch.nan)
    # A stable sort puts the lower of two equal logits first, as `rank_of` counts them.
    order = torch.sort(logits, dim=1, descending=True, stable=True).indices
    top = order[:, : min(_MOST_TOP, num_classes)]
    confidence = log_probs.gather(1, top[:, :1])[:, 0].exp()
    agrees, teacher_kl = torch.zeros_like(loss), torch.zeros_like(loss)
    if teacher_logits is not None:
        agrees = rank_of(logits, teacher_logits.argmax(1)) < 1
        teacher_kl = divergence(F.log_softmax(teacher_logits, dim=1), log_probs)
    top = top if classes is None else classes[top]
    parts = [labels, rank, confidence, (logits < torch.inf).all(1), loss, agrees, teacher_kl]
    return torch.cat([torch.stack([part.double() for part in parts], 1), top.double()], 1)


def _collected(table: torch.Tensor, with_teacher: bool, num_skipped: int) -> Predictions:
    """Predictions from a table of all ranks' rows, padding and unreadable images left out."""
    values = table.cpu().numpy()
    values = values[values[:, 1] > 0]
    if not len(values) and num_skipped:
        raise InputError(
            f"all {num_skipped} images to evaluate on are unreadable: where unreadable is error"
            " (data.unreadable, --unreadable), the first is named"
        )
    values = values[np.argsort(values[:, 0], kind="stable")]
    index, _, label, rank, confidence, finite, loss, agrees, teacher_kl = values[
        :, :_BASE_COLUMNS
    ].T
    return Predictions(
        indices=index.astype(np.int64),
        labels=label.astype(np.int64),
        top=values[:, _BASE_COLUMNS:].astype(np.int64),
        rank=rank.astype(np.int64),
        confidence=confidence.copy(),
        finite=finite.astype(bool),
        loss=loss.copy(),
        agrees=agrees.astype(bool) if with_teacher else None,
        teacher_kl=teacher_kl.copy() if with_teacher else None,
        num_skipped=num_skipped,
    )
