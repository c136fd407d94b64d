"""RKD, relational knowledge distillation (Park et al., arXiv 1904.05068): distances between the
samples of a batch (Eq. 4, 5) and angles of their triples (Eq. 7, 8), in the features that the
classifier reads. Trains nothing, so that the two widths may differ.

Both follow from the Gram matrix of the features: <x_j - x_i, x_k - x_i> = G_jk - G_ij - G_ik + G_ii
takes B x B numbers for each i and no B x B x D differences. The Gram matrix is one of centred
float64 features, since the difference of close samples is all that remains of it.
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
    dtype = torch.promote_types(student.dtype, torch.float32)
    ours, theirs = _gram(student), _gram(teacher.detach())
    loss = torch.zeros((), dtype=torch.float64, device=student.device)
    if distance_weight:
        distance = F.smooth_l1_loss(_relative_distances(ours), _relative_distances(theirs))
        loss = loss + distance_weight * distance
    if angle_weight:
        angle: Tensor = _AngleLoss.apply(ours, theirs)
        loss = loss + angle_weight * angle
    return loss.to(dtype)


def _gram(features: Tensor) -> Tensor:
    centred = features.double()
    centred = centred - centred.mean(0)
    return centred @ centred.T


def _squared_distances(gram: Tensor) -> Tensor:
    """Return [B, B]; exactly 0 with no gradient where samples coincide."""
    norms = gram.diagonal()
    squared = norms[:, None] + norms[None, :] - 2 * gram
    return squared.masked_fill(squared <= _SAME * norms.detach().mean(), 0)


def _lengths(squared: Tensor) -> Tensor:
    """Return the square roots, whose gradient at 0 is 0."""
    zero = squared == 0
    return squared.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


def _relative_distances(gram: Tensor) -> Tensor:
    distances = _lengths(_squared_distances(gram))
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
                gram = student.detach().requires_grad_()
                value = F.smooth_l1_loss(_cosines(gram, at), targets, reduction="sum") / size**3
            (part,) = torch.autograd.grad(value, gram)
            total, gradient = total + value.detach(), gradient + part
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grads[0] * gradient, None


def _cosines(gram: Tensor, at: slice) -> Tensor:
    """Return the cosines of the angles at samples i between j and k, [i, B, B]; 0 where j or k
    coincides with i.
    """
    inner = gram[None] - gram[at, :, None] - gram[at, None, :] + gram.diagonal()[at, None, None]
    lengths = _lengths(_squared_distances(gram)[at])
    inverse = lengths.masked_fill(lengths == 0, 1).reciprocal().masked_fill(lengths == 0, 0)
    return inner * inverse[:, :, None] * inverse[:, None, :]
