"""What a hint remembers of each training sample."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.hint import Samples

_CHUNK = 2**16
_UNKNOWN = -1


class Entries(NamedTuple):
    """Rows of a bank. rows, labels: [n] int64, label -1 where it is not known. student, teacher:
    [n, D] float32. On the device of the run.
    """

    rows: Tensor
    labels: Tensor
    student: Tensor
    teacher: Tensor


class Bank(nn.Module):
    """A label and two unit vectors for each of N samples: 2 N D numbers in float32, the same on
    every process.

    Its tensors are in the state dict and are not registered as buffers: whatever wraps the heads
    would move them to the device and send them from process to process.

    Args:
        width: D.
        on_host: keep them in (pinned) host memory instead of the memory of the device.
    """

    def __init__(self, samples: Samples, width: int, *, on_host: bool) -> None:
        super().__init__()
        self.device = samples.device
        place = torch.device("cpu") if on_host else samples.device
        pinned = on_host and samples.device.type == "cuda"

        def empty(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=place, pin_memory=pinned)

        self.labels = empty(samples.count, dtype=torch.int64).fill_(_UNKNOWN)
        self.student, self.teacher = (
            empty(samples.count, width, dtype=torch.float32) for _ in range(2)
        )
        bound = (3 / width) ** 0.5  # as in the released code: of length 1 in the mean square
        for tensor in (self.student, self.teacher):
            for part in torch.split(tensor, _CHUNK):  # drawn on the host: the same for every device
                part.copy_(torch.empty(part.shape).uniform_(-bound, bound))

    def read(self, rows: np.ndarray) -> Entries:
        """Return rows, [n] int64. Does not wait for the device."""
        indices = torch.from_numpy(rows)
        on_device = _move(indices, self.device)
        here = on_device if self.labels.device == self.device else indices
        found = (each.index_select(0, here) for each in (self.labels, self.student, self.teacher))
        return Entries(on_device, *(_move(each, self.device) for each in found))

    def write(self, entries: Entries) -> None:
        """Replace rows. Of a row that is there several times, the last one counts. A bank in host
        memory waits for the device.
        """
        rows, labels, student, teacher = (each.to(self.labels.device) for each in entries)
        # All that write to a row write the same values, so their order does not matter.
        last = _last_of_each(rows)
        self.labels.index_copy_(0, rows, labels[last])
        self.student.index_copy_(0, rows, student[last])
        self.teacher.index_copy_(0, rows, teacher[last])

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name in ("labels", "student", "teacher"):
            destination[prefix + name] = getattr(self, name)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, _: Any, strict: bool, missing_keys: list[str], *__: Any
    ) -> None:
        for name in ("labels", "student", "teacher"):
            if prefix + name in state_dict:
                getattr(self, name).copy_(state_dict[prefix + name])
            else:
                missing_keys.append(prefix + name)


def bank_bytes(count: int, width: int) -> int:
    """Return the memory of a bank of so many samples."""
    return count * (2 * 4 * width + 8)


def moved(before: Tensor, now: Tensor, momentum: float) -> Tensor:
    """Return the rows of a bank after their samples were seen again: on the unit sphere.

    Args:
        before: [n, D], the rows.
        now: [n, D], the embeddings.
        momentum: the share of `before`.
    """
    return F.normalize(momentum * before + (1 - momentum) * now.detach(), dim=1)


def _last_of_each(rows: Tensor) -> Tensor:
    """Return for each of [n] rows the place where the same row is last, without a wait."""
    in_order, order = rows.sort(stable=True)
    return order[torch.searchsorted(in_order, rows, right=True) - 1]


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device. From the host it is pinned first: other copies would wait."""
    if tensor.device == device or device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
