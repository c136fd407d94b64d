"""The binary counterpart of KL, as the paper defines it (Eq. 3) and as its released code computes
it; they differ.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses.confidence import leave_out_unsure
from distill.losses.inputs import float_pair
from distill.losses.kl import divergence


def log_complement(log_p: Tensor) -> Tensor:
    """log(1 - p_i) for every class from log-probabilities: [B, K] -> [B, K].

    Only the largest probability can exceed 1/2, so `log1p(-p)` is accurate for all others. For the
    largest, 1 - p rounds to 0 from a logit gap of 17 on (float32), so we take the sum of the other
    probabilities.
    """
    largest = torch.zeros_like(log_p, dtype=torch.bool).scatter_(
        -1, log_p.argmax(-1, keepdim=True), True
    )
    others = log_p.masked_fill(largest, -torch.inf)
    return torch.where(largest, others.logsumexp(-1, keepdim=True), torch.log1p(-others.exp()))


def bkl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    min_confidence: float | None = None,
) -> Tensor:
    """Eq. 3: sum_i [p^t_i log(p^t_i / p^s_i) + (1 - p^t_i) log((1 - p^t_i) / (1 - p^s_i))]. Scalar,
    float32.

    p are softmax probabilities of logits / T, on both sides. Summed over classes, averaged over the
    batch, times T^2.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; no gradient flows into it.
        temperature: T > 0. The paper has T = 1.
        min_confidence: samples of which the teacher is less sure count zero; see `confidence`.
    """
    student, teacher = float_pair(student_logits, teacher_logits, "the teacher's")
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher / temperature, dim=-1)
    per_sample = divergence(log_teacher, log_student)
    per_sample = per_sample + divergence(log_complement(log_teacher), log_complement(log_student))
    return leave_out_unsure(per_sample, teacher, min_confidence).mean() * temperature**2


def bce_teacher(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The released code's "BKL": BCE(sigmoid(student), softmax(teacher)), averaged over batch and
    classes. Scalar, float32.

    Differs from Eq. 3 in three ways: the student goes through a sigmoid, classes are averaged (K
    times smaller), and the teacher's entropy is left out, so its minimum is not 0.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; no gradient flows into it.
    """
    student, teacher = float_pair(student_logits, teacher_logits, "the teacher's")
    return F.binary_cross_entropy_with_logits(student, teacher.softmax(-1))
