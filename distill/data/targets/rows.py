"""Logits of a teacher as bytes: all of them, the k largest and the sum of the rest, with or without
classes drawn from the rest.

"all" stores the K logits in the teacher's own data type, so that they come back bit for bit.
"top-k" stores of z [K], sorted descending, the class numbers of the k largest in the fewest bits,
and k + 1 numbers in fp16: z_1; z_1 - z_i for i = 2..k; and z_1 - r, where
r = log sum_{j>k} exp(z_j). The probabilities at T = 1 depend on the differences alone, and fp16
holds small numbers more exactly than large ones. Read back, each of the other K - k classes gets
r - log(K - k): the mass of the rest is exact at T = 1, spread evenly, and any temperature can be
applied.

"sampled" stores beside these the numbers of s classes that are drawn from the rest (see draws).
Read back, a class that was drawn c times gets r + log(c / s), and the others no probability: at
T = 1 the expectation of each class's probability is the teacher's, and so is that of the gradient
of any loss whose gradient is linear in these probabilities (kl, bkl, bce_teacher).

"pre-logits" stores the C pooled features that the head of the teacher reads, in its data type; the
store has the weights of the head, so that all logits come back.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Self

import numpy as np
import torch
from torch import Tensor

from distill.data.targets.draws import draw
from distill.errors import InputError

ALL: Final = "all"
PRE_LOGITS: Final = "pre-logits"
Kind = Literal["all", "top-k", "sampled", "pre-logits"]
Keep = int | Literal["all", "pre-logits"]
"""What a user keeps of each image: a number of logits, all, or the features."""
# Below the largest logit: exp is 0 also in float64, and nothing is infinite.
_NO_PROBABILITY = 1e4
# Manifests of earlier versions lack them.
_LATER_KEYS = ("num_draws", "width")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class RowFormat:
    """How the logits of an image are stored.

    Attributes:
        kind: "all", "top-k", "sampled" or "pre-logits".
        num_classes: K.
        dtype: of the stored numbers, as in a recipe.
        k: logits kept of "top-k" and "sampled", at least 1 and below K; else None.
        num_draws: s of "sampled", at least 1; else None.
        width: C of "pre-logits"; else None.
    """

    kind: Kind
    num_classes: int
    dtype: str
    k: int | None = None
    num_draws: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        assert self.dtype in _DTYPES, self.dtype
        assert (self.kind in ("top-k", "sampled")) == (self.k is not None), self
        assert self.k is None or 1 <= self.k < self.num_classes, self
        assert (self.kind == "sampled") == (self.num_draws is not None), self
        assert self.num_draws is None or self.num_draws >= 1, self
        assert (self.kind == "pre-logits") == (self.width is not None), self

    @classmethod
    def chosen(
        cls,
        keep: Keep,
        num_classes: int,
        teacher_dtype: str,
        num_draws: int | None = None,
        width: int | None = None,
    ) -> Self:
        """Return the format that a user chooses.

        Args:
            keep: how many logits of each image; "all" for all of them; "pre-logits" for features.
            teacher_dtype: as in a recipe; "all" and "pre-logits" store numbers in it.
            num_draws: classes that are drawn from the rest; None for none.
            width: of the features; "pre-logits" alone needs it.

        Raises:
            InputError: there are no more classes than that, or none to draw from.
        """
        if num_draws is not None and isinstance(keep, str):
            raise InputError(
                f"--sampled: draws from the logits that are not kept, and --keep {keep} keeps all:"
                " give --keep a number below the number of classes"
            )
        if keep == PRE_LOGITS:
            return cls(PRE_LOGITS, num_classes, teacher_dtype, width=width)
        if keep == ALL:
            return cls("all", num_classes, teacher_dtype)
        if not 1 <= keep < num_classes:
            raise InputError(
                f"--keep {keep}: should be from 1 to {num_classes - 1}, less than the"
                f" {num_classes} classes; --keep all stores all of them"
            )
        if num_draws is not None:
            return cls("sampled", num_classes, "fp16", keep, num_draws)
        return cls("top-k", num_classes, "fp16", keep)

    def to_dict(self) -> dict[str, Any]:
        """Return what a manifest holds."""
        unset = {key for key in _LATER_KEYS if getattr(self, key) is None}
        return {key: value for key, value in asdict(self).items() if key not in unset}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the format that a manifest holds."""
        return cls(**values)

    @property
    def id_bits(self) -> int:
        """Bits of a class number."""
        return max(1, (self.num_classes - 1).bit_length())

    @property
    def row_bytes(self) -> int:
        """Bytes of an image."""
        item = _DTYPES[self.dtype].itemsize
        if self.k is None:
            return (self.width or self.num_classes) * item
        ids = -(-self.k * self.id_bits // 8) + -(-(self.num_draws or 0) * self.id_bits // 8)
        return ids + (self.k + 1) * item

    def describe(self) -> str:
        """Return the format in a few words."""
        if self.width is not None:
            return f"the {self.width:,} features before the head in {self.dtype}"
        if self.k is None:
            return f"all {self.num_classes:,} logits in {self.dtype}"
        largest = f"the {self.k} largest of {self.num_classes:,} logits"
        if self.num_draws is None:
            return f"{largest} and the sum of the rest"
        return f"{largest}, the sum of the rest and {self.num_draws} classes drawn from it"

    def encode(self, logits: Tensor, keys: np.ndarray | None = None) -> dict[str, Tensor]:
        """Return the rows of a batch, on the CPU.

        Args:
            logits: [b, K] float32; of "pre-logits" the features [b, C].
            keys: [b] uint64, from `draw_keys`; "sampled" alone needs them.

        Raises:
            InputError: a logit is not finite, or too large for the data type.
        """
        dtype = _DTYPES[self.dtype]
        if self.k is None:
            rows = {"logits" if self.width is None else "features": logits.to(dtype)}
            exact = bool((logits.to(dtype).float() == logits).all())
            assert exact or not logits.isfinite().all(), "the logits have more digits than stored"
        else:
            top, ids = logits.topk(self.k, dim=1)
            rest = logits.scatter(1, ids, -math.inf).logsumexp(1, keepdim=True)
            below = top[:, :1] - torch.cat([top[:, 1:], rest], 1)
            rows = {"values": torch.cat([top[:, :1], below], 1).to(dtype)}
        if not all(bool(tensor.isfinite().all()) for tensor in rows.values()):
            raise InputError(
                "teacher: a logit is not finite, or too large for fp16: check the teacher's"
                " weights, set teacher.dtype: fp32, or store --keep all"
            )
        rows = {name: tensor.cpu() for name, tensor in rows.items()}
        if self.k is not None:
            rows["ids"] = torch.from_numpy(_pack(ids.cpu().numpy(), self.id_bits))
        if self.num_draws is not None:
            assert keys is not None, "the draws of a row follow from its key"
            drawn = draw(logits, ids, keys, self.num_draws)
            rows["drawn"] = torch.from_numpy(_pack(drawn.numpy(), self.id_bits))
        return rows

    def decode(self, rows: Mapping[str, Tensor], device: torch.device) -> Tensor:
        """Return the logits of stored rows, [b, K] float32, on the device; of "pre-logits" the
        features [b, C] in their own data type.

        Args:
            rows: as `encode` returns them.
        """
        if self.width is not None:
            return _move(rows["features"], device)
        if self.k is None:
            return _move(rows["logits"], device).float()
        ids, largest, rest = self.parts(rows, device)
        if self.num_draws is None:
            each = rest - math.log(self.num_classes - self.k)
            return each.repeat(1, self.num_classes).scatter_(1, ids, largest)
        drawn = _move(self.drawn(rows), device)
        counts = torch.zeros(len(ids), self.num_classes, device=device)
        counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=counts.dtype))
        none = largest[:, :1] - _NO_PROBABILITY
        logits = torch.where(counts > 0, rest + (counts / self.num_draws).log(), none)
        return logits.scatter_(1, ids, largest)

    def drawn(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Return the drawn classes of "sampled" rows, [b, s] int64."""
        assert self.num_draws is not None
        return torch.from_numpy(_unpack(rows["drawn"].numpy(), self.id_bits, self.num_draws))

    def parts(
        self, rows: Mapping[str, Tensor], device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return of "top-k" and "sampled" rows the classes [b, k], their logits [b, k], and the
        log-sum-exp of the other logits [b, 1], on the device.
        """
        assert self.k is not None
        ids = _move(torch.from_numpy(_unpack(rows["ids"].numpy(), self.id_bits, self.k)), device)
        values = _move(rows["values"], device).float()
        top = values[:, :1]
        return ids, torch.cat([top, top - values[:, 1:-1]], 1), top - values[:, -1:]


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    # Pinned, so that the copy does not wait for the work that is queued on the device.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _pack(ids: np.ndarray, bits: int) -> np.ndarray:
    """[b, k] class numbers -> [b, ceil(k bits / 8)] uint8, the highest bit of each first."""
    places = np.arange(bits - 1, -1, -1)
    return np.packbits(((ids[..., None] >> places) & 1).astype(np.uint8).reshape(len(ids), -1), 1)


def _unpack(packed: np.ndarray, bits: int, k: int) -> np.ndarray:
    """[b, ceil(k bits / 8)] uint8 -> [b, k] int64 class numbers."""
    found = np.unpackbits(packed, axis=1, count=k * bits).reshape(len(packed), k, bits)
    return found.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1))
