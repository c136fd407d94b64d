"""Servers, sources and processes for the tests of streams."""

from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from cache_makers import FORK
from servers import FolderServer
from streams import CLASSES, OpenStream
from transfers import CONTENT

from distill.data.sources import open_source
from distill.data.stream.source import StreamSource
from distill.recipe.schema import ShardsSpec, StreamSpec


@pytest.fixture
def started() -> Iterator[Callable[..., BaseProcess]]:
    """started(function, *arguments): a process that does not outlive the test."""
    processes: list[BaseProcess] = []

    def start(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
        process = FORK.Process(target=function, args=arguments)
        process.start()
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[FolderServer]:
    (tmp_path / "served").mkdir()
    with FolderServer(tmp_path / "served") as server:
        yield server


@pytest.fixture
def opened(tmp_path: Path) -> OpenStream:
    """opened(path, **of the recipe's Stream): a source with a cache of its own and short waits."""
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))

    def open_it(
        path: object, *, retries: int = 0, cache: str = "cache", **fields: Any
    ) -> StreamSource:
        spec = StreamSpec(kind="stream", path=str(path), **fields)
        source = open_source(
            spec, tmp_path, "data.train", ShardsSpec(cache=cache, retries=retries, timeout_s=5)
        )
        assert isinstance(source, StreamSource)
        return source

    return open_it


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "served"
    made.mkdir()
    (made / "a.bin").write_bytes(CONTENT)
    (made / "empty.bin").write_bytes(b"")
    return made


@pytest.fixture
def server(folder: Path) -> Iterator[FolderServer]:
    with FolderServer(folder) as opened:
        yield opened


@pytest.fixture
def deaf(folder: Path) -> Iterator[FolderServer]:
    """A server that ignores Range."""
    with FolderServer(folder, ranges=False) as opened:
        yield opened
