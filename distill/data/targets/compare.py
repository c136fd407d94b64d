"""The distance of stored rows from what the live teacher says of the same images.

Numbers that another machine, device or number of threads computes differ in their last digits, and
k logits and the rest are rounded to fp16; a row may differ by both, and by no more.
"""

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from distill.data.targets.draws import draw_gaps
from distill.data.targets.rows import RowFormat

# Of the largest number of a row, and of 1: convolutions of a GPU in TF32 round to 2^-11, and a
# network adds up what its layers round.
_TOLERANCE: Final = {"fp32": 5e-3, "fp16": 1e-2, "bf16": 5e-2}
_FP16 = 2.0**-10  # the largest number and a difference from it, 2^-11 each


class Gaps(NamedTuple):
    """Stored rows and live ones, on the CPU.

    Attributes:
        same: [b] bool, bit for bit.
        gap: [b] float32, the largest difference of a number.
        allowed: [b] float32, how much it may be.
    """

    same: Tensor
    gap: Tensor
    allowed: Tensor


def gaps(
    rows: RowFormat,
    stored: Mapping[str, Tensor],
    live: Tensor,
    teacher_dtype: str,
    keys: np.ndarray | None = None,
) -> Gaps:
    """Compare stored rows with live ones.

    Args:
        stored: as `RowFormat.encode` returned them.
        live: what it encodes, of the live teacher.
        teacher_dtype: as in a recipe.
        keys: of the rows, as for `RowFormat.encode`.
    """
    encoded = rows.encode(live, keys)
    same = torch.stack([(encoded[name] == stored[name]).flatten(1).all(1) for name in encoded]).all(
        0
    )
    live = live.float().cpu()
    scale = live.abs().amax(1).clamp(min=1)
    allowed = _TOLERANCE[teacher_dtype] * scale
    if rows.k is None:
        return Gaps(same, (rows.decode(stored, live.device).float() - live).abs().amax(1), allowed)
    ids, largest, rest = rows.parts(stored, live.device)
    others = live.scatter(1, ids, -math.inf)
    at_ids = live.gather(1, ids)
    off_mass = (rest[:, 0] - others.logsumexp(1)).abs()
    found = torch.maximum((largest - at_ids).abs().amax(1), off_mass)
    if keys is not None and rows.num_draws is not None:
        # Logits that move by e, some up and others down, add 2e to the log-odds of a point of the
        # cumulative sum. It moves by tanh(e / 2) at most, from 1 / (1 + exp(e)) to 1 minus that.
        off_points = draw_gaps(live, ids, keys, rows.drawn(stored))
        found = torch.maximum(found, 2 * off_points.atanh())
    below = (at_ids.amax(1) - torch.minimum(at_ids.amin(1), rest[:, 0])).abs()
    return Gaps(same, found, allowed + _FP16 * torch.maximum(scale, below))
