"""Decoupled knowledge distillation (arXiv 2203.08679; the paper's Eq. 4): alpha TCKD +
beta NCKD.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses.inputs import float_pair
from distill.losses.kl import divergence


def target_class(label_probs: Tensor, labels: Tensor) -> Tensor:
    """Return DKD's target class of an image whose label is mixed: [B, K], [B] -> [B] int64.

    The class with the largest share; where that is a tie, as at lambda = 0.5, and the image's own
    label is among the first, the own label. The released code takes the argmax, which leaves ties
    to the order of the classes.

    Args:
        label_probs: [B, K] mixed label distribution.
        labels: [B] int64, the label of the image itself, before mixing.
    """
    own = labels.unsqueeze(-1)
    share, largest = label_probs.max(-1, keepdim=True)
    return torch.where(label_probs.gather(-1, own) >= share, own, largest).squeeze(-1)


def teachers_class(teacher_logits: Tensor) -> Tensor:
    """Return the teacher's largest logit in place of a label: [B, K] -> [B] int64.

    For images whose labels are other classes, such as ImageNet-21K's under a 1K teacher. The
    paper's Table 14 has DKD there and does not name the target: this is our choice. Of equal logits
    the first class is taken.
    """
    return teacher_logits.detach().argmax(-1)


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    beta: float = 2.0,
    temperature: float = 1.0,
) -> Tensor:
    """T^2 (alpha TCKD + beta NCKD), averaged over the batch. Scalar, float32.

    TCKD = KL([p^t_y, 1 - p^t_y] || [p^s_y, 1 - p^s_y]), NCKD = KL between the softmaxes over the
    classes other than y. All in log space: log(1 - p_y) is the log-sum-exp of the other
    log-probabilities. Through `log(softmax)`, as in the released code, it is inf or NaN from a
    logit gap of 18 (fp16) or 110 (fp32).

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; no gradient flows into it.
        target: [B] int64, the class y. Under mixing, see `target_class`; without labels,
            `teachers_class`.
        alpha: weight of TCKD.
        beta: weight of NCKD.
        temperature: T > 0.
    """
    student, teacher = float_pair(student_logits, teacher_logits, "the teacher's")
    target = target.unsqueeze(-1)
    is_target = torch.zeros_like(student, dtype=torch.bool).scatter_(-1, target, True)

    def target_or_not(logits: Tensor) -> Tensor:  # -> [B, 2]: log p_y, log(1 - p_y)
        log_p = F.log_softmax(logits, dim=-1)
        rest = log_p.masked_fill(is_target, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat([log_p.gather(-1, target), rest], dim=-1)

    def among_others(logits: Tensor) -> Tensor:
        # [B, K], -inf at the target, which `divergence` counts as 0
        return F.log_softmax(logits.masked_fill(is_target, -torch.inf), dim=-1)

    student, teacher = student / temperature, teacher / temperature
    tckd = divergence(target_or_not(teacher), target_or_not(student))
    nckd = divergence(among_others(teacher), among_others(student))
    return (alpha * tckd + beta * nckd).mean() * temperature**2
