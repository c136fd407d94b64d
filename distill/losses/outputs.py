"""What student and teacher return for a batch, as losses read it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


class Outputs(NamedTuple):
    """What a model in training returns. A tuple, so that DDP and DeepSpeed find its tensors.

    Attributes:
        logits: [B, K].
        features: feature maps, [B, C, H, W] each; what an objective's heads made of them, if it has
            heads.
    """

    logits: Tensor
    features: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class TeacherOutputs:
    """What a frozen teacher returns, without gradient.

    Attributes:
        logits: [B, K] float32.
        features: by stage, [B, C, H, W] in the teacher's dtype: the stages that any of the students
            learns from.
    """

    logits: Tensor
    features: Mapping[int, Tensor] = field(default_factory=dict)
