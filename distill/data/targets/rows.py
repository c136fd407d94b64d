"""Logits of a teacher as bytes: all of them, or the k largest and the sum of the rest.

"all" stores the K logits in the teacher's own data type, so that they come back bit for bit.
"top-k" stores of z [K], sorted descending, the class numbers of the k largest in the fewest bits,
and k + 1 numbers in fp16: z_1; z_1 - z_i for i = 2..k; and z_1 - r, where
r = log sum_{j>k} exp(z_j). The probabilities at T = 1 depend on the differences alone, and fp16
holds small numbers more exactly than large ones. Read back, each of the other K - k classes gets
r - log(K - k): the mass of the rest is exact at T = 1, spread evenly, and any temperature can be
applied.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Self

import numpy as np
import torch
from torch import Tensor

from distill.errors import InputError

ALL: Final = "all"
Kind = Literal["all", "top-k"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class RowFormat:
    """How the logits of an image are stored.

    Attributes:
        kind: "all" or "top-k".
        num_classes: K.
        dtype: of the stored numbers, as in a recipe.
        k: logits kept of "top-k", at least 1 and below K; None of "all".
    """

    kind: Kind
    num_classes: int
    dtype: str
    k: int | None = None

    def __post_init__(self) -> None:
        assert self.dtype in _DTYPES, self.dtype
        assert (self.kind == "top-k") == (self.k is not None), self
        assert self.k is None or 1 <= self.k < self.num_classes, self

    @classmethod
    def chosen(cls, keep: int | Literal["all"], num_classes: int, teacher_dtype: str) -> Self:
        """Return the format that a user chooses.

        Args:
            keep: how many logits of each image; "all" for all of them.
            teacher_dtype: as in a recipe; "all" stores the logits in it.

        Raises:
            InputError: there are no more classes than that.
        """
        if keep == ALL:
            return cls("all", num_classes, teacher_dtype)
        if not 1 <= keep < num_classes:
            raise InputError(
                f"--keep {keep}: should be from 1 to {num_classes - 1}, less than the"
                f" {num_classes} classes; --keep all stores all of them"
            )
        return cls("top-k", num_classes, "fp16", keep)

    def to_dict(self) -> dict[str, Any]:
        """Return what a manifest holds."""
        return asdict(self)

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
            return self.num_classes * item
        return -(-self.k * self.id_bits // 8) + (self.k + 1) * item

    def describe(self) -> str:
        """Return the format in a few words."""
        if self.k is None:
            return f"all {self.num_classes:,} logits in {self.dtype}"
        return f"the {self.k} largest of {self.num_classes:,} logits and the sum of the rest"

    def encode(self, logits: Tensor) -> dict[str, Tensor]:
        """Return the rows of a batch, on the CPU.

        Args:
            logits: [b, K] float32.

        Raises:
            InputError: a logit is not finite, or too large for the data type.
        """
        dtype = _DTYPES[self.dtype]
        if self.k is None:
            rows = {"logits": logits.to(dtype)}
            exact = bool((rows["logits"].float() == logits).all())
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
        return rows

    def decode(self, rows: Mapping[str, Tensor], device: torch.device) -> Tensor:
        """Return the logits of stored rows, [b, K] float32, on the device.

        Args:
            rows: as `encode` returns them.
        """
        if self.k is None:
            return _move(rows["logits"], device).float()
        ids = torch.from_numpy(_unpack(rows["ids"].numpy(), self.id_bits, self.k))
        ids = _move(ids, device)
        values = _move(rows["values"], device).float()
        top, rest = values[:, :1], values[:, :1] - values[:, -1:]
        largest = torch.cat([top, top - values[:, 1:-1]], 1)
        each = rest - math.log(self.num_classes - self.k)
        return each.repeat(1, self.num_classes).scatter_(1, ids, largest)


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
