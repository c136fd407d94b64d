"""RKD, relational knowledge distillation (Park et al., arXiv 1904.05068): distances between the
samples of a batch (Eq. 4, 5) and angles of their triples (Eq. 7, 8), in the features that the
classifier reads. Trains nothing, so that the two widths may differ.

Both follow from the B x B squared distances, the angles by the law of cosines, so there are no
B x B x D differences. The squared distances come from the Gram matrix of centred float64 features:
the difference of close samples is all that remains of it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from distill.losses.all_reduce import Group
from distill.losses.hint import Heads, Supervision
from distill.losses.relations import micro_batch

_SAME = 1e-13
"""Squared distances below this part of the mean squared norm are rounding: the samples are one."""
_CHUNK = 2**21
"""Numbers of one B x B x chunk tensor."""


class RKD(Heads):
    """The two terms with their weights."""

    def __init__(self, distance_weight: float, angle_weight: float, group: Group | None) -> None:
        super().__init__()
        self.distance_weight, self.angle_weight = distance_weight, angle_weight
        self.group = group

    def loss(
        self, heads: tuple[Tensor, ...], teacher: tuple[Tensor, ...], batch: Supervision
    ) -> Tensor:
        ours, theirs = (micro_batch(each, self.group) for each in (heads[0], teacher[0]))
        return rkd(ours, theirs, self.distance_weight, self.angle_weight)


def rkd(
    student: Tensor, teacher: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> Tensor:
    """Return distance_weight * distance + angle_weight * angle. Scalar, float32.

    distance: smooth L1 (Huber, delta 1) between the pairwise distances of both sides, each divided
    by its mean over pairs of different samples; mean over B x B. angle: smooth L1 between the
    cosines of the angles at i of all triples i, j, k; mean over B x B x B. Samples that coincide
    have distance 0, angles of 0, and no gradient.

    Args:
        student: [B, D].
        teacher: [B, D']; no gradient flows into it.
    """
    ours, theirs = _squared_distances(student), _squared_distances(teacher.detach())
    loss = torch.zeros((), dtype=ours.dtype, device=ours.device)
    if distance_weight:
        distance = F.smooth_l1_loss(_relative_distances(ours), _relative_distances(theirs))
        loss = loss + distance_weight * distance
    if angle_weight:
        angle: Tensor = _AngleLoss.apply(ours, theirs)
        loss = loss + angle_weight * angle
    return loss


def _squared_distances(features: Tensor) -> Tensor:
    """Return [B, B] in float32 (float64 stays); exactly 0, with no gradient, where samples
    coincide.
    """
    centred = features.double()
    centred = centred - centred.mean(0)
    gram = centred @ centred.T
    norms = gram.diagonal()
    squared = norms[:, None] + norms[None, :] - 2 * gram
    squared = squared.masked_fill(squared <= _SAME * norms.detach().mean(), 0)
    return squared.to(torch.promote_types(features.dtype, torch.float32))


def _lengths(squared: Tensor) -> Tensor:
    """Return the square roots, whose gradient at 0 is 0."""
    zero = squared == 0
    return squared.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


def _relative_distances(squared: Tensor) -> Tensor:
    distances = _lengths(squared)
    count = (distances > 0).sum().clamp(min=1)
    mean = distances.sum() / count
    return distances / mean.masked_fill(mean == 0, 1)


class _AngleLoss(Function):
    """Its gradient is computed with the value, one chunk of the i at a time, so that no B x B x B
    tensor stays in memory.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        size = len(student)
        chunk = max(1, _CHUNK // size**2)
        total = torch.zeros((), dtype=student.dtype, device=student.device)
        gradient = torch.zeros_like(student)
        for first in range(0, size, chunk):
            at = slice(first, first + chunk)
            targets = _cosines(teacher, at)
            with torch.enable_grad():
                squared = student.detach().requires_grad_()
                value = F.smooth_l1_loss(_cosines(squared, at), targets, reduction="sum")
                value = value / size**3
            (part,) = torch.autograd.grad(value, squared)
            total, gradient = total + value.detach(), gradient + part
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grads[0] * gradient, None


def _cosines(squared: Tensor, at: slice) -> Tensor:
    """Return the cosines of the angles at samples i between j and k, [i, B, B]; 0 where j or k
    coincides with i.
    """
    here = squared[at]
    zero = here == 0
    inverse = here.masked_fill(zero, 1).rsqrt().masked_fill(zero, 0)
    inner = here[:, :, None] + here[:, None, :] - squared[None]
    return inner * (inverse / 2)[:, :, None] * inverse[:, None, :]
