"""FitNet (Romero et al., arXiv 1412.6550; the paper's Eq. 2): the student's features are projected
onto those of the teacher.

T_t of Eq. 2 is the identity, T_s a trained 1x1 convolution with BatchNorm to the teacher's width.
RepDistiller's regressor ends with a ReLU; here it does not, since the features of a transformer
have both signs.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.hint import Heads, Supervision

Distance = Literal["l1", "l2"]


class FitNet(Heads):
    """T_s, features of the student's width to features of the teacher's width, and the distance.

    Args:
        student_channels, teacher_channels: widths of the two feature maps.
    """

    def __init__(self, student_channels: int, teacher_channels: int, distance: Distance) -> None:
        super().__init__()
        self.distance = distance
        self.conv = nn.Conv2d(student_channels, teacher_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(teacher_channels)

    def forward(
        self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Project the one feature map [B, C_s, H, W] to [B, C_t, H, W]."""
        return (self.norm(self.conv(student[0])),)

    def loss(
        self, heads: tuple[Tensor, ...], teacher: tuple[Tensor, ...], batch: Supervision
    ) -> Tensor:
        return fitnet(heads[0], teacher[0], self.distance)


def fitnet(student: Tensor, teacher: Tensor, distance: Distance = "l2") -> Tensor:
    """Mean over all elements of the absolute ("l1") or squared ("l2") difference. Scalar, float32.

    The larger map is averaged to the height and width of the smaller one.

    Args:
        student: [B, C, H, W], projected.
        teacher: [B, C, H', W']; no gradient flows into it.

    Raises:
        ValueError: batch sizes or widths differ.
    """
    ours, theirs = of_one_size(student, teacher)
    return F.l1_loss(ours, theirs) if distance == "l1" else F.mse_loss(ours, theirs)


def of_one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps in float32 (float64 stays), the larger one averaged to the size of the
    smaller.

    Args:
        student: [B, C, H, W], projected.
        teacher: [B, C, H', W']; comes back detached.

    Raises:
        ValueError: batch sizes or widths differ.
    """
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"the student's projected features are {list(student.shape)} and the teacher's"
            f" {list(teacher.shape)}: both must be [batch, channels, height, width] with the same"
            " batch and channels"
        )
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    height, width = map(min, student.shape[2:], teacher.shape[2:])
    ours, theirs = (averaged(each.to(dtype), height, width) for each in (student, teacher.detach()))
    return ours, theirs


def averaged(features: Tensor, height: int, width: int) -> Tensor:
    """Return a map [B, C, H, W] averaged to a smaller height and width."""
    own_height, own_width = features.shape[2:]
    if (own_height, own_width) == (height, width):
        return features
    if own_height % height == own_width % width == 0:
        # Its backward on CUDA has one order of additions, that of adaptive pooling has none.
        return F.avg_pool2d(features, (own_height // height, own_width // width))
    return F.adaptive_avg_pool2d(features, (height, width))
