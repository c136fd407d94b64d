"""Workers that do not come up, do not deliver, or are asked for too much."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.data.loading import rank_slice, workers
from distill.data.loading.prefetch import DeviceIterator
from distill.data.loading.workers import HostIterator, data_loader
from distill.errors import InputError


class Numbers:
    """Request n -> n, late while a file of that name is there; an error where one of the name
    `bad-n` is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, number: int) -> int | InputError:
        while (self._folder / str(number)).exists():
            time.sleep(0.01)
        return (
            InputError(f"number {number}") if (self._folder / f"bad-{number}").exists() else number
        )


def iterator(folder: Path, num_workers: int, persistent: bool = False) -> HostIterator[int]:
    requests = range(6)
    loader = data_loader(Numbers(folder), requests, num_workers, 2, torch.device("cpu"), persistent)
    return HostIterator[int](loader)


@pytest.fixture
def hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The second worker hangs as it begins, as often as this file has letters."""
    times = tmp_path / "times"
    begin = workers.Start.__call__

    def hang(self: workers.Start, worker: int) -> None:
        if worker == 1 and times.read_text():
            times.write_text(times.read_text()[1:])
            time.sleep(3600)
        begin(self, worker)

    monkeypatch.setattr(workers.Start, "__call__", hang)
    monkeypatch.setattr(workers, "_COMES_UP_S", (0.5, 0.5, 5.0))
    return times


@pytest.mark.parametrize("persistent", [False, True])
def test_a_worker_that_hangs_at_its_start_is_replaced(
    hangs: Path, tmp_path: Path, persistent: bool
) -> None:
    hangs.write_text("xx")
    host = iterator(tmp_path, 2, persistent)
    assert list(host) == list(range(6))
    assert hangs.read_text() == ""
    alive = _children()
    host.close()
    assert len(alive) == 2 * persistent, "the hung ones are gone"


def test_workers_that_never_come_up_end_it_in_words(
    hangs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs.write_text("xxx")
    monkeypatch.setattr(workers, "_COMES_UP_S", (0.2, 0.2, 0.2))
    host = iterator(tmp_path, 2)
    with pytest.raises(RuntimeError) as caught:
        next(host)
    assert (workers.worker_fault(caught.value) or "").startswith(
        "a process that decodes images did not come up in 0.2 s, 3 times"
    )
    host.close()
    assert _children() == []


_of_earlier_tests: set[str] = set()


@pytest.fixture(autouse=True)
def _forget_earlier_tests() -> None:
    """Other files may leave a process that serves them all, such as one that tracks resources."""
    _of_earlier_tests.clear()
    _of_earlier_tests.update(_children())


def _children() -> list[str]:
    """Processes that this one has started in the test and that live."""
    paths = Path("/proc/self/task").glob("*/children")
    pids = [pid for path in paths for pid in path.read_text().split()]
    return [pid for pid in pids if pid not in _of_earlier_tests and _lives(pid)]


def _lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_what_is_there_is_known_and_nothing_is_lost_by_asking(tmp_path: Path) -> None:
    (tmp_path / "2").touch()
    host = iterator(tmp_path, 2)
    assert host.ready(2, 30)
    assert not host.ready(3, 0.1)
    assert [next(host), next(host)] == [0, 1]
    assert not host.ready(1, 0.1)
    (tmp_path / "2").unlink()
    assert host.ready(4, 30)
    assert list(host) == [2, 3, 4, 5]
    assert host.ready(1, 0), "nothing is left to wait for"
    host.close()


def test_workers_in_the_middle_of_something_do_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch gives each worker five seconds; here it gives a minute, so that the result does not
    depend on the speed of the machine.
    """
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 60)
    for number in (2, 3):
        (tmp_path / str(number)).touch()
    host = iterator(tmp_path, 2)
    assert [next(host), next(host)] == [0, 1]
    began = time.monotonic()
    host.close()
    assert time.monotonic() - began < 30
    assert _children() == []


def test_one_that_answers_late_at_the_next_pass_is_waited_for(tmp_path: Path) -> None:
    """Of workers that stay, torch awaits an answer at each start."""
    loader = data_loader(Numbers(tmp_path), range(6), 2, 2, torch.device("cpu"), persistent=True)
    assert list(HostIterator[int](loader)) == list(range(6))
    late, _ = map(int, _children())
    os.kill(late, signal.SIGSTOP)
    if os.fork() == 0:  # a thread would be stopped by the lock that the main one waits with
        time.sleep(1.5)
        os.kill(late, signal.SIGCONT)
        os._exit(0)
    host = HostIterator[int](loader)
    assert list(host) == list(range(6))
    host.close()
    os.wait()


def test_a_signal_as_they_come_up_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: workers.Start, timeout_s: float) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers.Start, "all_came_up", broken)
    host = iterator(tmp_path, 2, persistent=True)
    with pytest.raises(KeyboardInterrupt):
        next(host)
    assert _children() == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_nothing_is_waited_for_behind_an_error(num_workers: int, tmp_path: Path) -> None:
    (tmp_path / "bad-1").touch()
    (tmp_path / "2").touch()
    host = iterator(tmp_path, num_workers)
    assert host.ready(4, 30)
    host.raise_failure(1)
    with pytest.raises(InputError, match="number 1"):
        host.raise_failure(2)
    assert next(host) == 0
    with pytest.raises(InputError, match="number 1"):
        next(host)
    with pytest.raises(InputError, match="number 1"):
        host.raise_failure(1)  # where the device asked for it one batch ahead
    host.close()
    assert host.ready(1, 0), "nothing comes any more"


def test_a_limit_holds_however_many_come(tmp_path: Path) -> None:
    host = iterator(tmp_path, 2)
    assert not host.ready(6, 0), "one has come, and the time is over"
    assert host.ready(6, 30)
    host.close()


class Asked:
    """A host iterator that notes what it is asked for."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.within: list[int] = []

    def __iter__(self) -> "Asked":
        return self

    def __next__(self) -> int:
        return 0

    def ready(self, count: int, timeout_s: float) -> bool:
        self.counts.append(count)
        return True

    def raise_failure(self, count: int) -> None:
        self.within.append(count)


def test_on_a_device_the_batch_that_is_there_counts_and_the_one_behind_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "distill.data.loading.prefetch.on_device", lambda host, finish, device: map(finish, host)
    )
    host: Any = Asked()
    batches = DeviceIterator(host, str, torch.device("cuda"))
    for _ in range(3):
        assert batches.ready(4, 1)
        assert [next(batches) for _ in range(4)] == ["0"] * 4
    assert host.counts == [5, 4, 4]
    assert host.within == [4, 3, 3]
    on_cpu = DeviceIterator(host, str, torch.device("cpu"))
    assert on_cpu.ready(4, 1)
    next(on_cpu)
    assert on_cpu.ready(500, 1)
    assert host.counts[3:] == [4, 64]


@pytest.mark.parametrize("persistent", [False, True])
def test_a_pass_that_pins_ends_and_closes(
    persistent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA: torch's thread pins, and at the end of a pass whose workers do not stay it has
    closed everything itself.
    """
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *_: True)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda *_: 0)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    loader = data_loader(Numbers(tmp_path), range(6), 2, 2, torch.device("cuda"), persistent)
    for stop in (6, 3):
        host = HostIterator[int](loader)
        assert [next(host) for _ in range(stop)] == list(range(stop))
        if stop == 6:
            with pytest.raises(StopIteration):
                next(host)
        assert workers._pinning_thread(host._iterator) is not None
        if stop == 3 or not persistent:
            host.close()
    assert _children() == []


def test_workers_that_stay_end_although_their_next_pass_has_not_begun(tmp_path: Path) -> None:
    loader = data_loader(Numbers(tmp_path), range(6), 2, 2, torch.device("cpu"), persistent=True)
    assert list(HostIterator[int](loader)) == list(range(6))
    assert len(_children()) == 2
    HostIterator[int](loader).close()
    assert _children() == []


def test_without_workers_they_are_made_in_the_call(tmp_path: Path) -> None:
    host: Any = iterator(tmp_path, 0)
    assert host.ready(4, 0)
    assert list(host) == list(range(6))


def test_a_worker_makes_its_batch_in_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """So nothing is copied on its way."""
    assert not rank_slice.empty_images(2, 4).is_shared()
    monkeypatch.setattr(torch.utils.data, "get_worker_info", object)
    images = rank_slice.empty_images(2, 4)
    assert images.is_shared()
    assert (images.shape, images.dtype) == ((2, 4, 4, 3), torch.uint8)
