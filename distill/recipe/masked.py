"""Masked-image modelling: the student reconstructs removed patches of its images, without labels
and without a teacher.
"""

from typing import Annotated, Literal

from pydantic import Field

from distill.recipe.values import Section, Weight, Within

DecoderWidth = Annotated[
    int, Field(ge=1), Within(1, 4096, "the paper's decoder has a width of 512")
]


class FCMAESpec(Section):
    """FCMAE of ConvNeXt V2 (the paper's Table 10): patches of 32 pixels are removed at random, the
    student computes the features of the others, and a small decoder predicts the pixels of those
    removed. The loss is the mean squared error over them.
    """

    loss: Literal["fcmae"]
    """The name of the loss."""
    weight: Weight = 1.0
    """The weight of the loss in the objective."""
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """The share of patches that are removed; of 49 patches 0.6 keeps 19, as the released code."""
    decoder_width: DecoderWidth = 512
    """Channels of the decoder, one ConvNeXt V2 block."""
    normalise_patches: bool = True
    """Whether the pixels of each patch are brought to mean 0 and variance 1 before they are
    compared.
    """

    @property
    def heads(self) -> str:
        """Equal for losses whose decoders are alike, so that a next stage trains the decoder
        further: those that differ in weight and mask_ratio alone.
        """
        return self.model_dump_json(exclude={"weight", "mask_ratio"})

    def num_visible(self, num_patches: int) -> int:
        """Return how many patches of an image stay."""
        # 25 * (1 - 0.8) is a little less than 5.
        return int(num_patches * (1 - self.mask_ratio) + 1e-6)
