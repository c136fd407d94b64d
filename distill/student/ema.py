"""Exponential moving average of a student: float32 weights and buffers, whatever the precision of
training.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

COUNTER = "ema/num_updates"
"""The one name in `Ema.state_dict` that is no tensor of the module."""


class Averaged(Protocol):
    """What an average is of: a module, or anything else that names its tensors."""

    def state_dict(self, *, keep_vars: bool) -> dict[str, Tensor]: ...


class Ema:
    """Shadow of everything in `module.state_dict()`: floating tensors (BatchNorm statistics
    included) averaged in float32, integers copied.

    In bf16 an average with decay 0.9999 would never move: its step is 1e-4 of the difference, and
    bf16 resolves 4e-3.

    `module` is always the bare module, not what DDP or compile wrapped around it, and it keeps its
    tensors: they are moved to their device before the average is made, and only written in place
    after.
    """

    def __init__(self, module: Averaged, decay: float, warmup: bool = False) -> None:
        """Start from the weights that `module` has now.

        Args:
            decay: weight of the past, 0 < decay < 1.
            warmup: use min(decay, (1 + t) / (10 + t)), t the number of updates made so far.
        """
        assert 0 < decay < 1, decay
        self.decay = decay
        self.warmup = warmup
        self.num_updates = 0
        self._kept: (
            tuple[Averaged, tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]] | None
        ) = None
        shadows: dict[
            int, Tensor
        ] = {}  # tied weights are one parameter under two names, and must stay one
        self._shadow: dict[str, Tensor] = {}
        for name, tensor in _tensors(module).items():
            if id(tensor) not in shadows:
                dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
                shadows[id(tensor)] = tensor.detach().to(dtype, copy=True)
            self._shadow[name] = shadows[id(tensor)]

    def decay_at(self, num_updates: int) -> float:
        """Weight of the past in the update that follows `num_updates` others. From a host counter:
        no device is asked.
        """
        return (
            min(self.decay, (1 + num_updates) / (10 + num_updates)) if self.warmup else self.decay
        )

    @torch.no_grad()
    def update(self, module: Averaged) -> None:
        """shadow = decay shadow + (1 - decay) module, after an optimizer step. A handful of
        kernels, no sync with the device.
        """
        floats, float_shadows, others, other_shadows = self._lists(module)
        torch._foreach_lerp_(
            float_shadows,
            [tensor.to(torch.float32) for tensor in floats],
            1 - self.decay_at(self.num_updates),
        )
        if others:
            torch._foreach_copy_(other_shadows, others)
        self.num_updates += 1

    def weights(self) -> dict[str, Tensor]:
        """What `module.load_state_dict` takes, floating tensors in float32. They alias the average:
        the next `update` moves them.
        """
        return dict(self._shadow)

    def state_dict(self) -> dict[str, Tensor]:
        """`weights()`, and the number of updates under COUNTER (int64, 0-d): all that continuing
        needs.
        """
        assert COUNTER not in self._shadow
        return {**self._shadow, COUNTER: torch.tensor(self.num_updates)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` returned. In place, on this average's devices.

        Raises:
            ValueError: names or shapes are of another module.
        """
        if odd := sorted({*self._shadow, COUNTER} ^ state.keys()):
            raise ValueError(
                f"the average is of another model: {len(odd)} names differ, first"
                f" {', '.join(odd[:3])}"
            )
        for name, shadow in self._shadow.items():
            if shadow.shape != state[name].shape:
                shapes = f"{tuple(state[name].shape)}, not {tuple(shadow.shape)}"
                raise ValueError(f"the average is of another model: {name} is {shapes}")
        for name, shadow in self._shadow.items():
            shadow.copy_(state[name])
        self.num_updates = int(state[COUNTER])

    def _lists(
        self, module: Averaged
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Floating tensors of the module, their shadows, other tensors, their shadows; each once.

        Kept between updates: walking a ResNet-50's modules for its state dict takes 1 ms of the
          host, every step.
        """
        if self._kept is None or self._kept[0] is not module:
            tensors = _tensors(module)
            assert tensors.keys() == self._shadow.keys(), (
                "another module than the one averaged (or a wrapped one)"
            )
            pairs = {
                id(shadow): (tensors[name].detach(), shadow)
                for name, shadow in self._shadow.items()
            }.values()
            floats = [pair for pair in pairs if pair[1].is_floating_point()]
            others = [pair for pair in pairs if not pair[1].is_floating_point()]
            self._kept = (
                module,
                (
                    [tensor for tensor, _ in floats],
                    [shadow for _, shadow in floats],
                    [tensor for tensor, _ in others],
                    [shadow for _, shadow in others],
                ),
            )
        return self._kept[1]


def _tensors(module: Averaged) -> dict[str, Tensor]:
    # keep_vars: the parameters themselves, so that tied ones can be told by identity.
    state = module.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
