"""The samples that a teacher is sure of.

A teacher's logits mean little for images of classes that it never learnt; the paper's appendix B
suspects that in its runs on ImageNet-21K. Leaving such samples out is our option, not the paper's.
"""

import torch
from torch import Tensor


def confident(teacher_logits: Tensor, min_confidence: float) -> Tensor:
    """Return whether the teacher's largest probability is at least `min_confidence`: [B, K] -> [B]
    bool.

    The probability is at temperature 1, so the loss's temperature does not change which samples
    count. It is of the mixed image, if images are mixed.
    """
    logits = teacher_logits.detach().to(torch.promote_types(teacher_logits.dtype, torch.float32))
    return (logits.amax(-1) - logits.logsumexp(-1)).exp() >= min_confidence


def leave_out_unsure(
    per_sample: Tensor, teacher_logits: Tensor, min_confidence: float | None
) -> Tensor:
    """Return loss terms [B] with zeros, and no gradient, where the teacher is unsure; None changes
    nothing.

    Their mean still divides by B, so the mean over micro-batches and processes is that of the
    global batch; a batch with few sure samples has a smaller gradient.
    """
    if min_confidence is None:
        return per_sample
    return per_sample.masked_fill(~confident(teacher_logits, min_confidence), 0)
