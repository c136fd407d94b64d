"""The objective of a student: a hard loss against labels, a soft loss against the teacher's logits,
or both, and a hint loss against the teacher's features.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from distill.recipe.hints import FeatureSpec, HintSpec
from distill.recipe.masked import FCMAESpec
from distill.recipe.values import Section, Temperature, Weight

# A probability threshold: 0 would keep every sample, and 1 almost none.
Confidence = Annotated[float, Field(gt=0, lt=1)]
Smoothing = Annotated[float, Field(ge=0, lt=1)]


class CESpec(Section):
    """Cross-entropy with the label probabilities after mixing and label smoothing."""

    loss: Literal["ce"]
    """The name of the loss."""
    weight: Weight = 1.0
    """The weight of the loss in the objective."""
    smoothing: Smoothing = 0.0
    """Label smoothing: the probability that is distributed evenly over all classes."""


class BCESpec(Section):
    """Binary cross-entropy of each class with the label probabilities, averaged over the batch."""

    loss: Literal["bce"]
    """The name of the loss."""
    weight: Weight = 1.0
    """The weight of the loss in the objective."""
    smoothing: Smoothing = 0.0
    """Label smoothing: the probability that is distributed evenly over all classes."""
    class_reduction: Literal["mean", "sum"] = "mean"
    """Whether classes are averaged (as in timm) or summed."""


class KLSpec(Section):
    """KL divergence of Hinton et al.: summed over classes, averaged over the batch, multiplied by
    the square of the temperature.
    """

    loss: Literal["kl"]
    """The name of the loss."""
    weight: Weight = 1.0
    """The weight of the loss in the objective."""
    temperature: Temperature = 1.0
    """The logits of student and teacher are divided by this number."""
    min_confidence: Confidence | None = None
    """The loss of a sample is 0 if the largest probability of the teacher (temperature 1) is
    smaller than this; the mean is still over all samples of the batch. null: all samples count.
    """


class BKLSpec(Section):
    """Binary KL divergence (Eq. 3 of the paper), summed over classes."""

    loss: Literal["bkl"]
    """The name of the loss."""
    weight: Weight = 1.0
    """The weight of the loss in the objective."""
    temperature: Temperature = 1.0
    """The logits of student and teacher are divided by this number."""
    min_confidence: Confidence | None = None
    """As for `kl`."""


class BCETeacherSpec(Section):
    """The loss that the released code calls BKL: binary cross-entropy of the student's logits with
    the softmax of the teacher's logits, averaged over classes.
    """

    loss: Literal["bce_teacher"]
    """The name of the loss."""
    weight: Weight = 1.0
    """The weight of the loss in the objective."""


class DKDSpec(Section):
    """Decoupled KD (Eq. 4): alpha TCKD + beta NCKD."""

    loss: Literal["dkd"]
    """The name of the loss."""
    weight: Weight = 1.0
    """The weight of the loss in the objective."""
    alpha: Weight = 1.0
    """Weight of TCKD: the target class against all others."""
    beta: Weight = 2.0
    """Weight of NCKD: the other classes among each other."""
    temperature: Temperature = 1.0
    """The logits of student and teacher are divided by this number."""
    target: Literal["label", "teacher"] = "label"
    """The target class: the label of the image (of a mixed image, the label with the larger share),
    or the most probable class of the teacher. Images without labels, or with other classes than
    the run, need `teacher`.
    """


class DISTSpec(Section):
    """DIST (Eq. 5): Pearson distances between classes and within classes, over the samples of a
    micro-batch (`train.micro_batch_size`).
    """

    loss: Literal["dist"]
    """The name of the loss."""
    weight: Weight = 1.0
    """The weight of the loss in the objective."""
    beta: Weight = 1.0
    """Weight of the distance between classes, for each image."""
    gamma: Weight = 1.0
    """Weight of the distance within classes, over the images of a micro-batch."""
    temperature: Temperature = 1.0
    """The logits of student and teacher are divided by this number."""


HardSpec = Annotated[CESpec | BCESpec, Field(discriminator="loss")]
SoftSpec = Annotated[
    KLSpec | BKLSpec | BCETeacherSpec | DKDSpec | DISTSpec, Field(discriminator="loss")
]


class ObjectiveSpec(Section):
    """total = hard.weight * hard + soft.weight * soft + hint.weight * hint; or `masked` alone."""

    hard: HardSpec | None = None
    """The loss against labels; null: none."""
    soft: SoftSpec | None = None
    """The loss against the teacher's logits; null: none."""
    hint: HintSpec | None = None
    """The loss against the teacher's features; null: none. `feature` may be the only loss: the
    student is then a backbone without classifier, and its images need no labels.
    """
    masked: FCMAESpec | None = None
    """Masked-image modelling, without a teacher and as the only loss: the student is then a
    backbone without classifier, and its images need no labels. null: none.
    """
    soft_teachers: dict[str, Weight] | None = None
    """With `teachers`: which of them the soft loss reads, and their weights, which are divided by
    their sum; null: all of them, equally.
    """
    combine: Literal["probabilities", "logits", "losses"] = "probabilities"
    """How the soft loss reads several teachers: the weighted mean of their probabilities (at the
    temperature of the loss) or of their logits, or the weighted sum of a loss against each.
    """
    hint_teacher: str | None = None
    """With several `teachers`: the one whose features the hint reads."""

    @property
    def teacher_terms(self) -> tuple[str, ...]:
        """The names of the terms that learn from a teacher."""
        terms = {"soft": self.soft, "hint": self.hint}
        return tuple(name for name, term in terms.items() if term is not None)

    @property
    def in_words(self) -> str:
        """The terms with their weights, and the teachers that they name: "0.5 ce + 0.5 kl"."""
        read = [name for name, weight in (self.soft_teachers or {}).items() if weight]
        of_soft = f" of {', '.join(read)}" if read else ""
        of_hint = f" of {self.hint_teacher}" if self.hint_teacher else ""
        terms = ((self.hard, ""), (self.soft, of_soft), (self.hint, of_hint), (self.masked, ""))
        return " + ".join(
            f"{term.weight:g} {term.loss}{teachers}" for term, teachers in terms if term is not None
        )

    @property
    def reads_labels(self) -> bool:
        """Whether a loss uses the labels of images, which must then be classes of the run."""
        return self.hard is not None or (
            isinstance(self.soft, DKDSpec) and self.soft.target == "label"
        )

    @property
    def trains_backbone(self) -> bool:
        """Whether the student learns features or pixels alone, so that it has no classifier."""
        return self.hard is None and self.soft is None

    @model_validator(mode="after")
    def _has_a_loss(self) -> Self:
        if self.masked is not None:
            others = [name for name in ("hard", "soft", "hint") if getattr(self, name) is not None]
            if others:
                raise ValueError(
                    f"masked: {self.masked.loss} gives the student parts of images, and"
                    f" {' and '.join(others)} would need whole ones: set {', '.join(others)} to"
                    " null, or masked"
                )
            return self
        if not self.trains_backbone:
            return self
        if not isinstance(self.hint, FeatureSpec):
            alone = (
                "; objective.hint alone trains no classifier, and only loss: feature a backbone"
                if self.hint
                else ""
            )
            raise ValueError(
                "a student needs something to learn from: give objective.hard, objective.soft or"
                f" both{alone}"
            )
        if self.hint.student_stage is not None:
            raise ValueError(
                "hint.student_stage: without objective.hard and objective.soft, the weights behind"
                " that stage learn nothing: leave it out for the last stage"
            )
        return self
