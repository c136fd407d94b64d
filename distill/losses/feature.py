"""Features of a teacher without classes (DINOv2, DINOv3, ...): the student's features, projected,
approach the teacher's in direction or in value.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.fitnet import of_one_size
from distill.losses.hint import Heads, Supervision

Distance = Literal["cosine", "mse"]


class Feature(Heads):
    """A trained 1x1 convolution from the student's width to the teacher's, and the distance.

    Args:
        student_channels, teacher_channels: widths of the two features, pooled or a map.
    """

    def __init__(self, student_channels: int, teacher_channels: int, distance: Distance) -> None:
        super().__init__()
        self.distance = distance
        self.projection = nn.Conv2d(student_channels, teacher_channels, 1)

    def forward(
        self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Project the one feature map [B, C_s, H, W] to [B, C_t, H, W]."""
        return (self.projection(student[0]),)

    def loss(
        self, heads: tuple[Tensor, ...], teacher: tuple[Tensor, ...], batch: Supervision
    ) -> Tensor:
        return feature_distance(heads[0], teacher[0], self.distance)


def feature_distance(student: Tensor, teacher: Tensor, distance: Distance = "cosine") -> Tensor:
    """Return 1 - cosine of the vectors over channels, or the squared difference, averaged over
    samples and positions (and channels). Scalar, float32.

    The larger map is averaged to the height and width of the smaller one.

    Args:
        student: [B, C, H, W], projected.
        teacher: [B, C, H', W']; no gradient flows into it.

    Raises:
        ValueError: batch sizes or widths differ.
    """
    ours, theirs = of_one_size(student, teacher)
    if distance == "mse":
        return F.mse_loss(ours, theirs)
    return 1 - F.cosine_similarity(ours, theirs, dim=1).mean()
