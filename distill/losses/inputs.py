"""The first step of every loss: check that its two tensors have the same classes, and convert half
precision to float32.
"""

import torch
from torch import Tensor


def float_pair(student_logits: Tensor, other: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return both tensors in float32, or in float64 if either is float64.

    Args:
        student_logits: [B, K], any floating dtype.
        other: [B, K], teacher logits or label distributions; comes back detached.
        name: what `other` is, for the message.

    Raises:
        ValueError: the tensors differ in shape, are not [B, K], or K < 2. A teacher of other
            classes is refused here.
    """
    if student_logits.shape != other.shape:
        raise ValueError(
            f"the student's logits are {list(student_logits.shape)} and {name} {list(other.shape)}:"
            " both must be [batch, classes] over the same classes"
        )
    if student_logits.ndim != 2 or student_logits.shape[1] < 2:
        raise ValueError(
            "logits must be [batch, classes] with 2 classes or more, and are"
            f" {list(student_logits.shape)}"
        )
    dtype = torch.promote_types(
        torch.promote_types(student_logits.dtype, other.dtype), torch.float32
    )
    return student_logits.to(dtype), other.detach().to(dtype)
