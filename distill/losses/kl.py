"""Vanilla KD: Hinton's KL divergence between softened distributions (arXiv 1503.02531; D_kd of the
paper's Eq. 1).
"""

import torch.nn.functional as F
from torch import Tensor

from distill.losses.confidence import leave_out_unsure
from distill.losses.inputs import float_pair


def divergence(log_teacher: Tensor, log_student: Tensor) -> Tensor:
    """sum_i p^t_i (log p^t_i - log p^s_i) over the last axis: [..., K] log-probabilities -> [...].

    0 log 0 is 0, whether the teacher's probability underflowed or its logit is -inf: such entries
    are filled before the product, so neither value nor gradient meets 0 * inf. Exactly 0 where both
    sides are the same bits.
    """
    teacher = log_teacher.exp()
    return (teacher * (log_teacher - log_student).masked_fill(teacher == 0, 0)).sum(-1)


def kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    min_confidence: float | None = None,
) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), summed over classes, averaged over the
    batch. Scalar, float32.

    The teacher's entropy is in it, so it is 0 at equality. `F.kl_div(reduction="mean")` divides by
    K as well: K times too small. T^2 keeps the size of the gradient while T changes (Hinton et al.,
    section 2).

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; no gradient flows into it.
        temperature: T > 0.
        min_confidence: samples of which the teacher is less sure count zero; see `confidence`.
    """
    student, teacher = float_pair(student_logits, teacher_logits, "the teacher's")
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher / temperature, dim=-1)
    per_sample = leave_out_unsure(divergence(log_teacher, log_student), teacher, min_confidence)
    return per_sample.mean() * temperature**2
