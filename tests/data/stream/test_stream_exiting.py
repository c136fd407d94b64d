"""The end of the process and what threads hold when they stop for it."""

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.data.stream import exiting, shard_fetcher
from distill.data.stream.opening import open_stream
from distill.data.stream.parquet import unpack_parquet
from distill.data.stream.prefetcher import Prefetcher
from distill.recipe.schema import ShardsSpec, StreamSpec

LEAVING = """
import threading, time
from distill.data.stream import exiting, shard_fetcher

inside = threading.Event()

def work():
    with exiting.delay_exit():
        inside.set()
        while not exiting.is_exiting():
            time.sleep(0.01)
        time.sleep(0.3)  # what is under way in C++ hears nothing
        print("whole", flush=True)

threading.Thread(target=work, daemon=True).start()
inside.wait()
"""


@pytest.fixture
def at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    state = exiting._State()
    state.is_exiting = True
    monkeypatch.setattr(exiting, "_state", state)


def table(folder: Path) -> Path:
    pq.write_table(pa.table({"image": [b"a", b"b"]}), folder / "0.parquet")
    return folder / "0.parquet"


def test_the_interpreter_waits_for_what_is_held() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", LEAVING]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "whole\n", "")


def test_a_table_is_held_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    def seen(*arguments: object, **options: object) -> int:
        held.append(exiting._state.num_inside)
        return unpack_parquet(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(shard_fetcher, "unpack_parquet", seen)
    spec = StreamSpec(kind="stream", path=str(table(tmp_path)), labelled=False)
    assert open_stream(spec, tmp_path, "data.train", ShardsSpec(cache="cache")).read(1) == b"b"
    assert held == [1]


@pytest.mark.usefixtures("at_the_end")
def test_a_table_is_not_read_on_at_the_end(tmp_path: Path) -> None:
    with pa.OSFile(str(table(tmp_path))) as source, pytest.raises(SystemExit):
        unpack_parquet(source, tmp_path / "out", labelled=False)


@pytest.mark.usefixtures("at_the_end")
def test_nothing_more_is_brought_ahead_at_the_end() -> None:
    begun: list[int] = []
    ahead = Prefetcher(begun.append)
    ahead.want([0])
    for thread in ahead._threads:
        thread.join(20)
        assert not thread.is_alive()
    assert begun == []


class Held:
    """Stands for an object of Arrow: what is under way in C++ when it goes is waited for."""

    def __init__(self, gone: list[int]) -> None:
        self.gone = gone

    def __del__(self) -> None:
        self.gone.append(exiting._state.num_inside)


def test_what_a_stopped_thread_holds_goes_while_it_is_waited_for() -> None:
    gone: list[int] = []

    def read() -> None:
        held = Held(gone)
        assert held.gone == []
        raise SystemExit

    def work() -> None:
        with contextlib.suppress(SystemExit), exiting.delay_exit():
            read()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert gone == [1]
    assert exiting._state.num_inside == 0
