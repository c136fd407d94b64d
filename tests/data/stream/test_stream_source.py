"""A stream as a source: every sample in any order, from disk, cache and server, and prefetched."""

import json
import multiprocessing
import os
import pickle
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from servers import FolderServer
from streams import (
    IMAGES,
    SIZES,
    TOTAL,
    OpenStream,
    assert_all_there,
    write_parquet,
    write_shards,
    write_tar,
)

from distill.data.stream.prefetcher import Prefetcher
from distill.errors import InputError


@pytest.mark.parametrize("manifest", ["", "plain", "labels"])
@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("place", ["local", "http"])
def test_every_sample_of_every_way(
    tmp_path: Path, served: FolderServer, opened: OpenStream, place: str, kind: str, manifest: str
) -> None:
    folder = tmp_path / "served"
    write_shards(folder, kind, manifest=manifest)
    if kind == "tar" and not manifest:
        (folder / "_info.json").write_text(
            json.dumps(
                {
                    "splits": {
                        "train": {"filenames": sorted(os.listdir(folder)), "shard_lengths": SIZES}
                    }
                }
            )
        )
    path = "served" if place == "local" else f"{served.url}/"
    if place == "http" and kind == "parquet" and not manifest:
        path += "train-000{0..3}.parquet"
    classes = "classes.txt" if kind == "tar" and not manifest else None
    source = opened(path, classes=classes)
    assert isinstance(source.labels, np.ndarray) == (manifest == "labels")
    assert_all_there(source)
    assert_all_there(opened(path, labelled=False), labelled=False)
    assert f"{folder if place == 'local' else served.url}/train-0002.{kind}, " in source.describe(8)
    at = (folder / f"train-0002.{kind}").read_bytes().find(IMAGES[8])
    assert source.describe(8).endswith(f"0008.jpg at byte {at}" if kind == "tar" else "row 2")
    requests = {path: n for path, n in served.requests.items() if path.endswith(("tar", "parquet"))}
    assert_all_there(opened(path, classes=classes))
    fetched = {path: n for path, n in served.requests.items() if path.endswith("tar")}
    assert all(n == requests[path] for path, n in fetched.items())  # from the cache


def test_a_local_tar_is_read_where_it_lies(tmp_path: Path, opened: OpenStream) -> None:
    write_shards(tmp_path / "shards", "tar")
    source = opened("shards", classes="classes.txt")
    assert_all_there(source)
    assert (
        sum(file.stat().st_size for file in (tmp_path / "cache").iterdir())
        < sum(map(len, IMAGES)) / 3
    )


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_local_shard_that_is_written_again_is_read_again(
    tmp_path: Path, opened: OpenStream, kind: str
) -> None:
    write_shards(tmp_path / "shards", kind)
    assert opened("shards", classes="classes.txt").read(5) == IMAGES[5]
    (write_tar if kind == "tar" else write_parquet)(
        tmp_path / f"shards/train-0001.{kind}", range(9, 10)
    )
    assert opened("shards", classes="classes.txt").read(5) == IMAGES[9]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_what_is_kept_is_asked_for_by_what_is_read(
    tmp_path: Path, opened: OpenStream, kind: str
) -> None:
    """A shard that was read without labels is not what a labelled stream reads."""
    write_shards(tmp_path / "shards", kind)
    assert_all_there(opened("shards", labelled=False), labelled=False)
    assert_all_there(opened("shards", classes="classes.txt"))


def test_messages_hide_passwords(tmp_path: Path, served: FolderServer, opened: OpenStream) -> None:
    write_shards(tmp_path / "served", "parquet")
    source = opened(
        served.url.replace("//", "//user:secret@") + "/train-{0000..0003}.parquet?token=secret"
    )
    assert source.read(3) == IMAGES[3]
    assert "secret" not in source.describe(3)
    served.fault("/train-0001.parquet", "status", on=None, status=404)
    with pytest.raises(
        InputError, match=r"data.train.path: http://127.0.0.1:\d+/train-0001.parquet: "
    ) as info:
        source.read(5)
    assert "secret" not in str(info.value)


def test_a_local_shard_and_its_copy_share_a_cache(
    tmp_path: Path, served: FolderServer, opened: OpenStream
) -> None:
    write_shards(tmp_path / "served", "tar", manifest="plain")
    assert_all_there(opened("served"))
    assert_all_there(opened(served.url))
    assert_all_there(opened("served"))
    assert all(served.requests[f"/train-000{i}.tar"] == 1 for i in range(4))


def test_workers_open_for_themselves(
    tmp_path: Path, served: FolderServer, opened: OpenStream
) -> None:
    write_shards(tmp_path / "served", "tar", manifest="plain")
    source = opened(served.url)
    source.prefetch([0])
    assert source.read(3) == IMAGES[3]
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(source.read, range(TOTAL)) == IMAGES
    sent = pickle.loads(pickle.dumps(source))
    assert_all_there(sent)
    assert len(pickle.dumps(source)) < 4000


def test_a_fork_does_not_inherit_locks(tmp_path: Path, opened: OpenStream) -> None:
    """A thread of the parent may hold the source's lock while a worker is forked."""
    write_shards(tmp_path / "shards", "tar")
    source = opened("shards", classes="classes.txt")
    assert source.read(0) == IMAGES[0]

    def read() -> None:
        sys.exit(source.read(0) + source.read(8) != IMAGES[0] + IMAGES[8])

    worker = multiprocessing.get_context("fork").Process(target=read)
    with source._here().lock:
        worker.start()
        worker.join(20)
    worker.kill()
    assert worker.exitcode == 0


def test_few_shards_stay_open(
    tmp_path: Path, opened: OpenStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "shards", "tar")
    source = opened("shards", classes="classes.txt")
    monkeypatch.setattr(source._here(), "most_open", 2)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert_all_there(source)
    assert len(os.listdir("/proc/self/fd")) <= before + 4


def test_threads_read_one_source(tmp_path: Path, served: FolderServer, opened: OpenStream) -> None:
    write_shards(tmp_path / "served", "parquet")
    source = opened(served.url + "/train-{0000..0003}.parquet")
    monkey = np.random.default_rng(1)
    wrong: list[int] = []

    def read(order: np.ndarray) -> None:
        wrong.extend(i for i in order if source.read(int(i)) != IMAGES[i])

    threads = [threading.Thread(target=read, args=(monkey.permutation(TOTAL),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---- ahead of time -------------------------------------------------------------------------------


def test_prepare_brings_shards_here(
    tmp_path: Path, served: FolderServer, opened: OpenStream
) -> None:
    write_shards(tmp_path / "served", "tar", manifest="plain")
    served.fault("/train-0001.tar", "status", on=None, status=404)
    source = opened(served.url)
    source.prefetch(np.array([1, 2, 0]))
    here = source._fetcher
    waited = threading.Event()
    for _ in range(200):
        if all(here.cache.has(here._key(source.shards[i])) for i in (0, 2)):
            break
        waited.wait(0.05)
    assert [served.requests[f"/train-000{i}.tar"] for i in range(4)] == [1, 1, 1, 0]
    assert [source.read(i) for i in (0, 6)] == [IMAGES[0], IMAGES[6]]
    assert [served.requests[f"/train-000{i}.tar"] for i in range(4)] == [1, 1, 1, 0]


def test_failures_do_not_stop_what_comes_ahead() -> None:
    begun, reached = [], threading.Event()

    def begin(number: int) -> None:
        begun.append(number)
        if number < 20:
            raise OSError(number)
        reached.set()

    ahead = Prefetcher(begin)
    ahead.want([*range(20), 20])
    assert ahead.wanted == (*range(20), 20)
    assert reached.wait(20)
    assert sorted(begun) == list(range(21))
    reached.clear()
    ahead.want([3, 5, 21])
    assert reached.wait(20)
    assert sorted(begun) == list(range(22))  # what failed rests
