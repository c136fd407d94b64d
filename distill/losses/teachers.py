"""Several teachers for one soft loss: their logits as one, or a loss of each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses.outputs import TeacherOutputs
from distill.recipe.teachers import Combine


@dataclass(frozen=True)
class Combination:
    """How a soft loss reads its teachers.

    Attributes:
        weights: each teacher and its weight, above 0; they add up to 1.
        how: as `combine` of a recipe.
        temperature: T of the loss.
    """

    weights: tuple[tuple[str, float], ...]
    how: Combine = "probabilities"
    temperature: float = 1.0


def combined_logits(
    logits: Sequence[Tensor],
    weights: Sequence[float],
    how: Combine = "probabilities",
    temperature: float = 1.0,
) -> Tensor:
    """Return one set of logits for several teachers, [B, K] float32 (float64 stays).

    "logits": z = sum_k w_k z_k. "probabilities": z = T log sum_k w_k softmax(z_k / T), so that
    softmax(z / T) is the weighted mean of the teachers' probabilities at T. The logits of one
    teacher come back as they are.

    Args:
        logits: [B, K] of each teacher.
        weights: one for each, above 0; they add up to 1.
        temperature: T of the loss that reads them.
    """
    if len(logits) == 1:
        return logits[0]
    wide = [each.to(torch.promote_types(each.dtype, torch.float32)) for each in logits]
    match how:
        case "logits":
            return torch.stack([w * z for w, z in zip(weights, wide, strict=True)]).sum(0)
        case "probabilities" | "losses":
            terms = [
                F.log_softmax(z / temperature, dim=-1) + math.log(w)
                for w, z in zip(weights, wide, strict=True)
            ]
            return temperature * torch.stack(terms).logsumexp(0)
        case _:
            assert_never(how)


@dataclass
class Lessons:
    """What the teachers of a run return for a micro-batch. Students that read the same combination
    share it.

    Attributes:
        outputs: of each teacher that a student reads.
    """

    outputs: Mapping[str, TeacherOutputs]
    _combined: dict[Combination, tuple[tuple[float, Tensor], ...]] = field(default_factory=dict)

    def logits(self, combination: Combination) -> tuple[tuple[float, Tensor], ...]:
        """Return the logits that a soft loss reads, [B, K] float32 each, with the weight of the
        loss against them.
        """
        if combination not in self._combined:
            found = [self._logits(name) for name, _ in combination.weights]
            weights = [weight for _, weight in combination.weights]
            if combination.how == "losses":
                self._combined[combination] = tuple(zip(weights, found, strict=True))
            else:
                one = combined_logits(found, weights, combination.how, combination.temperature)
                self._combined[combination] = ((1.0, one),)
        return self._combined[combination]

    def _logits(self, name: str) -> Tensor:
        logits = self.outputs[name].logits
        if logits is None:
            raise ValueError(f"a soft term learns from logits, and {name} has none")
        return logits
