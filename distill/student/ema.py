"""Exponential moving averages of a student's weights and buffers, in float32 at any precision of
training.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

COUNTER = "ema/num_updates"
"""The only name in `Ema.state_dict` that is not a tensor of the module."""


_Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


class Averaged(Protocol):
    """A module, or anything else that names its tensors."""

    def state_dict(self, *, keep_vars: bool) -> dict[str, Tensor]: ...


class Ema:
    """The average of everything in `module.state_dict()`: floating tensors, BatchNorm statistics
    among them, are averaged in float32; integers are copied.

    In bf16 an average with decay 0.9999 would never change: its step is 1e-4 of the difference, and
    bf16 resolves 4e-3.

    `module` is the module itself, not what DDP or compile wraps around it. It must be on its device
    before the average is made, and its tensors are only written in place after.
    """

    def __init__(self, module: Averaged, decay: float, warmup: bool = False) -> None:
        """Start from the current weights of `module`.

        Args:
            decay: weight of the past, 0 < decay < 1.
            warmup: use min(decay, (1 + t) / (10 + t)), t the number of updates made so far.
        """
        assert 0 < decay < 1, decay
        self.decay = decay
        self.warmup = warmup
        self.num_updates = 0
        self._cached: tuple[Averaged, _Lists] | None = None
        # Tied weights are one parameter under two names, and stay one.
        shadows: dict[int, Tensor] = {}
        self._shadow: dict[str, Tensor] = {}
        for name, tensor in _tensors(module).items():
            if id(tensor) not in shadows:
                dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
                shadows[id(tensor)] = tensor.detach().to(dtype, copy=True)
            self._shadow[name] = shadows[id(tensor)]

    def decay_at(self, num_updates: int) -> float:
        """Return the weight of the past in the update after `num_updates` updates."""
        return (
            min(self.decay, (1 + num_updates) / (10 + num_updates)) if self.warmup else self.decay
        )

    @torch.no_grad()
    def update(self, module: Averaged) -> None:
        """Set shadow = decay shadow + (1 - decay) module. Takes a few kernels and does not wait for
        the device.
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
        """Return what `module.load_state_dict` takes, floating tensors in float32. They alias: the
        next `update` changes them.
        """
        return dict(self._shadow)

    def state_dict(self) -> dict[str, Tensor]:
        """Return `weights()`, and the number of updates under COUNTER (int64, 0-d)."""
        assert COUNTER not in self._shadow
        return {**self._shadow, COUNTER: torch.tensor(self.num_updates)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state_dict` returned, in place.

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

    def _lists(self, module: Averaged) -> _Lists:
        """Return the floating tensors of the module, their shadows, the other tensors and their
        shadows, each once.

        They are cached: a ResNet-50's state dict takes 1 ms of the host, at every step.
        """
        if self._cached is None or self._cached[0] is not module:
            tensors = _tensors(module)
            assert tensors.keys() == self._shadow.keys(), (
                "not the averaged module, or a wrapper around it"
            )
            pairs = {
                id(shadow): (tensors[name].detach(), shadow)
                for name, shadow in self._shadow.items()
            }.values()
            floats = [pair for pair in pairs if pair[1].is_floating_point()]
            others = [pair for pair in pairs if not pair[1].is_floating_point()]
            lists = (
                [tensor for tensor, _ in floats],
                [shadow for _, shadow in floats],
                [tensor for tensor, _ in others],
                [shadow for _, shadow in others],
            )
            self._cached = (module, lists)
        return self._cached[1]


def _tensors(module: Averaged) -> dict[str, Tensor]:
    # keep_vars: the parameters themselves, so that tied ones are found by identity.
    state = module.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
