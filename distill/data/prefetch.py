"""On the device: one batch ahead, on a side stream."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from distill.errors import InputError

T = TypeVar("T")
Host = TypeVar("Host")


def move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.to(device, non_blocking=True)


def on_device(host: Iterator[Host], finish: Callable[[Host], T], device: torch.device) -> Iterator[T]:
    return _prefetched(host, finish, device) if device.type == "cuda" else map(finish, host)


def _prefetched(host: Iterator[Host], finish: Callable[[Host], Any], device: torch.device) -> Iterator[Any]:
    """`finish(batch)` for each host batch, one ahead, on a side stream.

    The allocator may hand a batch's memory to the next one as soon as Python drops it; record_stream makes it wait for the work that
    the caller has queued on it.
    """
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def issue() -> Any | None:
        batch = next(host, None)
        if batch is None:
            return None
        with torch.cuda.stream(side):
            return finish(batch)

    ahead = issue()
    while ahead is not None:
        current = torch.cuda.current_stream(device)
        current.wait_stream(side)
        for tensor in ahead.tensors():
            tensor.record_stream(current)
        batch, failure = ahead, None
        try:
            ahead = issue()
        except InputError as error:  # belongs to the next batch: this one is good
            ahead, failure = None, error
        yield batch
        if failure is not None:
            raise failure
