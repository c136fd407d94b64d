"""Classes drawn from the tail of the teacher's distribution, in proportion to their probability.

Of the classes that are not stored with their logits, q_j = p_j / sum of p over them at T = 1. Row n
draws s of them at the points (i + u_n) / s, i = 0..s-1, of the cumulative sum of q, u_n uniform in
[0, 1): class j comes floor(s q_j) or one more times, s q_j in expectation over u_n. That is
systematic sampling; the variance of a count is f (1 - f) for the fraction f of s q_j, at most that
of s independent draws, s q_j (1 - q_j).
"""

import math

import numpy as np
import torch
from torch import Tensor

from distill.rng import hash64, hash64_array


def draw_keys(seed: int, epoch: int, rows: np.ndarray) -> np.ndarray:
    """Return the key of each row, [b] uint64. The draws of a row follow from it and the logits.

    Args:
        seed: of the run.
        rows: [b] int64, within the epoch.
    """
    return hash64_array(hash64(seed, "targets", epoch), rows)


def points(keys: np.ndarray, num_draws: int) -> Tensor:
    """[b] keys -> [b, s] float64 in [0, 1), ascending: the points of the cumulative sum."""
    uniform = torch.from_numpy((keys >> np.uint64(11)).astype(np.float64) * 2.0**-53)
    return ((torch.arange(num_draws) + uniform[:, None]) / num_draws).clamp(max=1 - 2.0**-53)


def cumulative(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the cumulative sums of q over the classes, [b, K] float64 from 0 to 1.

    Args:
        logits: [b, K], finite.
        ids: [b, k] int64, the classes that are not drawn.
    """
    sums = logits.double().scatter(1, ids, -math.inf).softmax(1).cumsum(1)
    return sums / sums[:, -1:]


def draw(logits: Tensor, ids: Tensor, keys: np.ndarray, num_draws: int) -> Tensor:
    """Return the drawn classes, [b, s] int64, ascending, on the CPU. Arguments as of `cumulative`
    and `points`.
    """
    sums = cumulative(logits.cpu(), ids.cpu())
    return torch.searchsorted(sums, points(keys, num_draws), right=True)


def draw_gaps(logits: Tensor, ids: Tensor, keys: np.ndarray, drawn: Tensor) -> Tensor:
    """Return how far the points of stored draws lie outside of their classes at most, [b] float32:
    0 if these logits give the same draws.
    """
    sums = cumulative(logits, ids)
    at = points(keys, drawn.shape[1])
    above = sums.gather(1, drawn)
    below = torch.where(drawn > 0, sums.gather(1, (drawn - 1).clamp(min=0)), 0.0)
    return torch.maximum(below - at, at - above).amax(1).clamp(min=0).float()
