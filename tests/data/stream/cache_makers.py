"""Functions that make files in a shard cache, for its tests."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

from distill.data.stream.cache import Make, ShardCache

# Forked: the children share nothing with the test but the folder, and start in milliseconds.
FORK = multiprocessing.get_context("fork")
LARGE = 1 << 40


def writing(content: bytes, log: Path | None = None) -> Make:
    """Writes the content in two halves; a line into the log for each time it is called."""

    def make(path: Path) -> None:
        if log is not None:
            with log.open("ab", buffering=0) as file:
                file.write(b"made\n")
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            file.write(content[len(content) // 2 :])

    return make


def never(path: Path) -> None:
    raise AssertionError(f"made again: {path}")


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def stuck(cache: ShardCache, key: str, ready: Path) -> None:
    """Begins to write, and never ends."""

    def make(path: Path) -> None:
        path.write_bytes(b"half")
        path.with_name(f"{path.name}.index").write_bytes(b"a file of its own beside")
        ready.touch()
        time.sleep(3600)

    cache.file(key, make)


def names(cache: ShardCache) -> list[str]:
    return sorted(path.name.partition(".")[2] for path in cache.folder.iterdir())
