"""Workers that do not come up, or do not deliver."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.data import workers
from distill.data.workers import HostIterator, data_loader


class Numbers:
    """Request n -> n, late when a file of that name is there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, number: int) -> int:
        while (self._folder / str(number)).exists():
            time.sleep(0.01)
        return number


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
def test_a_worker_that_hangs_at_its_start_is_replaced(hangs: Path, tmp_path: Path, persistent: bool) -> None:
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


def _children() -> list[str]:
    """Processes of this one that live."""
    pids = Path("/proc/self/task").glob("*/children")
    return [pid for path in pids for pid in path.read_text().split() if _lives(pid)]


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


def test_a_worker_in_the_middle_of_something_does_not_hold_up_the_end(tmp_path: Path) -> None:
    (tmp_path / "1").touch()
    host = iterator(tmp_path, 2)
    assert next(host) == 0
    assert not host.ready(1, 0.1)
    workers_then = host._iterator._workers
    host.close()
    assert [worker.exitcode for worker in workers_then] == [0, 0], (
        "they heard that they should end, and nobody waits for them"
    )
    assert _children() == []


def test_without_workers_they_are_made_in_the_call(tmp_path: Path) -> None:
    host: Any = iterator(tmp_path, 0)
    assert host.ready(4, 0)
    assert list(host) == list(range(6))
