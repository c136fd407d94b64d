"""The objective of a student: total = hard.weight * hard + soft.weight * soft + hint.weight * hint
(Eq. 1 and 2, with free weights).

The paper weighs hard and soft by 0.5, its released code by 1.0; recipes say which.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, assert_never

import torch
from torch import Tensor

from distill.losses.all_reduce import Group
from distill.losses.bkl import bce_teacher, bkl
from distill.losses.build_hint import HintMaps, hint_term
from distill.losses.confidence import confident
from distill.losses.dist import dist
from distill.losses.dkd import dkd, target_class, teachers_class
from distill.losses.hard import binary_cross_entropy, cross_entropy, smooth
from distill.losses.hint import Heads, HintTerm, Samples, Supervision
from distill.losses.kl import kl
from distill.losses.outputs import FeatureKey, Outputs, TeacherOutputs
from distill.recipe import schema

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
        hard, soft, hint: the terms, unweighted; None where the objective has no such term.
        kept: the share of samples in 0..1 that the soft term does not leave out as unsure; None
            without `min_confidence`.
    """

    total: Tensor
    hard: Tensor | None = None
    soft: Tensor | None = None
    hint: Tensor | None = None
    kept: Tensor | None = None


class Objective:
    """Callable: (outputs of the student, outputs of the teacher, batch) -> LossTerms. What is
    trained or has state is in the heads of its hint term, which belong to the student.

    Raises:
        ValueError: no term is given.
    """

    def __init__(
        self,
        hard: HardTerm | None = None,
        soft: SoftTerm | None = None,
        hint: HintTerm | None = None,
    ) -> None:
        if hard is None and soft is None:
            raise ValueError("an objective needs a hard term, a soft term or both")
        self.hard = hard
        self.soft = soft
        self.hint = hint

    @property
    def needs_teacher(self) -> bool:
        """Whether a term reads the teacher's outputs."""
        return self.soft is not None or self.hint is not None

    @property
    def teacher_features(self) -> tuple[FeatureKey, ...]:
        """The teacher's features that it reads."""
        return self.hint.teacher_features if self.hint else ()

    def weighted(self, terms: LossTerms) -> dict[str, Tensor]:
        """Return the terms by name as they enter the total: each times its weight."""
        own = {"hard": self.hard, "soft": self.soft, "hint": self.hint}
        values = terms._asdict()
        return {name: term.weight * values[name] for name, term in own.items() if term is not None}

    def __call__(
        self,
        outputs: Outputs,
        teacher: TeacherOutputs | None,
        batch: Supervision,
        heads: Heads | None = None,
    ) -> LossTerms:
        """Compute the terms.

        Args:
            outputs: of the student, any floating dtype.
            teacher: any floating dtype; None where only labels are read.
            batch: only terms that need labels read them, so an objective without a hard term takes
                images whose labels are of other classes.
            heads: of the hint.

        Raises:
            ValueError: a term needs a teacher and none is given, or shapes that do not agree.
        """
        # Once for both terms: if each widened half-precision logits itself, their gradients would
        # be rounded before they add.
        logits = outputs.logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.needs_teacher and teacher is None:
            raise ValueError("a term learns from a teacher, and no teacher outputs were given")
        hard = soft = hint = kept = total = None
        if self.hard is not None:
            hard = self.hard.loss(logits, batch.label_probs)
            total = self.hard.weight * hard
        if self.soft is not None:
            assert teacher is not None
            soft = self.soft.loss(logits, teacher.logits, batch)
            if self.soft.min_confidence is not None:
                kept = confident(teacher.logits, self.soft.min_confidence).float().mean()
            weighted = self.soft.weight * soft
            total = weighted if total is None else total + weighted
        assert total is not None
        if self.hint is not None:
            assert teacher is not None
            assert heads is not None
            read = teacher.read(self.hint.teacher_features)
            hint = heads.loss(outputs.features, read, batch)
            total = total + self.hint.weight * hint
        return LossTerms(total=total, hard=hard, soft=soft, hint=hint, kept=kept)


def build_objective(
    spec: schema.ObjectiveSpec,
    *,
    group: Group | None = None,
    maps: HintMaps | None = None,
    samples: Samples | None = None,
) -> Objective:
    """Return the objective that a recipe describes.

    Args:
        spec: the recipe's `objective` section.
        maps: the features of student and teacher that a hint compares; None without a hint.
        group: losses that relate samples to each other (DIST, CC, RKD) relate those of all its
            processes; then calls are collective in it.
        samples: what the stage trains on; CRD alone needs it.
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
    hint = None
    if spec.hint is not None:
        assert maps
        hint = hint_term(spec.hint, maps, group, samples)
    return Objective(hard, soft, hint)


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
