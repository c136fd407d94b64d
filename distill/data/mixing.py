"""Mixup and cutmix between neighbours, drawn from (seed, step, group), applied on the device.

timm mixes sample i of a process's batch with sample B - 1 - i, both ways round, with one lambda for
the batch. Here positions 2i and 2i + 1 of the global batch are mixed both ways round, with one
lambda for each group of `group_size` positions: the same statistics (the order is a shuffle), and
independent of how the batch is cut over processes and micro-batches.
"""

from random import Random
from typing import NamedTuple

import numpy as np
import torch

from distill.rng import hash64


class MixPlan(NamedTuple):
    """How b samples are mixed, on the CPU.

    lam: [b] float32, the weight of a sample's own label. boxes: [b, 4] int64 (top, bottom, left,
    right), the part of the image that comes from the partner; empty (zeros) for mixup and for no
    mixing.
    """

    lam: torch.Tensor
    boxes: torch.Tensor
    any_mixup: bool
    any_cutmix: bool


class Mixing:
    """Mixup and cutmix with the recipe's `data.mixing` values.

    Args:
        mixup, cutmix: alpha of Beta(alpha, alpha); 0 is off.
        probability: that a group is mixed at all.
        switch_probability: of cutmix, when both are on.
        group_size: positions of the global batch that share one draw, even.
        num_classes: K.
        image_size: side of the square images.
        seed: of the run.
        labelled: whether labels stand for the K classes; if not, label_probs are zeros and must not
            be read.
    """

    def __init__(
        self,
        *,
        mixup: float,
        cutmix: float,
        probability: float,
        switch_probability: float,
        group_size: int,
        num_classes: int,
        image_size: int,
        seed: int,
        labelled: bool = True,
    ) -> None:
        assert group_size % 2 == 0, group_size
        self.mixup, self.cutmix = mixup, cutmix
        self.probability, self.switch_probability = probability, switch_probability
        self.group_size, self.num_classes, self.image_size = group_size, num_classes, image_size
        self.seed = seed
        self.labelled = labelled

    @property
    def enabled(self) -> bool:
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    def plan(self, step: int, slots: np.ndarray) -> MixPlan | None:
        """How some slots of a global batch are mixed; None when mixing is off.

        Args:
            step: the global step.
            slots: [b] positions within the global batch, whole pairs.
        """
        if not self.enabled:
            return None
        assert (slots[::2] % 2 == 0).all(), slots
        assert np.array_equal(slots[::2] + 1, slots[1::2]), slots
        groups, member = np.unique(slots // self.group_size, return_inverse=True)
        draws = [self._draw(step, int(group)) for group in groups]
        lam = np.array([lam for lam, _ in draws], dtype=np.float32)[member]
        boxes = np.array([box for _, box in draws], dtype=np.int64).reshape(-1, 4)[member]
        cut = boxes[:, 1] > boxes[:, 0]
        mixed = (lam != 1) & ~cut
        return MixPlan(
            torch.from_numpy(lam), torch.from_numpy(boxes), bool(mixed.any()), bool(cut.any())
        )

    def _draw(self, step: int, group: int) -> tuple[float, tuple[int, int, int, int]]:
        """(lambda, box) of a group, as timm draws them for a batch."""
        rng = Random(hash64(self.seed, "mixing", step, group))
        nothing = (0, 0, 0, 0)
        if rng.random() >= self.probability:
            return 1.0, nothing
        use_cutmix = self.cutmix > 0 and (self.mixup == 0 or rng.random() < self.switch_probability)
        alpha = self.cutmix if use_cutmix else self.mixup
        lam = rng.betavariate(alpha, alpha)
        if not use_cutmix:
            return lam, nothing
        size = self.image_size
        side = int(size * (1 - lam) ** 0.5)
        y, x = rng.randrange(size), rng.randrange(size)
        top, bottom = max(y - side // 2, 0), min(y + (side + 1) // 2, size)
        left, right = max(x - side // 2, 0), min(x + (side + 1) // 2, size)
        if top >= bottom or left >= right:
            return 1.0, nothing
        return 1.0 - (bottom - top) * (right - left) / size**2, (top, bottom, left, right)

    def apply(
        self, images: torch.Tensor, labels: torch.Tensor, plan: MixPlan | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix on the device of `images`, without waiting for it.

        Bit for bit the same however a batch is cut into slices of whole pairs: multiplication and
        addition are separate, and a weight of 1 or 0 changes nothing.

        Args:
            images: [b, H, W, 3] uint8, contiguous.
            labels: [b] int64.
            plan: of the same slots, on the same device; None for no mixing.

        Returns:
            images [b, 3, H, W] float32 in [0, 1], channels-last; label_probs [b, K] float32, rows
            sum to 1, or to 0 without labels.
        """
        label_probs = torch.zeros(len(labels), self.num_classes, device=labels.device)
        if plan is None:
            return to_unit(images), (
                label_probs.scatter_(1, labels[:, None], 1.0) if self.labelled else label_probs
            )
        lam = plan.lam[:, None]
        if self.labelled:
            label_probs.scatter_(1, labels[:, None], lam).scatter_add_(
                1, _partner(labels)[:, None], 1 - lam
            )
        cut = plan.boxes[:, 1] > plan.boxes[:, 0]
        if plan.any_cutmix:
            images = torch.where(
                _inside(plan.boxes, images.shape[1])[..., None], _partner(images), images
            )
        pixels = to_unit(images)
        if plan.any_mixup:
            own = torch.where(cut, 1.0, plan.lam)[:, None, None, None]
            other = _partner(pixels.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).mul_(1 - own)
            pixels = pixels.mul_(own).add_(
                other
            )  # in place: half the time of new tensors, the same bits
        return pixels, label_probs


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 [b, H, W, 3] -> float32 [b, 3, H, W] in [0, 1], channels-last."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def _partner(x: torch.Tensor) -> torch.Tensor:
    """Rows 2i and 2i + 1 exchanged: [b, ...] -> [b, ...]."""
    return x.view(-1, 2, *x.shape[1:]).flip(1).view(x.shape)


def _inside(boxes: torch.Tensor, size: int) -> torch.Tensor:
    """[b, 4] boxes -> [b, size, size] bool, true inside."""
    at = torch.arange(size, device=boxes.device)
    top, bottom, left, right = (boxes[:, i, None] for i in range(4))
    rows = (at >= top) & (at < bottom)
    columns = (at >= left) & (at < right)
    return rows[:, :, None] & columns[:, None, :]
