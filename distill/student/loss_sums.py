"""The loss terms of a student, added up between two logs."""

from dataclasses import dataclass

import torch

from distill.losses.objective import LossTerms


@dataclass
class Losses:
    """Sums of this process's loss terms since the last log, on the device. Absent terms stay zero
    and are not reported.

    Their sums over the processes are those of `steps` global batches.
    """

    sums: torch.Tensor
    steps: int = 0
    present: tuple[str, ...] = ()

    NAMES = LossTerms._fields

    def add(self, terms: LossTerms, share: float) -> None:
        """Add the terms of a micro-batch, which is this share of its global batch. No sync."""
        values = terms._asdict()
        self.present = tuple(name for name in self.NAMES if values[name] is not None)
        self.sums += share * torch.stack(
            [torch.zeros_like(self.sums[0]) if v is None else v.detach() for v in values.values()]
        )
