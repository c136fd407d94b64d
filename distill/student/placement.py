"""What every placement of a student does."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from distill.student.ema import Averaged, Ema

Tensors = dict[str, torch.Tensor]
Judged = Callable[[torch.Tensor], torch.Tensor]
BuildOptimizer = Callable[[torch.nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Averages:
    """Decays of the weight averages that are kept; their names are "ema-0.999" and so on."""

    decays: tuple[float, ...] = ()
    warmup: bool = False

    def by_name(self) -> dict[str, float]:
        return {f"ema-{decay!r}": decay for decay in self.decays}

    def begin(self, module: Averaged) -> dict[str, Ema]:
        """New averages by name, from the weights that `module` has now."""
        return {name: Ema(module, decay, self.warmup) for name, decay in self.by_name().items()}


class Placement(Protocol):
    """One student's model in training, wherever it lies."""

    failed: bool
    """The last step was not taken, since a gradient was not finite. (Where it is taken all the
    same, the next loss tells.)
    """

    def accumulating(self, more_to_come: bool) -> AbstractContextManager[None]:
        """Around a forward and backward whose gradients are not exchanged when `more_to_come`."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images [B, 3, H, W] in [0, 1] -> logits [B, K], in the run's precision. Collective under
        ZeRO-3: every rank.
        """

    def backward(self, loss: torch.Tensor, more_to_come: bool) -> None:
        """Add the gradients of a loss; averaged over processes unless `more_to_come`. Collective:
        every rank.
        """

    def step(self, lr: float) -> None:
        """One optimizer step, clipped as the recipe says. Collective: every rank."""

    def update_averages(self) -> None:
        """Move the averages, once weights and statistics have moved."""

    def restart(
        self,
        build_optimizer: BuildOptimizer | None,
        clip_grad_norm: float | None,
        new_averages: bool,
    ) -> None:
        """Begin a stage: with an optimizer that remembers nothing unless it is null, and averages
        from the weights of now where asked.

        In shards the optimizer's settings stay as they were.
        """

    def statistics(self) -> list[Tensors]:
        """Named tensors that hold BatchNorm's running statistics: the model's and each average's.
        They alias.
        """

    def judged(self) -> dict[str, Judged]:
        """What an evaluation looks at: RAW and each average. Collective: every rank. Holds what it
        gathered.
        """

    def weights(self, which: str) -> Tensors:
        """State dict of the timm model, whole: RAW, or an average. On every rank. Collective: every
        rank.
        """

    def state(self) -> tuple[dict[str, Tensors], dict[str, Any]]:
        """Whole tensors by file, and plain values. Tensors on the main process alone may be had.
        Collective: every rank.
        """

    def load(self, tensors: dict[str, Tensors], values: dict[str, Any]) -> None:
        """Take what `state` of any placement gave. Collective: every rank."""

    def clear(self) -> None:
        """Give optimizer state and averages up; what DeepSpeed holds beside them stays."""
