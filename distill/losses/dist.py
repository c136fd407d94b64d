"""DIST (arXiv 2205.10536; the paper's Eq. 5 without its label loss): Pearson distances between
relations of probabilities.

Correlation ignores scale and shift. So each row and column of probabilities is divided by its
largest entry, inside the exponential: a class of probability 1e-30 in every sample counts as much
as any other. A fixed eps added to the norms, as in the usual code (1e-8), hides the intra term at
21,841 classes, where column norms are near 1e-5 or far below.

The intra term depends on which samples are compared. With a `group` these are the samples of all
its processes. They exchange nine numbers a class (extremes, means and second moments), not logits.
"""

import torch
import torch.distributed as distributed
import torch.nn.functional as F
from torch import Tensor

from distill.losses.all_reduce import Group, all_reduce
from distill.losses.inputs import float_pair

_LOG_ZERO = -1e4  # exp() of it is 0 in every dtype, and it can be subtracted from itself


def _correlation(
    log_student: Tensor, log_teacher: Tensor, dim: int, group: Group | None = None
) -> Tensor:
    """Pearson correlation of student and teacher probabilities along `dim`: [B, K]
    log-probabilities -> [K] or [B].

    0, with zero gradient, where either side is constant: its log-probabilities span no more than
    their own rounding.
    """
    sides = (log_student.detach(), log_teacher)
    # [4, n]: the largest of each side, then minus the smallest of each, for a single MAX.
    bounds = torch.stack([side.amax(dim) for side in sides] + [-side.amin(dim) for side in sides])
    if group is not None:
        bounds = all_reduce(bounds, group, distributed.ReduceOp.MAX)
    largest, negated_smallest = bounds.view(2, 2, -1)
    rounding = 8 * torch.finfo(bounds.dtype).eps * (1 + negated_smallest)
    constant = (largest + negated_smallest <= rounding).any(0)

    student = torch.exp(log_student - largest[0].unsqueeze(dim))
    teacher = torch.exp(log_teacher - largest[1].unsqueeze(dim))
    totals = torch.stack([student.detach().sum(dim), teacher.sum(dim)])
    num_ranks = 1
    if group is not None:
        totals = all_reduce(totals, group)
        num_ranks = distributed.get_world_size(group)
    # The means carry no gradient, and need none: the derivative of a centred second moment by its
    # mean is the sum of centred values, which is 0.
    means = totals / (log_student.shape[dim] * num_ranks)
    student = student - means[0].unsqueeze(dim)
    teacher = teacher - means[1].unsqueeze(dim)

    moments = torch.stack(
        [(student * student).sum(dim), (teacher * teacher).sum(dim), (student * teacher).sum(dim)]
    )
    if group is not None:
        moments = all_reduce(moments, group)
    student_square, teacher_square, product = moments.unbind()
    norms = (student_square * teacher_square).masked_fill(constant, 1).sqrt()
    correlation: Tensor = product / norms
    return correlation.masked_fill(constant, 0)


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    group: Group | None = None,
) -> Tensor:
    """tau^2 (beta inter + gamma intra), p = softmax(logits / tau). Scalar, float32.

    inter = 1 - mean over samples of the correlation between the rows p^s_b and p^t_b (over
    classes). intra = 1 - mean over classes of the correlation between the columns p^s_:k and p^t_:k
    (over samples).

    A constant row or column (zero variance; a batch of one, a head initialised to zero) has no
    correlation: it counts as 0, a distance of 1, and gives no gradient. "Constant" means up to
    float32's rounding, a relative variation of about 1e-6 (1 + |log p|); a class above 1 - 6e-8 in
    every sample is constant too.

    With a `group` of processes, columns extend over all of it. Collective in the group, equal B.
    Rows need no other rank, so the value's inter part is the rank's own mean, like any other loss.
    The gradient is right under DDP's averaging: averaged over ranks, parameters get the gradient of
    one process with the full batch.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; no gradient flows into it.
        beta: weight of the inter term.
        gamma: weight of the intra term.
        temperature: tau > 0.
        group: relate the samples of all its processes; None relates those of this one.
    """
    student, teacher = float_pair(student_logits, teacher_logits, "the teacher's")
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher / temperature, dim=-1).clamp(min=_LOG_ZERO)
    inter = 1 - _correlation(log_student, log_teacher, dim=1).mean()
    intra = 1 - _correlation(log_student, log_teacher, dim=0, group=group).mean()
    return (beta * inter + gamma * intra) * temperature**2
