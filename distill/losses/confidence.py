"""Which samples a teacher is sure of.

Of images of classes that it never learnt a teacher says little that means anything; the paper's
appendix B suspects that in its runs on ImageNet-21K. Leaving such samples out is an option of ours,
not the paper's.
"""

import torch
from torch import Tensor


def confident(teacher_logits: Tensor, min_confidence: float) -> Tensor:
    """Whether the teacher's largest probability, at temperature 1, is `min_confidence` or more: [B,
    K] -> [B] bool.

    Of the logits as they are given, so of the mixed image where images are mixed. The loss's
    temperature has no say: which samples count must not change with how softly they are taught.
    """
    logits = teacher_logits.detach().to(torch.promote_types(teacher_logits.dtype, torch.float32))
    return (logits.amax(-1) - logits.logsumexp(-1)).exp() >= min_confidence


def leave_out_unsure(
    per_sample: Tensor, teacher_logits: Tensor, min_confidence: float | None
) -> Tensor:
    """Loss terms [B] with zeros, and no gradient, where the teacher is unsure; null: as they are.

    Their mean still divides by B, so the mean over the parts of a batch, its micro-batches and
    processes, is that of the whole; and a batch with few sure samples pulls less.
    """
    if min_confidence is None:
        return per_sample
    return per_sample.masked_fill(~confident(teacher_logits, min_confidence), 0)
