"""The hint of an objective: a loss between features of student and teacher. Any two timm models fit
each other.
"""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from distill.recipe.values import Count, Section, Temperature, Weight, Within, as_tuple

Stages = Annotated[tuple[int, ...], BeforeValidator(as_tuple), Field(min_length=1)]


EmbeddingWidth = Annotated[
    int, Field(ge=1), Within(1, 4096, "no embedding of the papers has more than 128")
]


class _Hint(Section):
    @property
    def heads(self) -> str:
        """Equal for hints whose heads are alike: those that differ in their weight alone."""
        return self.model_dump_json(exclude={"weight"})


class FitNetSpec(_Hint):
    """FitNet (Eq. 2): the distance between a feature map of the teacher and one of the student,
    which a trained 1x1 convolution with BatchNorm projects to the teacher's width. The larger map
    is averaged to the size of the smaller one.
    """

    loss: Literal["fitnet"]
    """The name of the loss."""
    weight: Weight = 1.0
    """The weight of the loss in the objective."""
    distance: Literal["l1", "l2"] = "l2"
    """The mean over all elements of the absolute (`l1`) or squared (`l2`) difference."""
    student_stage: int | None = None
    """The student's feature map: an index into the outputs of timm's `forward_intermediates`
    (a ResNet: the stem and four stages; a ViT: its blocks), negative from the end; null: the middle
    one, n // 2 of n.
    """
    teacher_stage: int | None = None
    """The teacher's feature map, as for `student_stage`."""


class CCSpec(_Hint):
    """Correlation congruence: relations of the samples of a micro-batch
    (`train.micro_batch_size`), in the features that the classifier reads.
    """

    loss: Literal["cc"]
    """The name of the loss."""
    weight: Weight = 1.0
    """The weight of the loss in the objective."""
    reference: Literal["paper_code", "original"] = "paper_code"
    """`paper_code`: the loss of the VanillaKD paper's released code, two trained maps to 128
    dimensions and products of the distances of neighbouring samples, times 0.02. `original`: that
    of Peng et al., the squared difference of Gaussian correlations of all pairs (their weight is
    0.003 beside a KL loss).
    """


class RKDSpec(_Hint):
    """Relational KD: distances of pairs and angles of triples of the samples of a micro-batch
    (`train.micro_batch_size`, at least 3), in the features that the classifier reads.
    """

    loss: Literal["rkd"]
    """The name of the loss."""
    weight: Weight = 1.0
    """The weight of the loss in the objective."""
    distance_weight: Weight = 25.0
    """Weight of the distances within the loss."""
    angle_weight: Weight = 50.0
    """Weight of the angles within the loss."""


class CRDSpec(_Hint):
    """CRD: the student's embedding of an image is close to the teacher's embedding of it, and far
    from those of images of other classes, which a bank of all training images remembers. Images
    without labels, or with other classes than the run, are far from all others. A mixed image
    counts as the first one of its pair.
    """

    loss: Literal["crd"]
    """The name of the loss."""
    weight: Weight = 1.0
    """The weight of the loss in the objective: 1 in the VanillaKD paper, 0.8 in Tian et al."""
    reference: Literal["paper_code", "original"] = "paper_code"
    """`paper_code`: negatives are drawn with replacement, as in the VanillaKD paper's released
    code. `original`: without, as in the code of Tian et al.
    """
    negatives: Count = 16_384
    """Images that a step draws from the bank, for all samples of its batch."""
    temperature: Temperature = 0.07
    """Products of embeddings are divided by this number."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """The share of the old embedding when the bank sees an image again."""
    width: EmbeddingWidth = 128
    """Dimensions of the embeddings."""
    bank: Literal["device", "host"] = "device"
    """The memory of each process that holds the bank, 8 x width + 8 bytes an image. With `host`,
    each step waits for the device.
    """


class FeatureSpec(_Hint):
    """The student's features, projected by a trained 1x1 convolution, approach the teacher's. It
    needs no classes of the teacher, so that DINOv2 and its like can teach.
    """

    loss: Literal["feature"]
    """The name of the loss."""
    weight: Weight = 1.0
    """The weight of the loss in the objective."""
    distance: Literal["cosine", "mse"] = "cosine"
    """1 - cosine between the vectors over the channels, or their mean squared difference."""
    level: Literal["pooled", "dense"] = "pooled"
    """`pooled`: the vector that the classifier reads. `dense`: a feature map, position by position;
    the larger one is averaged to the size of the smaller.
    """
    student_stage: int | None = None
    """With `dense`: the student's feature map, an index as for `fitnet`; null: the last one."""
    teacher_stage: int | None = None
    """With `dense`: the teacher's feature map; null: the last one."""

    @model_validator(mode="after")
    def _stages_are_of_maps(self) -> Self:
        named = [
            key for key in ("student_stage", "teacher_stage") if getattr(self, key) is not None
        ]
        if named and self.level == "pooled":
            raise ValueError(f"{named[0]} names a feature map: set level: dense, or leave it out")
        return self


class ReviewKDSpec(_Hint):
    """ReviewKD: the student's features of each level, fused with those of the deeper ones by
    trained convolutions, approach the teacher's. The levels are the last map of each size, at most
    the four deepest, and the pooled features. A model whose maps have one size (a ViT of 24 blocks)
    has blocks 1, 3, 21 and 23, at 4, 2, 1 and 1/2 times their size, as in the released code.
    """

    loss: Literal["reviewkd"]
    """The name of the loss."""
    weight: Weight = 1.0
    """The weight of the loss in the objective (ReviewKD's authors: 0.6 to 8, by the pair)."""
    reference: Literal["paper_code", "original"] = "paper_code"
    """Which maps of a ResNet are taken before the last activation of their stage. `paper_code`:
    those of both models, as in the VanillaKD paper's released code. `original`: the teacher's, as
    in the authors' code for CIFAR-100.
    """
    warmup_epochs: int = Field(default=1, ge=0)
    """The loss is multiplied by min(epoch / warmup_epochs, 1), with the epoch counted from 0 from
    the start of the stage: by 0 in the first one. 20 in the authors' code for CIFAR-100; 0: no
    warm-up.
    """
    student_stages: Stages | None = None
    """The student's maps, ascending indices as for `fitnet`, the pooled features not among them;
    null: those above. It goes with `teacher_stages`, of the same length.
    """
    teacher_stages: Stages | None = None
    """The teacher's maps, as for `student_stages`."""

    @model_validator(mode="after")
    def _stages_are_pairs(self) -> Self:
        ours, theirs = self.student_stages, self.teacher_stages
        if (ours is None) != (theirs is None):
            missing = "student_stages" if ours is None else "teacher_stages"
            raise ValueError(f"{missing} is missing: name the maps of both models, or of neither")
        if ours is not None and theirs is not None and len(ours) != len(theirs):
            raise ValueError(
                f"student_stages names {len(ours)} maps and teacher_stages {len(theirs)}: a level"
                " is one of each"
            )
        return self


HintSpec = Annotated[
    FitNetSpec | CCSpec | RKDSpec | CRDSpec | ReviewKDSpec | FeatureSpec,
    Field(discriminator="loss"),
]
