"""CC, correlation congruence (Peng et al., arXiv 1904.01802): how the samples of a batch relate to
each other, in the features that the classifier reads.

The paper's released code and RepDistiller compute something else under this name: two trained
linear maps, and the products of the distances of neighbouring samples. `CC` is that one. Its two
maps can agree on a constant, which makes the loss zero, and its factor 0.02 makes it small: the
paper's row is close to training without a teacher. `CorrelationCongruence` is the original.
"""

import math

import torch
from torch import Tensor, nn

from distill.losses.all_reduce import Group
from distill.losses.hint import Heads, Supervision
from distill.losses.relations import micro_batch

_WIDTH = 128
_SCALE = 0.02
_GAMMA, _ORDER = 0.4, 2  # of the original paper


class CC(Heads):
    """The loss of the released code: a trained linear map of each side to 128 dimensions.

    Args:
        student_channels, teacher_channels: widths of the pooled features.
    """

    def __init__(self, student_channels: int, teacher_channels: int, group: Group | None) -> None:
        super().__init__()
        self.group = group
        self.student = nn.Linear(student_channels, _WIDTH)
        self.teacher = nn.Linear(teacher_channels, _WIDTH)

    def forward(
        self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Map the pooled features [B, C, 1, 1] of both sides to [B, 128]."""
        theirs = teacher[0].flatten(1).to(self.teacher.weight.dtype)
        return self.student(student[0].flatten(1)), self.teacher(theirs)

    def loss(
        self, heads: tuple[Tensor, ...], teacher: tuple[Tensor, ...], batch: Supervision
    ) -> Tensor:
        ours, theirs = (micro_batch(each, self.group) for each in heads)
        return neighbour_congruence(ours, theirs)


class CorrelationCongruence(Heads):
    """The loss of the original paper; trains nothing."""

    def __init__(self, group: Group | None) -> None:
        super().__init__()
        self.group = group

    def loss(
        self, heads: tuple[Tensor, ...], teacher: tuple[Tensor, ...], batch: Supervision
    ) -> Tensor:
        ours, theirs = (micro_batch(each, self.group) for each in (heads[0], teacher[0]))
        return correlation_congruence(ours, theirs.detach())


def neighbour_congruence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 0.02 times the mean over i of sum_d |s_i - t_i|_d |s_i+1 - t_i+1|_d. Scalar.

    Args:
        student, teacher: [B, D], B at least 2; the gradient flows into both, as in the released
            code.
    """
    distances = (student - teacher).abs()
    return _SCALE * (distances[:-1] * distances[1:]).sum(1).mean()


def correlation_congruence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of the two correlation matrices (the original's Eq. 9).
    Scalar.

    The correlation of two samples is the Gaussian kernel exp(-gamma |f_i - f_j|^2) of their
    features on the unit sphere, gamma 0.4, as a Taylor series of order 2 (Eq. 8).

    Args:
        student, teacher: [B, D] and [B, D'].
    """
    return (_correlations(student) - _correlations(teacher)).square().mean()


def _correlations(features: Tensor) -> Tensor:
    unit = nn.functional.normalize(features, dim=1)
    cosines = unit @ unit.T
    series = torch.ones_like(cosines)
    for p in range(1, _ORDER + 1):
        series = series + (2 * _GAMMA) ** p / math.factorial(p) * cosines**p
    return math.exp(-2 * _GAMMA) * series
