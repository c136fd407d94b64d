"""The interface of every placement: how processes hold a student's model."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from distill.evaluation.accuracy import Model
from distill.losses.outputs import Outputs
from distill.student.ema import Averaged, Ema
from distill.student.learner import Learner

Tensors = dict[str, torch.Tensor]
BuildOptimizer = Callable[[Learner], torch.optim.Optimizer]


@dataclass(frozen=True)
class Averages:
    """Decays of a student's weight averages, which are named "ema-0.999" and so on."""

    decays: tuple[float, ...] = ()
    warmup: bool = False

    def by_name(self) -> dict[str, float]:
        return {f"ema-{decay!r}": decay for decay in self.decays}

    def begin(self, module: Averaged) -> dict[str, Ema]:
        """Return new averages by name, which start from the current weights of `module`."""
        return {name: Ema(module, decay, self.warmup) for name, decay in self.by_name().items()}


class Placement(Protocol):
    """One student's model in training, on one process or spread over several."""

    failed: bool
    """The last step was skipped because a gradient was not finite. A placement that takes such a
    step leaves this False: the next loss is then not finite.
    """

    def accumulating(self, more_to_come: bool) -> AbstractContextManager[None]:
        """Return the context of a forward and backward; with `more_to_come` it exchanges no
        gradients.
        """

    def forward(self, images: torch.Tensor, given: tuple[torch.Tensor, ...] = ()) -> Outputs:
        """Compute the learner's outputs in the run's precision. Collective under ZeRO-3: every
        rank.

        Args:
            images: [B, 3, H, W] in [0, 1].
            given: what `Objective.given` returns.
        """

    def backward(self, loss: torch.Tensor, more_to_come: bool) -> None:
        """Add the gradients of a loss; average them over processes unless `more_to_come`.
        Collective: every rank.
        """

    def term_norms(
        self, terms: Mapping[str, torch.Tensor], group_size: int
    ) -> dict[str, torch.Tensor]:
        """Return the norm of the gradient of each loss term, on the device, without a wait; the
        gradients of the step stay as they are. Empty where the placement cannot know them.
        Collective: every rank.

        Args:
            terms: scalars of a forward whose `backward` comes later.
            group_size: neighbouring processes that share the micro-batch; their gradients are
                averaged.
        """

    def step(self, lr: float, *, measured: bool = False) -> torch.Tensor | None:
        """Take one optimizer step, clipped as the recipe says. Collective: every rank.

        Returns:
            If `measured`, the norm of the gradient before clipping, on the device.
        """

    def update_averages(self) -> None:
        """Update the averages, after weights and statistics changed."""

    def restart(
        self,
        build_optimizer: BuildOptimizer,
        clip_grad_norm: float | None,
        *,
        new_optimizer: bool,
        new_averages: bool,
        learner: Learner | None = None,
    ) -> None:
        """Begin a stage. Collective: every rank.

        Under ZeRO the optimizer's settings stay those of the first stage, and so do the heads.

        Args:
            build_optimizer: builds an optimizer without state.
            clip_grad_norm: largest norm of the full gradient; None clips nothing.
            new_optimizer: drop the optimizer's state.
            new_averages: start the averages again from the current weights.
            learner: the same model with other heads, which start without optimizer state; None if
                the heads stay.
        """

    def statistics(self) -> list[Tensors]:
        """Return the buffers by name, of the model and of each average: BatchNorm's running
        statistics are among them. They alias.
        """

    def evaluation_models(self) -> dict[str, Model]:
        """Return the models that an evaluation runs, RAW and each average; under ZeRO each holds a
        gathered copy of its weights. Collective: every rank.
        """

    def weights(self, which: str) -> Tensors:
        """Return the state dict of the timm model, on every rank. Collective: every rank.

        Args:
            which: RAW, or the name of an average.
        """

    def state(self) -> tuple[dict[str, Tensors], dict[str, Any]]:
        """Return full tensors by file, and plain values; under ZeRO only the main process gets the
        tensors. The file "heads" exists only with heads. Collective: every rank.
        """

    def load(self, tensors: dict[str, Tensors], values: dict[str, Any]) -> None:
        """Load what `state` of any placement returned. Collective: every rank."""

    def clear(self) -> None:
        """Free optimizer state and averages; what DeepSpeed holds besides them stays."""
