"""What a shard is taken for: nothing that is kept of one file may be read for another, and nothing
is read twice that is kept.
"""

import contextlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servers import FolderServer

from distill.data.stream import counts, exiting
from distill.data.stream.opening import count_samples, open_stream
from distill.data.stream.source import StreamSource
from distill.errors import InputError
from distill.recipe.schema import ShardsSpec, StreamSpec


def write_tar(file: Path, numbers: list[int], padding: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for i, number in enumerate(numbers):
            image = b"%d" % number + bytes(padding)
            for name, content in ((f"{i}.jpg", image), (f"{i}.cls", b"%d" % number)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def write_parquet(file: Path, names: list[str], labels: list[int], size_bytes: int = 4) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    table = pa.table(
        {"image": [names[i].encode() + os.urandom(size_bytes) for i in labels], "label": labels}
    )
    said = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(said), file, compression="none")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[FolderServer]:
    (tmp_path / "served").mkdir()
    with FolderServer(tmp_path / "served") as server:
        yield server


def opened(
    root: Path, path: object, cache: Path, *, cache_gb: float = 1.0, **fields: Any
) -> StreamSource:
    spec = StreamSpec(kind="stream", path=str(path), **fields)
    return open_stream(
        spec,
        root,
        "data.train",
        ShardsSpec(cache=str(cache), cache_gb=cache_gb, retries=0, timeout_s=5),
    )


def seen(source: StreamSource) -> list[tuple[int, int]]:
    return [(int(source.read(i)), int(source.labels[np.array([i])][0])) for i in range(len(source))]


# ---- local files ---------------------------------------------------------------------------------


def test_relative_paths_do_not_meet_in_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two folders, with shards of one name, size and time, as archives and images of containers
    set it.
    """
    (tmp_path / "c.txt").write_text("a\nb\nc\nd\n")
    for folder, numbers in (("A", [1, 2, 3]), ("B", [3, 2, 1])):
        write_tar(tmp_path / folder / "shards/0.tar", numbers)
        os.utime(tmp_path / folder / "shards/0.tar", (1, 1))
        monkeypatch.chdir(tmp_path / folder)
        source = opened(Path(), "shards", tmp_path / "cache", classes=str(tmp_path / "c.txt"))
        assert seen(source) == [(number, number) for number in numbers]
        assert Path(source.shards[0].url).is_absolute()


def test_a_file_in_the_place_of_another_of_its_size_and_time(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("a\nb\nc\nd\n")
    for numbers in ([1, 2, 3], [3, 2, 1]):
        write_tar(tmp_path / "new.tar", numbers)
        os.utime(tmp_path / "new.tar", (1, 1))
        (tmp_path / "new.tar").replace(tmp_path / "0.tar")
        source = opened(tmp_path, "0.tar", tmp_path / "cache", classes="c.txt")
        assert seen(source) == [(number, number) for number in numbers]


# ---- files of a server ---------------------------------------------------------------------------


def test_a_table_that_is_written_again_under_its_url(
    tmp_path: Path, served: FolderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The classes in another order, and not a byte more or less: labels and names are of one state
    of the file.
    """
    monkeypatch.setattr(counts, "_TOGETHER_S", 1e-9)
    file = tmp_path / "served/0.parquet"
    prints = []
    for names, labels in ((["cat", "dog"], [0, 0, 1]), (["dog", "cat"], [1, 1, 0])):
        write_parquet(file, names, labels)
        source = opened(tmp_path, f"{served.url}/0.parquet", tmp_path / "cache")
        assert [source.classes[label] for label in source.labels[np.arange(3)]] == [
            "cat",
            "cat",
            "dog",
        ]
        assert [source.read(i)[:3] for i in range(3)] == [b"cat", b"cat", b"dog"]
        prints.append(
            (source.fingerprint(), opened(tmp_path, file, tmp_path / "cache").fingerprint())
        )
    assert prints[0][0] == prints[0][1] != prints[1][0] == prints[1][1]
    late = opened(tmp_path, f"{served.url}/0.parquet", tmp_path / "another")
    write_parquet(file, ["ape", "cat"], [1, 1, 0])
    with pytest.raises(
        InputError, match=r"0.parquet: it is another file than when its footer was read"
    ):
        late.read(0)


def test_footers_are_read_once_a_machine(tmp_path: Path, served: FolderServer) -> None:
    for i in range(3):
        write_parquet(tmp_path / f"served/{i}.parquet", ["cat", "dog"], [0] * (i + 1))

    def sizes(path: object) -> list[int]:
        return opened(tmp_path, path, tmp_path / "cache").shard_sizes.tolist()

    path = f"{served.url}/{{0..2}}.parquet"
    workers = [threading.Thread(target=sizes, args=(path,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sizes(path) == [1, 2, 3]
    # Two at the most: which share of a minute the wishes fell into is not ours to say.
    assert all(served.requests[f"/{i}.parquet"] in (2, 4) for i in range(3))


def test_a_size_that_is_known_spares_a_request(tmp_path: Path, served: FolderServer) -> None:
    file = tmp_path / "served/0.parquet"
    write_parquet(file, ["cat", "dog"], [0, 1])
    shard = counts.ListedShard(
        f"{served.url}/0.parquet", "0.parquet", size_bytes=file.stat().st_size
    )
    fields = counts.Fields(None, None, True)
    footer, size_bytes = counts._footer(
        shard, fields, counts.Transport(retries=0, timeout_s=5), "data.train"
    )
    assert (footer.num_rows, size_bytes, served.requests["/0.parquet"]) == (
        2,
        file.stat().st_size,
        1,
    )


def test_another_signature_is_no_other_file(tmp_path: Path, served: FolderServer) -> None:
    write_tar(tmp_path / "served/0.tar", [1, 2])
    for signature in ("one", "two"):
        spec = {
            "path": f"{served.url}/0.tar?X-Amz-Expires=9&X-Amz-Signature={signature}",
            "labelled": False,
        }
        if signature == "one":
            settings = ShardsSpec(cache=str(tmp_path / "cache"), retries=0)
            assert count_samples(
                StreamSpec(kind="stream", **spec), tmp_path, "data.train", settings
            ).tolist() == [2]
        assert opened(tmp_path, cache=tmp_path / "cache", **spec).read(1) == b"2"
    assert served.requests["/0.tar"] == 1


def test_a_count_continues_where_it_was_broken_off(tmp_path: Path, served: FolderServer) -> None:
    for i in range(6):
        write_tar(tmp_path / f"served/{i}.tar", list(range(i + 1)))
    served.fault("/5.tar", "status", on=(1,), status=404)
    spec = StreamSpec(kind="stream", path=f"{served.url}/{{0..5}}.tar", labelled=False)

    def count() -> list[int]:
        settings = ShardsSpec(cache=str(tmp_path / "cache"), retries=0)
        found = count_samples(spec, tmp_path, "data.train", settings).tolist()
        for file in (tmp_path / "cache").iterdir():
            if file.is_file():
                file.unlink()
        return found

    with pytest.raises(InputError, match=r"5.tar: .*404"):
        count()
    for file in (tmp_path / "cache").iterdir():
        if file.is_file():
            file.unlink()  # what is kept is the counts, not the shards
    with (tmp_path / "cache/counts/tar.jsonl").open("a") as kept:
        kept.write('["torn')
    assert count() == [1, 2, 3, 4, 5, 6]
    assert [served.requests[f"/{i}.tar"] for i in range(6)] == [1, 1, 1, 1, 1, 2]
    assert opened(tmp_path, spec.path, tmp_path / "cache", labelled=False).shard_sizes.tolist() == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    write_tar(tmp_path / "served/0.tar", [7, 8])
    assert count() == [2, 2, 3, 4, 5, 6]  # a count that was finished is made again


# ---- what a process holds ------------------------------------------------------------------------


def held(cache: Path) -> int:
    """Bytes of the cache's files that this process has open."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith(str(cache)):
                found += os.stat(f"/proc/self/fd/{fd}").st_size
        except OSError:
            continue
    return found


@pytest.fixture
def twelve(tmp_path: Path, served: FolderServer) -> StreamSource:
    """Twelve shards of 0.5 MB, and a cache for two."""
    for i in range(12):
        write_tar(tmp_path / f"served/{i:02d}.tar", [i], padding=500_000)
    said = {"train": {"filenames": [f"{i:02d}.tar" for i in range(12)], "shard_lengths": [1] * 12}}
    (tmp_path / "served/_info.json").write_text(json.dumps({"splits": said}))
    return opened(tmp_path, served.url, tmp_path / "cache", cache_gb=0.0012, labelled=False)


def test_shards_that_the_cache_gave_up_are_closed(tmp_path: Path, twelve: StreamSource) -> None:
    for i in range(12):
        assert twelve.read(i)[:2].rstrip(b"\0") == b"%d" % i
    assert held(tmp_path / "cache") < 1.2e6


def test_open_shards_that_are_wanted_stay_open_and_are_not_fetched_again(
    tmp_path: Path, served: FolderServer, twelve: StreamSource
) -> None:
    for i in range(6):
        twelve._here().prefetcher._wanted = tuple(range(6))
        assert len(twelve.read(i)) > 500_000
    assert held(tmp_path / "cache") > 3e6
    for i in range(6):
        twelve._begin(i)
    assert [served.requests[f"/{i:02d}.tar"] for i in range(6)] == [1] * 6


def test_a_damaged_shard_is_fetched_once_more_and_not_by_each(
    tmp_path: Path, served: FolderServer, twelve: StreamSource
) -> None:
    copies = [opened(tmp_path, served.url, tmp_path / "cache", labelled=False) for _ in range(4)]
    for copy in copies:
        copy.read(0)
    (file,) = (
        each
        for each in (tmp_path / "cache").iterdir()
        if "00_tar" in each.name and "." not in each.name
    )
    with file.open("r+b") as damaged:
        damaged.seek(2000)
        damaged.write(b"#")
    assert all(copy.read(0)[2000 - 512 : 2100] == bytes(612) for copy in copies)
    assert served.requests["/00.tar"] == 2


# ---- the end of the process ----------------------------------------------------------------------

AT_WORK = """
import os, sys, time
from pathlib import Path
import pyarrow.parquet
from distill.data.stream import exiting
from distill.data.stream.opening import open_stream
from distill.recipe.schema import ShardsSpec, StreamSpec

def work(run):
    spec = StreamSpec(kind="stream", path="*.parquet", labelled=False)
    settings = ShardsSpec(cache=f"cache-{run}")
    open_stream(spec, Path(sys.argv[1]), "data.train", settings).prefetch(range(4))
    while not exiting._state.num_inside:
        time.sleep(0.001)
    time.sleep(run / 1000)

for run in range(12):
    child = os.fork()
    if child == 0:  # goes out as a process of its own does, by the interpreter's end
        work(run)
        break
    assert os.waitpid(child, 0)[1] == 0, run
"""


def test_a_process_ends_while_reading_tables(tmp_path: Path) -> None:
    for i in range(4):
        write_parquet(tmp_path / f"{i}.parquet", ["cat"], [0] * 200, size_bytes=100_000)
    command = [sys.executable, "-c", AT_WORK, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_end_waits_for_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    state = exiting._State()
    monkeypatch.setattr(exiting, "_state", state)
    inside, stopped = threading.Event(), []

    def work() -> None:
        with exiting.delay_exit():
            inside.set()
            with contextlib.suppress(SystemExit):
                while True:
                    exiting.stop_at_exit()
            stopped.append(True)

    threading.Thread(target=work, daemon=True).start()
    assert inside.wait(20)
    exiting._end()
    assert stopped
    assert state.num_inside == 0
    with pytest.raises(SystemExit), exiting.delay_exit():
        pass


def test_a_forked_child_does_not_wait_for_threads_that_it_does_not_have() -> None:
    with exiting.delay_exit():
        child = multiprocessing.get_context("fork").Process(target=exiting._end)
        child.start()
    child.join(20)
    child.kill()
    assert child.exitcode == 0
