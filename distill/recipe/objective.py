"""What a student learns from: a hard loss against labels, a soft one against the
teacher, or both.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from distill.recipe.values import Section, Temperature, Weight

# A teacher's largest probability; 0 and 1 would keep every sample and none but the rounded.
Confidence = Annotated[float, Field(gt=0, lt=1)]
Smoothing = Annotated[float, Field(ge=0, lt=1)]


class CESpec(Section):
    """Cross-entropy against the mixed, smoothed label distribution."""

    loss: Literal["ce"]
    """The loss."""
    weight: Weight = 1.0
    """What the loss is multiplied with."""
    smoothing: Smoothing = 0.0
    """Label smoothing: the probability that is spread over all classes."""


class BCESpec(Section):
    """Binary cross-entropy a class, averaged over the batch."""

    loss: Literal["bce"]
    """The loss."""
    weight: Weight = 1.0
    """What the loss is multiplied with."""
    smoothing: Smoothing = 0.0
    """Label smoothing: the probability that is spread over all classes."""
    class_reduction: Literal["mean", "sum"] = "mean"
    """Over classes: their mean (as in timm) or their sum."""


class KLSpec(Section):
    """Hinton's KL divergence: summed over classes, averaged over the batch, times the temperature
    squared.
    """

    loss: Literal["kl"]
    """The loss."""
    weight: Weight = 1.0
    """What the loss is multiplied with."""
    temperature: Temperature = 1.0
    """What the logits of both are divided by."""
    min_confidence: Confidence | None = None
    """Samples whose largest teacher probability (temperature 1) is below it count zero; the mean is
    still over all samples of the batch. Null: all count.
    """


class BKLSpec(Section):
    """Binary KL of the paper's Eq. 3, summed over classes."""

    loss: Literal["bkl"]
    """The loss."""
    weight: Weight = 1.0
    """What the loss is multiplied with."""
    temperature: Temperature = 1.0
    """What the logits of both are divided by."""
    min_confidence: Confidence | None = None
    """As in `kl`."""


class BCETeacherSpec(Section):
    """What the released code calls BKL: BCE-with-logits(student logits, softmax(teacher logits)),
    averaged over classes.
    """

    loss: Literal["bce_teacher"]
    """The loss."""
    weight: Weight = 1.0
    """What the loss is multiplied with."""


class DKDSpec(Section):
    """Decoupled KD (Eq. 4): alpha TCKD + beta NCKD."""

    loss: Literal["dkd"]
    """The loss."""
    weight: Weight = 1.0
    """What the loss is multiplied with."""
    alpha: Weight = 1.0
    """Weight of the target class against the rest."""
    beta: Weight = 2.0
    """Weight of the other classes among themselves."""
    temperature: Temperature = 1.0
    """What the logits of both are divided by."""
    target: Literal["label", "teacher"] = "label"
    """The class that is set apart: the image's label (under mixing, the larger share), or the
    teacher's first choice, which images need whose labels are of another space or missing.
    """


class DISTSpec(Section):
    """DIST (Eq. 5): Pearson distances between and within classes, over the samples of
    `train.micro_batch_size`.
    """

    loss: Literal["dist"]
    """The loss."""
    weight: Weight = 1.0
    """What the loss is multiplied with."""
    beta: Weight = 1.0
    """Weight of the distance between classes, image by image."""
    gamma: Weight = 1.0
    """Weight of the distance within classes, over the images of a micro-batch."""
    temperature: Temperature = 1.0
    """What the logits of both are divided by."""


HardSpec = Annotated[CESpec | BCESpec, Field(discriminator="loss")]
SoftSpec = Annotated[
    KLSpec | BKLSpec | BCETeacherSpec | DKDSpec | DISTSpec, Field(discriminator="loss")
]


class ObjectiveSpec(Section):
    """total = hard.weight * hard + soft.weight * soft."""

    hard: HardSpec | None = None
    """The loss against labels; null leaves it out."""
    soft: SoftSpec | None = None
    """The loss against the teacher; null leaves it out."""

    @property
    def reads_labels(self) -> bool:
        """Whether it learns from the images' labels, so that these must be of the student's
        classes.
        """
        return self.hard is not None or (
            isinstance(self.soft, DKDSpec) and self.soft.target == "label"
        )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.hard is None and self.soft is None:
            raise ValueError(
                "a student needs something to learn from: give objective.hard, objective.soft or"
                " both"
            )
        return self
