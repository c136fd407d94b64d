"""Between worker processes and the device: torch's DataLoader, pinned memory, one batch ahead on a side stream."""

import os
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader

from distill.errors import InputError
from distill.processes import end_with

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def data_loader(
    builder: object,
    requests: Iterable[Any],
    num_workers: int,
    prefetch_batches: int,
    device: torch.device,
    persistent: bool,
) -> DataLoader[Any]:
    return DataLoader(
        builder,  # type: ignore[arg-type]  # it has __getitem__, which is all that is used
        sampler=requests,
        batch_size=None,
        collate_fn=no_collate,
        num_workers=num_workers,
        prefetch_factor=prefetch_batches if num_workers else None,
        persistent_workers=persistent and num_workers > 0,
        worker_init_fn=start_worker,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # without it each iterator draws a seed from the global generator
    )


T = TypeVar("T")
Host = TypeVar("Host")


class HostIterator(Generic[Host]):
    """The DataLoader's iterator, which raises what a worker handed back as an error, and can be closed."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self._iterator: Any = None  # workers start with the first batch

    def __iter__(self) -> Iterator[Host]:
        return self

    def __next__(self) -> Host:
        if self._iterator is None:
            blocked = signal.pthread_sigmask(
                signal.SIG_BLOCK, _STOP_SIGNALS
            )  # inherited by every thread of the workers
            try:
                self._iterator = iter(self._loader)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        try:
            item: Host | InputError = next(self._iterator)
        except (ConnectionError, EOFError, FileNotFoundError) as error:  # what shared its memory is gone
            raise RuntimeError("DataLoader worker (pid unknown) died and took a batch with it") from error
        if isinstance(item, InputError):
            raise item
        return item

    def close(self) -> None:
        if self._loader.num_workers and self._iterator is not None:
            self._iterator._shutdown_workers()  # dropping the iterator does not help while a traceback refers to it
            self._loader._iterator = None  # else a loader with persistent workers would call the dead ones again
        self._iterator = None


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


def start_worker(_: int) -> None:
    """Set up a loader worker: one thread, an ear for the parent's SIGTERM alone, and no life after the parent's.

    The signals by which SLURM and the terminal ask a run to stop go to all processes of a job step. The run answers by finishing its
    step and saving, for which it needs its workers; were one to die of SIGTERM, torch would end the run in the middle. Workers are
    therefore started with these signals blocked. torch itself ends a hung worker by SIGTERM, which still works.
    """
    torch.set_num_threads(1)
    parent = os.getppid()
    end_with(parent, signal.SIGKILL)  # torch looks for its parent every 5 s, and not while a full queue holds it up

    def watch() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def worker_fault(error: BaseException) -> str | None:
    """What went wrong in a loader's worker, in a sentence; None for every other error.

    torch raises a worker's death out of a signal handler, wherever the main process happens to be, and a worker's exception
    with its whole traceback for a message.
    """
    text = str(error)
    if death := re.search(r"DataLoader worker \(pid.*\) (.*)", text):
        return (
            f"a process that decodes images {death[1].strip(' .')}: most often memory or /dev/shm ran out. Lower data.num_workers or "
            "data.prefetch_batches; the run goes on from its last checkpoint"
        )
    if re.match(r"Caught \w+ in DataLoader worker process", text):
        *_, what = (line for line in text.splitlines() if line.strip())
        *_, (file, line) = re.findall(r'File "(.*?)", line (\d+)', text) or [("?", "?")]
        return f"a fault in a process that decodes images: {what.strip()} ({file}, line {line})"
    return None


def no_collate(item: object) -> object:
    """Batches arrive whole; torch's default would walk through them."""
    return item
