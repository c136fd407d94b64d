"""Worker processes that decode: torch's DataLoader, made robust against signals, killed workers and
forks that hang.
"""

import itertools
import os
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

import numpy.ma  # noqa: F401 - numpy imports it with the first np.unique, which would be in each worker
import torch
from torch.utils.data import DataLoader

from distill.errors import InputError
from distill.processes import end_with

Host = TypeVar("Host")

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
# After this long without a batch torch checks on its workers, and this process checks for signals.
_LOOK_EVERY_S = 1.0
_NOT_YET = re.compile(r"DataLoader timed out after")
_PINNING_ENDS_S = 10.0
# CPython 3.11 hangs a forked child for ever if another thread begins or ends to hold Python objects
# at that moment, as gloo's threads do after a collective: 1 of 12,000 forks in a loop that provoked
# it. A worker that has not started after this long is replaced.
_COMES_UP_S = (5.0, 20.0, 60.0)


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
        worker_init_fn=Start(num_workers),
        pin_memory=device.type == "cuda",
        # without it each iterator draws a seed from the global generator
        generator=torch.Generator(),
    )


class _NotReadyError(Exception):
    """No batch came before torch's time limit."""


class HostIterator(Generic[Host]):
    """The DataLoader's iterator. It raises what a worker returned as an error, knows which batches
    are ready, and can be closed.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self._iterator: Any = None  # workers start with the first batch
        self._here: deque[Host | InputError] = deque()
        self._is_over = False  # at the end, or at an error, after which nothing is asked for
        self._raised: InputError | None = None

    def __iter__(self) -> Iterator[Host]:
        return self

    def __next__(self) -> Host:
        while not self.ready(1, _LOOK_EVERY_S):
            pass
        if not self._here:
            raise StopIteration
        item = self._here.popleft()
        if isinstance(item, InputError):
            self._raised = item
            raise item
        return item

    def ready(self, count: int, timeout_s: float) -> bool:
        """Whether the next `count` batches are here, or all up to the end or to an error; waits
        about so long, or without workers makes them.
        """
        deadline = time.monotonic() + timeout_s
        while len(self._here) < count and not self._is_over:
            try:
                item = self._next()
            except StopIteration:
                self._is_over = True
            except _NotReadyError:
                pass
            else:
                self._here.append(item)
                self._is_over = isinstance(item, InputError)
            if self._loader.num_workers and time.monotonic() >= deadline:
                break
        return len(self._here) >= count or self._is_over

    def raise_failure(self, count: int) -> None:
        """Raise the error in one of the next `count` batches, as far as they are here, or of the
        last request.
        """
        if self._raised is not None:
            raise self._raised
        for item in itertools.islice(self._here, count):
            if isinstance(item, InputError):
                raise item

    def _next(self) -> Host | InputError:
        if self._iterator is None:
            # Blocked signals are inherited by every thread of the workers.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
            try:
                self._iterator = _begun(self._loader)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        try:
            return next(self._iterator)  # type: ignore[no-any-return]
        except (
            ConnectionError,
            EOFError,
            FileNotFoundError,
        ) as error:  # what shared its memory is gone
            raise RuntimeError(
                "DataLoader worker (pid unknown) died and took a batch with it"
            ) from error
        except RuntimeError as error:
            if not _NOT_YET.match(str(error)):
                raise
            thread = _pinning_thread(self._iterator)
            if (
                thread is not None and not thread.is_alive()
            ):  # torch looks only where it has no limit
                raise RuntimeError("Pin memory thread exited unexpectedly") from error
            raise _NotReadyError from None

    def close(self) -> None:
        """Stop the workers."""
        self._is_over = True
        self._here.clear()
        # The loader has one of persistent workers, whose new pass may not have begun.
        iterator = self._loader._iterator if self._iterator is None else self._iterator
        if self._loader.num_workers and iterator is not None:
            _end_workers(
                iterator
            )  # dropping the iterator does not help while a traceback refers to it
            self._loader._iterator = (
                None  # else a loader with persistent workers would call the dead ones again
            )
        self._iterator = None


def _begun(loader: DataLoader[Any]) -> Any:
    """The loader's iterator at its start, once all its workers have come up."""
    if not loader.num_workers:
        return iter(loader)
    start: Start = loader.worker_init_fn  # type: ignore[assignment]
    for patience_s in _COMES_UP_S:
        if loader._iterator is None:
            start.came_up.zero_()
        # of workers that are there, whose answers to the start torch awaits through the same limit
        else:
            loader._iterator._timeout = 0
        iterator: Any = iter(loader)
        came_up = False
        try:
            came_up = start.all_came_up(patience_s)
        finally:
            if not came_up:
                _kill_workers(iterator)
                loader._iterator = None
        if came_up:
            iterator._timeout = _LOOK_EVERY_S
            return iterator
    raise RuntimeError(
        f"DataLoader worker (pid unknown) did not come up in {_COMES_UP_S[-1]:g} s,"
        f" {len(_COMES_UP_S)} times"
    )


def _pinning_thread(iterator: Any) -> threading.Thread | None:
    """torch's, which puts batches into pinned memory on the way to a CUDA device."""
    return getattr(iterator, "_pin_memory_thread", None)


def _end_workers(iterator: Any) -> None:
    """End the workers at once: torch would wait five seconds for each that is reading a shard."""
    if iterator._shutdown:  # by torch, at the end of a pass whose workers do not stay
        return
    # torch's thread reads what they send, and would wait for the rest of an interrupted message.
    if thread := _pinning_thread(iterator):
        iterator._pin_memory_thread_done_event.set()
        iterator._worker_result_queue.put((None, None))
        thread.join(_PINNING_ENDS_S)
    for worker in iterator._workers:
        worker.terminate()
    iterator._shutdown_workers()


def _kill_workers(iterator: Any) -> None:
    """Kill them, also those that have SIGTERM blocked, and without torch's message that one was
    killed.
    """
    heard = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        for worker in iterator._workers:
            worker.kill()
        iterator._shutdown_workers()
    finally:
        signal.signal(signal.SIGCHLD, heard if heard is not None else signal.SIG_DFL)


class Start:
    """What a worker begins with, and its word to the parent that it has."""

    def __init__(self, num_workers: int) -> None:
        self.came_up = torch.zeros(num_workers, dtype=torch.uint8)
        if num_workers:
            self.came_up.share_memory_()  # type: ignore[no-untyped-call]

    def __call__(self, worker: int) -> None:
        self.came_up[worker] = 1
        start_worker()

    def all_came_up(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not self.came_up.all():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True


def start_worker() -> None:
    """Set up a loader worker: one thread, no signals but SIGTERM of the parent, and its end with
    the parent's.

    The signals by which SLURM and the terminal ask a run to stop go to all processes of a job step.
    The run answers by finishing its step and saving, for which it needs its workers; were one to
    die of SIGTERM, torch would end the run in the middle. Workers are therefore started with these
    signals blocked. torch itself ends a hung worker by SIGTERM, which still works.
    """
    torch.set_num_threads(1)
    parent = os.getppid()
    end_with(
        parent, signal.SIGKILL
    )  # torch looks for its parent every 5 s, and not while a full queue holds it up

    def watch() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def worker_fault(error: BaseException) -> str | None:
    """The error of a loader's worker in a sentence; None for any other error.

    torch raises a worker's death out of a signal handler, wherever the main process happens to be,
    and a worker's exception with its whole traceback for a message.
    """
    text = str(error)
    if death := re.search(r"DataLoader worker \(pid.*\) (.*)", text):
        return (
            f"a process that decodes images {death[1].strip(' .')}: most often memory or /dev/shm"
            " ran out. Lower data.num_workers or data.prefetch_batches; the run resumes from its"
            " last checkpoint"
        )
    if re.match(r"Caught \w+ in DataLoader worker process", text):
        *_, what = (line for line in text.splitlines() if line.strip())
        *_, (file, line) = re.findall(r'File "(.*?)", line (\d+)', text) or [("?", "?")]
        return f"a fault in a process that decodes images: {what.strip()} ({file}, line {line})"
    return None


def no_collate(item: object) -> object:
    """Batches arrive whole; torch's default would walk through them."""
    return item
