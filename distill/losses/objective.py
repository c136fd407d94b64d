"""The objective of a student: total = hard.weight * hard + soft.weight * soft + hint.weight * hint
(Eq. 1 and 2, with free weights).

The paper weighs hard and soft by 0.5, its released code by 1.0; recipes say which.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from distill.losses.masked import MaskedTerm
from distill.losses.outputs import FeatureKey, Outputs, TeacherOutputs
from distill.losses.teachers import Combination, Lessons
from distill.recipe import schema
from distill.recipe.teachers import TEACHER, hint_teacher, soft_weights

HardLoss = Callable[[Tensor, Tensor], Tensor]
"""(student_logits [B, K], label distribution [B, K]) -> scalar."""

SoftLoss = Callable[[Tensor, Tensor, Supervision], Tensor]
"""(student_logits [B, K], teacher_logits [B, K], batch) -> scalar."""


_ONE_TEACHER = Combination(((TEACHER, 1.0),))


@dataclass(frozen=True)
class HardTerm:
    loss: HardLoss
    weight: float = 1.0


@dataclass(frozen=True)
class SoftTerm:
    """`min_confidence`: the loss leaves out samples of which the teacher is less sure; the
    objective only counts those that remain. `combination`: the teachers that it reads.
    """

    loss: SoftLoss
    weight: float = 1.0
    min_confidence: float | None = None
    combination: Combination = _ONE_TEACHER


class LossTerms(NamedTuple):
    """Scalars, float32, on the device.

    Attributes:
        total: what the student minimises.
        hard, soft, hint, masked: the terms, unweighted; None where the objective has no such term.
        kept: the share of samples in 0..1 that the soft term does not leave out as unsure; None
            without `min_confidence`.
    """

    total: Tensor
    hard: Tensor | None = None
    soft: Tensor | None = None
    hint: Tensor | None = None
    kept: Tensor | None = None
    masked: Tensor | None = None


class Objective:
    """Callable: (outputs of the student, outputs of the teacher, batch) -> LossTerms. What is
    trained or has state is in the heads of its hint or masked term, which belong to the student.

    Raises:
        ValueError: no term is given.
    """

    def __init__(
        self,
        hard: HardTerm | None = None,
        soft: SoftTerm | None = None,
        hint: HintTerm | None = None,
        hint_teacher: str = TEACHER,
        masked: MaskedTerm | None = None,
    ) -> None:
        if hard is None and soft is None and hint is None and masked is None:
            raise ValueError("an objective needs a hard, a soft or a masked term, or a hint")
        self.hard = hard
        self.soft = soft
        self.hint = hint
        self.hint_teacher = hint_teacher
        self.masked = masked

    @property
    def with_heads(self) -> HintTerm | MaskedTerm | None:
        """The term that trains heads beside the student."""
        return self.hint or self.masked

    @property
    def teachers(self) -> dict[str, tuple[FeatureKey, ...]]:
        """The teachers that its terms read, and the features of each."""
        read = {name: () for name, _ in self.soft.combination.weights} if self.soft else {}
        return {**read, **({self.hint_teacher: self.teacher_features} if self.hint else {})}

    def read(self, lessons: Lessons) -> TeacherOutputs | None:
        """Return what its terms read of the teachers; None if they read none."""
        if not self.needs_teacher:
            return None
        each = lessons.logits(self.soft.combination) if self.soft else ()
        features = lessons.outputs[self.hint_teacher].features if self.hint else {}
        return TeacherOutputs(each[0][1] if len(each) == 1 else None, features, each)

    @property
    def needs_teacher(self) -> bool:
        """Whether a term reads the teacher's outputs."""
        return self.soft is not None or self.hint is not None

    @property
    def teacher_features(self) -> tuple[FeatureKey, ...]:
        """The teacher's features that it reads."""
        return self.hint.teacher_features if self.hint else ()

    def given(self, teacher: TeacherOutputs | None, batch: Supervision) -> tuple[Tensor, ...]:
        """Return what the learner's forward gets beside the images: the teacher's features that
        heads read, or the patches that stay visible.
        """
        if self.masked is not None:
            return (self.masked.visible(batch),)
        return teacher.read(self.teacher_features) if teacher else ()

    def weighted(self, terms: LossTerms) -> dict[str, Tensor]:
        """Return the terms by name as they enter the total: each times its weight."""
        own = {"hard": self.hard, "soft": self.soft, "hint": self.hint, "masked": self.masked}
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
            heads: of the hint or the masked term.

        Raises:
            ValueError: a term needs a teacher and none is given, or shapes that do not agree.
        """
        # Once for both terms: if each widened half-precision logits itself, their gradients would
        # be rounded before they add.
        logits = outputs.logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.needs_teacher and teacher is None:
            raise ValueError("a term learns from a teacher, and no teacher outputs were given")
        hard = soft = hint = masked = kept = total = None
        if self.hard is not None:
            hard = self.hard.loss(logits, batch.label_probs)
            total = self.hard.weight * hard
        if self.soft is not None:
            assert teacher is not None
            soft, kept = self._soft(self.soft, logits, teacher, batch)
            weighted = self.soft.weight * soft
            total = weighted if total is None else total + weighted
        if total is None:
            # DDP and DeepSpeed want a gradient of every parameter. A norm that stands behind the
            # last feature map gets this one.
            total = 0 * logits.sum()
        if self.hint is not None:
            assert teacher is not None
            assert heads is not None
            read = teacher.read(self.hint.teacher_features)
            hint = heads.loss(outputs.features, read, batch)
            total = total + self.hint.weight * hint
        if self.masked is not None:
            assert heads is not None
            masked = heads.loss(outputs.features, (), batch)
            total = total + self.masked.weight * masked
        return LossTerms(total, hard, soft, hint, kept, masked)

    @staticmethod
    def _soft(
        term: SoftTerm, logits: Tensor, teacher: TeacherOutputs, batch: Supervision
    ) -> tuple[Tensor, Tensor | None]:
        """Return the soft loss and the share of samples that it keeps, summed over the teachers."""
        each = teacher.each
        if not each:
            if teacher.logits is None:
                raise ValueError("the soft term learns from logits, and the teacher has none")
            each = ((1.0, teacher.logits),)
        losses = [weight * term.loss(logits, theirs, batch) for weight, theirs in each]
        total = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        if term.min_confidence is None:
            return total, None
        kept = [
            weight * confident(theirs, term.min_confidence).float().mean()
            for weight, theirs in each
        ]
        return total, torch.stack(kept).sum()


def build_objective(
    spec: schema.ObjectiveSpec,
    *,
    group: Group | None = None,
    maps: HintMaps | None = None,
    teachers: Sequence[str] = (TEACHER,),
    samples: Samples | None = None,
    masked: MaskedTerm | None = None,
) -> Objective:
    """Return the objective that a recipe describes.

    Args:
        spec: the recipe's `objective` section.
        maps: the features of student and teacher that a hint compares; None without a hint.
        group: losses that relate samples to each other (DIST, CC, RKD) relate those of all its
            processes; then calls are collective in it.
        teachers: all of the run, in the order of the recipe.
        samples: what the stage trains on; CRD alone needs it.
        masked: of a recipe with `masked`.
    """
    hard = None if spec.hard is None else HardTerm(_hard_loss(spec.hard), spec.hard.weight)
    soft = None
    if spec.soft is not None:
        min_confidence = (
            spec.soft.min_confidence
            if isinstance(spec.soft, schema.KLSpec | schema.BKLSpec)
            else None
        )
        soft = SoftTerm(
            _soft_loss(spec.soft, group),
            spec.soft.weight,
            min_confidence,
            combination_of(spec, teachers),
        )
    hint, of_hint = None, TEACHER
    if spec.hint is not None:
        assert maps
        of_hint = hint_teacher(spec, teachers)
        hint = hint_term(spec.hint, maps, group, samples)
        hint = replace(hint, heads_key=(of_hint, hint.heads_key))
    return Objective(hard, soft, hint, of_hint, masked)


def combination_of(spec: schema.ObjectiveSpec, teachers: Sequence[str]) -> Combination:
    """Return how the soft term of an objective reads its teachers.

    Args:
        teachers: all of the run.
    """
    soft = spec.soft
    assert soft is not None
    temperature = 1.0 if isinstance(soft, schema.BCETeacherSpec) else soft.temperature
    weights = soft_weights(spec, teachers)
    how = spec.combine
    return Combination(tuple(weights.items()), how, temperature)


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
