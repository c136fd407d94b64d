"""Losses on labels: cross-entropy and binary cross-entropy against a mixed label distribution
(Table 2's "Label Loss", Table 4).

Released code and timm average BCE over classes and batch. Its gradient is then tens to hundreds of
times smaller, at K = 1000, than that of a KL summed over classes. `class_reduction="sum"` is the
other choice.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses.inputs import float_pair


def smooth(label_probs: Tensor, smoothing: float) -> Tensor:
    """Label smoothing of distributions: (1 - s) t + s / K.

    timm smooths the one-hot vectors and mixes after. Both orders give the same numbers, since
    smoothing is affine and mixing weights sum to one; so a batch has unsmoothed distributions
    and each objective smooths them itself.

    Args:
        label_probs: [B, K], rows sum to one.
        smoothing: s, in [0, 1).
    """
    if smoothing == 0:
        return label_probs
    label_probs = label_probs.to(torch.promote_types(label_probs.dtype, torch.float32))
    return label_probs * (1 - smoothing) + smoothing / label_probs.shape[-1]


def cross_entropy(student_logits: Tensor, label_probs: Tensor) -> Tensor:
    """-sum_i t_i log p_i, summed over classes, averaged over the batch. Scalar, float32.

    Args:
        student_logits: [B, K].
        label_probs: [B, K] label distribution, smoothed if the recipe says so.
    """
    student, labels = float_pair(student_logits, label_probs, "the label distribution")
    return -(labels * F.log_softmax(student, dim=-1)).sum(-1).mean()


def binary_cross_entropy(
    student_logits: Tensor, label_probs: Tensor, class_reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """-t_i log sigmoid(z_i) - (1 - t_i) log sigmoid(-z_i), averaged over the batch. Scalar,
    float32.

    Args:
        student_logits: [B, K].
        label_probs: [B, K], each entry in [0, 1], smoothed if the recipe says so.
        class_reduction: over classes, "mean" (timm, the paper's released code) or "sum".
    """
    student, labels = float_pair(student_logits, label_probs, "the label distribution")
    if class_reduction == "mean":
        return F.binary_cross_entropy_with_logits(student, labels)
    return F.binary_cross_entropy_with_logits(student, labels, reduction="none").sum(-1).mean()
