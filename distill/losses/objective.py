"""The objective of a student: total = hard.weight * hard + soft.weight * soft (Eq. 1, with free
weights).

The paper weighs both by 0.5, its released code by 1.0; recipes say which.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, assert_never

import torch
from torch import Tensor

from distill.losses.all_reduce import Group
from distill.losses.bkl import bce_teacher, bkl
from distill.losses.confidence import confident
from distill.losses.dist import dist
from distill.losses.dkd import dkd, target_class, teachers_class
from distill.losses.hard import binary_cross_entropy, cross_entropy, smooth
from distill.losses.kl import kl
from distill.recipe import schema


class Supervision(Protocol):
    """The part of a batch that losses read.

    label_probs: [B, K] float, the mixed label distribution, not smoothed.
    labels: [B] int64, the images' own labels, before mixing.
    """

    @property
    def label_probs(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...


HardLoss = Callable[[Tensor, Tensor], Tensor]
"""(student_logits [B, K], label distribution [B, K]) -> scalar."""

SoftLoss = Callable[[Tensor, Tensor, Supervision], Tensor]
"""(student_logits [B, K], teacher_logits [B, K], batch) -> scalar."""


@dataclass(frozen=True)
class HardTerm:
    loss: HardLoss
    weight: float = 1.0


@dataclass(frozen=True)
class SoftTerm:
    """`min_confidence`: the loss leaves out samples of which the teacher is less sure; the
    objective only counts those that remain.
    """

    loss: SoftLoss
    weight: float = 1.0
    min_confidence: float | None = None


class LossTerms(NamedTuple):
    """Scalars, float32, on the device.

    Attributes:
        total: what the student minimises.
        hard, soft: the terms, unweighted; None where the objective has no such term.
        kept: the share of samples in 0..1 that the soft term does not leave out as unsure; None
            without `min_confidence`.
    """

    total: Tensor
    hard: Tensor | None = None
    soft: Tensor | None = None
    kept: Tensor | None = None


class Objective:
    """Callable: (student_logits, teacher_logits, batch) -> LossTerms. No state, no parameters.

    Raises:
        ValueError: neither term is given.
    """

    def __init__(self, hard: HardTerm | None = None, soft: SoftTerm | None = None) -> None:
        if hard is None and soft is None:
            raise ValueError("an objective needs a hard term, a soft term or both")
        self.hard = hard
        self.soft = soft

    def __call__(
        self, student_logits: Tensor, teacher_logits: Tensor | None, batch: Supervision
    ) -> LossTerms:
        """Compute the terms.

        Args:
            student_logits: [B, K], any floating dtype.
            teacher_logits: [B, K], any floating dtype; None where there is no soft term.
            batch: only terms that need labels read them, so an objective with a soft term alone
                takes images whose labels are of other classes.

        Raises:
            ValueError: there is a soft term and no teacher_logits, or shapes that do not agree.
        """
        # Once for both terms: if each widened half-precision logits itself, their gradients would
        # be rounded before they add.
        student_logits = student_logits.to(torch.promote_types(student_logits.dtype, torch.float32))
        hard = soft = kept = total = None
        if self.hard is not None:
            hard = self.hard.loss(student_logits, batch.label_probs)
            total = self.hard.weight * hard
        if self.soft is not None:
            if teacher_logits is None:
                raise ValueError(
                    "the soft term learns from a teacher, and no teacher logits were given"
                )
            soft = self.soft.loss(student_logits, teacher_logits, batch)
            if self.soft.min_confidence is not None:
                kept = confident(teacher_logits, self.soft.min_confidence).float().mean()
            weighted = self.soft.weight * soft
            total = weighted if total is None else total + weighted
        assert total is not None
        return LossTerms(total=total, hard=hard, soft=soft, kept=kept)


def build_objective(spec: schema.ObjectiveSpec, *, group: Group | None = None) -> Objective:
    """Return the objective that a recipe describes.

    Args:
        spec: the recipe's `objective` section.
        group: losses that relate samples to each other (DIST) relate those of all its processes;
            then calls are collective in it.
    """
    hard = None if spec.hard is None else HardTerm(_hard_loss(spec.hard), spec.hard.weight)
    soft = None
    if spec.soft is not None:
        min_confidence = (
            spec.soft.min_confidence
            if isinstance(spec.soft, schema.KLSpec | schema.BKLSpec)
            else None
        )
        soft = SoftTerm(_soft_loss(spec.soft, group), spec.soft.weight, min_confidence)
    return Objective(hard, soft)


def _hard_loss(spec: schema.HardSpec) -> HardLoss:
    match spec:
        case schema.CESpec():
            return lambda logits, labels: cross_entropy(logits, smooth(labels, spec.smoothing))
        case schema.BCESpec():
            return lambda logits, labels: binary_cross_entropy(
                logits, smooth(labels, spec.smoothing), spec.class_reduction
            )
        case _:
            assert_never(spec)


def _soft_loss(spec: schema.SoftSpec, group: Group | None) -> SoftLoss:
    match spec:
        case schema.KLSpec():
            return lambda logits, teacher, _: kl(
                logits, teacher, spec.temperature, spec.min_confidence
            )
        case schema.BKLSpec():
            return lambda logits, teacher, _: bkl(
                logits, teacher, spec.temperature, spec.min_confidence
            )
        case schema.BCETeacherSpec():
            return lambda logits, teacher, _: bce_teacher(logits, teacher)
        case schema.DKDSpec():
            return lambda logits, teacher, batch: dkd(
                logits,
                teacher,
                (
                    teachers_class(teacher)
                    if spec.target == "teacher"
                    else target_class(batch.label_probs, batch.labels)
                ),
                alpha=spec.alpha,
                beta=spec.beta,
                temperature=spec.temperature,
            )
        case schema.DISTSpec():
            return lambda logits, teacher, _: dist(
                logits,
                teacher,
                beta=spec.beta,
                gamma=spec.gamma,
                temperature=spec.temperature,
                group=group,
            )
        case _:
            assert_never(spec)
