"""Prefetch to the device: one batch ahead of the one in use, copied on a side stream."""

from collections.abc import Callable, Iterator
from typing import Any, Generic, Self, TypeVar

import torch

from distill.data.loading.workers import HostIterator
from distill.errors import InputError

T = TypeVar("T")
Host = TypeVar("Host")


# Host batches that `ready` waits for at most: each holds a file descriptor and its pixels.
MOST_READY = 64


class DeviceIterator(Generic[Host, T]):
    """`finish(batch)` for each host batch; on CUDA the next one is under way before one is handed
    out.
    """

    def __init__(
        self, host: HostIterator[Host], finish: Callable[[Host], T], device: torch.device
    ) -> None:
        self._host = host
        self._batches: Iterator[T] = on_device(host, finish, device)
        self._ahead = int(device.type == "cuda")
        self._held = 0  # batches on the device that were not returned yet

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        batch = next(self._batches)
        self._held = self._ahead
        return batch

    def ready(self, count: int, timeout_s: float) -> bool:
        """Whether the next `count` batches come without a wait; waits about so long for them, or
        without workers makes them.

        Of more than 64 the first 64 are looked at.

        Raises:
            InputError: what is wrong with one of them, as soon as it is known.
        """
        count -= self._held
        is_ready = self._host.ready(min(count + self._ahead, MOST_READY), timeout_s)
        self._host.raise_failure(count)
        return is_ready

    def close(self) -> None:
        """Stop the workers."""
        self._batches = iter(())
        self._held = 0
        self._host.close()


def move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.to(device, non_blocking=True)


def on_device(
    host: Iterator[Host], finish: Callable[[Host], T], device: torch.device
) -> Iterator[T]:
    return _prefetched(host, finish, device) if device.type == "cuda" else map(finish, host)


def _prefetched(
    host: Iterator[Host], finish: Callable[[Host], Any], device: torch.device
) -> Iterator[Any]:
    """`finish(batch)` for each host batch, one ahead, on a side stream.

    The allocator may hand a batch's memory to the next one as soon as Python drops it;
    record_stream makes it wait for the work that the caller has queued on it.
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
