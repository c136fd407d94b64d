"""The hint of an objective: a loss between features of student and teacher."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from distill.losses.outputs import FeatureKey


class Supervision(Protocol):
    """The part of a batch that losses read.

    label_probs: [B, K] float, the mixed label distribution, not smoothed.
    labels: [B] int64, the images' own labels, before mixing.
    step: the global step.
    epoch: of the samples, counted from the start of the stage.
    indices: [B] int64 on the host, of the samples in their source.
    positions: [B] int64, of the samples in the run: step times global batch size plus slot.
    """

    @property
    def label_probs(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def step(self) -> int: ...

    @property
    def epoch(self) -> int: ...

    @property
    def indices(self) -> np.ndarray: ...

    @property
    def positions(self) -> Tensor: ...


@dataclass(frozen=True)
class Samples:
    """The training samples of a stage, for heads that remember something of each.

    Attributes:
        seed: of the run.
        count: how many there are.
        rows_of: from their indices in the source to 0..count - 1.
        key: equal for stages with the same samples.
        labelled: `Supervision.labels` are classes of the run; else they say nothing.
        device: of the run.
        num_processes: those of the run; each has the same number of samples in a forward.
    """

    seed: int
    count: int
    rows_of: Callable[[np.ndarray], np.ndarray]
    key: Hashable
    labelled: bool
    device: torch.device
    num_processes: int


class Heads(nn.Module):
    """What a hint or masked term trains beside the student and drops after training, and its loss.

    What a method trains is a parameter; what it remembers is a buffer, or in the state dict as a
    buffer is: so checkpoints, resume, ZeRO and stages hold for it. This class has neither.
    """

    def forward(
        self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Return what `loss` reads, computed by what is trained. Runs in the precision of the run.

        Args:
            student: its features, [B, C, H, W] each.
            teacher: its features, without gradient.
        """
        return student

    def loss(
        self, heads: tuple[Tensor, ...], teacher: tuple[Tensor, ...], batch: Supervision
    ) -> Tensor:
        """Return the loss of a micro-batch. Scalar, float32.

        Args:
            heads: what `forward` returned.
            teacher: its features.
        """
        raise NotImplementedError

    def after_step(self) -> None:
        """Remember what the step showed. Called after each optimizer step. Collective: every
        rank.
        """


@dataclass(frozen=True)
class HintTerm:
    """A loss between features.

    Attributes:
        student_features, teacher_features: which features it reads, in ascending order.
        build_heads: builds its heads. Draws from the global generators.
        heads_key: heads with equal keys are alike, so that a next stage can train them further.
    """

    student_features: tuple[FeatureKey, ...]
    teacher_features: tuple[FeatureKey, ...]
    build_heads: Callable[[], Heads]
    heads_key: Hashable
    weight: float = 1.0
