"""Stochastic depth whose draws depend on samples, not on processes.

timm's DropPath draws from the device's global generator: the same run on another number of
processes, or with another micro-batch, would drop other samples. Here the draw of (layer, sample)
is hash(key, layer, position), so it is the same wherever the sample is computed. Plain nn.Dropout
still draws from the global generator, seeded for each forward: a recipe with drop_rate > 0 repeats
where each process has whole micro-batches.

A DropPath that its block applies to several branches (mixers, xcit, cait, coat) drops all of a
sample's branches or none: each has timm's rate, but they are not independent as in timm. A
draw for each call would need a counter in forward, and that breaks recomputation under gradient
checkpointing.
"""

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from distill import rng
from distill.errors import InputError


class PositionDropPath(nn.Module):
    """timm's DropPath with keep factors set by `DropPathKeys`. The identity in eval mode."""

    def __init__(self, drop_prob: float, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale_by_keep = scale_by_keep
        # [B] float32: 0 drops, 1 / keep (or 1) keeps. A plain attribute: DDP broadcasts buffers,
        # and this one differs on each rank.
        self.factor: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, ...], any float dtype."""
        if not self.training:
            return x
        assert self.factor is not None, "DropPathKeys.set comes before each training forward"
        if x.shape[0] != self.factor.shape[0]:
            raise InputError(
                f"drop_path: this model drops paths of {x.shape[0]} rows where the batch has"
                f" {self.factor.shape[0]} samples, and rows that are not samples cannot be dropped"
                " by position: set drop_path to 0"
            )
        return x * self.factor.to(x.dtype).view(-1, *[1] * (x.ndim - 1))

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:0.3f}"


def replace_drop_path(model: nn.Module) -> list[PositionDropPath]:
    """Replace every timm DropPath with a rate above 0, in place.

    Returns:
        The new layers in the order of `model.modules()`; the index of a layer is its key.
    """
    replaced: dict[int, PositionDropPath] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, DropPath) and child.drop_prob:
                if id(child) not in replaced:
                    new = PositionDropPath(child.drop_prob, child.scale_by_keep)
                    replaced[id(child)] = new.train(child.training)
                setattr(parent, name, replaced[id(child)])
    return list(replaced.values())


class DropPathKeys:
    """Draws the masks of all drop paths of a model, once a forward: one [L, B] tensor on the
    device, without waiting for it.

    The draw of layer l for a sample drops it when `uniform(hash64(*keys, l, position)) >= 1 -
    drop_prob`, where `key = hash64(*keys)`.

    Args:
        model: its timm DropPath layers are replaced in place.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = replace_drop_path(model)
        keep = torch.tensor([1 - layer.drop_prob for layer in self.layers], dtype=torch.float64)
        scaled = torch.tensor([layer.scale_by_keep for layer in self.layers], dtype=torch.bool)
        self._keep = keep.float()[:, None]
        # A rate of 1 drops everything, and timm does not scale it.
        self._scale = torch.where(scaled & (keep > 0), 1 / keep, 1.0).float()[:, None]
        self._index = torch.arange(len(self.layers))
        self._keys: tuple[int, Tensor] | None = None  # of the layers; the same throughout the run

    def set(self, key: int, positions: Tensor) -> None:
        """Draw for the next forward. Call it outside compiled code: only tensors change, so nothing
        is compiled again.

        Args:
            key: 64 bits from rng.hash64(seed, purpose, student).
            positions: [B] int64, on the model's device: positions in the run of this forward's
                samples, in its order.
        """
        if not self.layers:
            return
        if self._index.device != positions.device:
            self._keep, self._scale, self._index = (
                t.to(positions.device) for t in (self._keep, self._scale, self._index)
            )
            self._keys = None
        if self._keys is None or self._keys[0] != key:
            pattern = torch.tensor(key - (1 << 64) if key >> 63 else key, dtype=torch.int64).to(
                positions.device
            )
            self._keys = key, rng.hash64_tensor(pattern, self._index)[:, None]
        layer_keys = self._keys[1]
        draws = rng.hash64_tensor(layer_keys, positions[None, :])
        factors = (rng.uniform_tensor(draws) < self._keep) * self._scale
        for layer, factor in zip(self.layers, factors.unbind(0), strict=True):
            layer.factor = factor
