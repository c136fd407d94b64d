"""What student and teacher return for a batch, as losses read it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


class FeatureKey(NamedTuple):
    """Which features of a model. Keys sort in the order of the forward.

    Attributes:
        stage: an index from 0 into the list that timm's `forward_intermediates` returns; that of
            `POOLED` is behind all of them.
        preactivation: before the last activation of a stage of a ResNet.
    """

    stage: int
    preactivation: bool = False

    def __str__(self) -> str:
        if self == POOLED:
            return "the pooled features"
        before = " before its activation" if self.preactivation else ""
        return f"the feature map of stage {self.stage}{before}"


POOLED = FeatureKey(1_000_000)
"""What the classifier reads, as a map [B, C, 1, 1]."""


@dataclass(frozen=True)
class FeatureMap:
    """Features of a model and their shape: [channels, height, width] of an image.

    Attributes:
        scale: what `rescaled` of losses/reviewkd.py makes of the map before a hint compares it; the
            shape is that of the result.
    """

    key: FeatureKey
    channels: int
    height: int
    width: int
    scale: float = 1.0


class Outputs(NamedTuple):
    """What a model in training returns. A tuple, so that DDP and DeepSpeed find its tensors.

    Attributes:
        logits: [B, K]; of a model without classifier its pooled features, [B, C].
        features: feature maps, [B, C, H, W] each; what an objective's heads made of them, if it has
            heads.
    """

    logits: Tensor
    features: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class TeacherOutputs:
    """What a frozen teacher returns, without gradient.

    Attributes:
        logits: [B, K] float32; None of a teacher without classes, and where a soft loss reads
            several.
        features: [B, C, H, W] each, in the teacher's dtype: those that any of the students learns
            from.
        each: the logits of several teachers, with the weight of a loss against each.
    """

    logits: Tensor | None
    features: Mapping[FeatureKey, Tensor] = field(default_factory=dict)
    each: tuple[tuple[float, Tensor], ...] = ()

    def read(self, keys: Sequence[FeatureKey]) -> tuple[Tensor, ...]:
        """Return the features of some keys."""
        return tuple(self.features[key] for key in keys)
