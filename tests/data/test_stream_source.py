"""A stream as a source: every sample in any order, from disk, cache and a server with faults;
labels, classes, counts held to.
"""

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servers import FolderServer

from distill.data.records import UnreadableShardError
from distill.data.sources import open_source
from distill.data.stream.manifest import Manifest, ShardEntry, write_manifest
from distill.data.stream.opening import count_samples
from distill.data.stream.prefetcher import Prefetcher
from distill.data.stream.source import StreamSource
from distill.errors import InputError
from distill.recipe.schema import ShardsSpec, StreamSpec

SIZES = (5, 1, 7, 4)
TOTAL = sum(SIZES)
CLASSES = ("ox", "yak", "emu")
IMAGES = [b"image %d " % i + os.urandom(400 + 90 * i) for i in range(TOTAL)]
LABELS = [i * 5 % 3 for i in range(TOTAL)]


def write_tar(file: Path, indices: range, label=lambda i: b"%d" % LABELS[i]) -> None:
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as archive:
        for i in indices:
            for name, content in ((f"{i:04d}.jpg", IMAGES[i]), (f"{i:04d}.cls", label(i))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def write_parquet(file: Path, indices: range) -> None:
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(CLASSES), "_type": "ClassLabel"},
    }
    table = pa.table(
        {
            "image": [{"bytes": IMAGES[i], "path": None} for i in indices],
            "label": [LABELS[i] for i in indices],
        }
    )
    said = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(said), file, row_group_size=3)


def write_shards(
    folder: Path, kind: str, sizes: tuple[int, ...] = SIZES, manifest: str = ""
) -> None:
    """`manifest`: "" writes none, "labels" one with labels.npy, "plain" one whose labels are in the
    shards.
    """
    folder.mkdir(exist_ok=True)
    start, entries = 0, []
    for number, size in enumerate(sizes):
        file = folder / f"train-{number:04d}.{kind}"
        (write_tar if kind == "tar" else write_parquet)(file, range(start, start + size))
        start += size
        content = file.read_bytes()
        entries.append(
            ShardEntry(file.name, size, len(content), hashlib.sha256(content).hexdigest())
        )
    if manifest:
        np.save(folder / "labels.npy", np.array(LABELS, np.int32))
        said = hashlib.sha256((folder / "labels.npy").read_bytes()).hexdigest()
        labels = ("labels.npy", said) if manifest == "labels" else (None, None)
        write_manifest(folder, Manifest(kind, CLASSES, tuple(entries), *labels, None, "a test"))


@pytest.fixture
def served(tmp_path):
    (tmp_path / "served").mkdir()
    with FolderServer(tmp_path / "served") as server:
        yield server


@pytest.fixture
def opened(tmp_path):
    """opened(path, **of the recipe's Stream): a source with a cache of its own and short waits."""
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))

    def open_it(path: object, *, retries: int = 0, cache: str = "cache", **fields) -> StreamSource:
        spec = StreamSpec(kind="stream", path=str(path), **fields)
        return open_source(
            spec, tmp_path, "data.train", ShardsSpec(cache=cache, retries=retries, timeout_s=5)
        )

    return open_it


def assert_all_there(source: StreamSource, labelled: bool = True) -> None:
    assert source.shard_sizes.tolist() == list(SIZES)
    assert len(source) == TOTAL
    order = np.random.default_rng(0).permutation(TOTAL)
    assert [source.read(int(i)) for i in order] == [IMAGES[i] for i in order]
    labels = source.labels[order]
    assert labels.dtype == np.int64
    assert labels.tolist() == ([LABELS[i] for i in order] if labelled else [-1] * TOTAL)
    assert source.classes == (CLASSES if labelled else ())
    for index in (-1, TOTAL):
        with pytest.raises(IndexError):
            source.read(index)


# ---- every way in --------------------------------------------------------------------------------


@pytest.mark.parametrize("manifest", ["", "plain", "labels"])
@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("place", ["local", "http"])
def test_every_sample_of_every_way(tmp_path, served, opened, place, kind, manifest):
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


def test_a_local_tar_is_read_where_it_lies(tmp_path, opened):
    write_shards(tmp_path / "shards", "tar")
    source = opened("shards", classes="classes.txt")
    assert_all_there(source)
    assert (
        sum(file.stat().st_size for file in (tmp_path / "cache").iterdir())
        < sum(map(len, IMAGES)) / 3
    )


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_local_shard_that_is_written_anew_is_read_anew(tmp_path, opened, kind):
    write_shards(tmp_path / "shards", kind)
    assert opened("shards", classes="classes.txt").read(5) == IMAGES[5]
    (write_tar if kind == "tar" else write_parquet)(
        tmp_path / f"shards/train-0001.{kind}", range(9, 10)
    )
    assert opened("shards", classes="classes.txt").read(5) == IMAGES[9]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_what_is_kept_is_asked_for_by_what_is_read(tmp_path, opened, kind):
    """A shard that was read without labels is not what a labelled stream reads."""
    write_shards(tmp_path / "shards", kind)
    assert_all_there(opened("shards", labelled=False), labelled=False)
    assert_all_there(opened("shards", classes="classes.txt"))


def test_messages_hide_passwords(tmp_path, served, opened):
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


def test_a_local_shard_and_its_copy_share_a_cache(tmp_path, served, opened):
    write_shards(tmp_path / "served", "tar", manifest="plain")
    assert_all_there(opened("served"))
    assert_all_there(opened(served.url))
    assert_all_there(opened("served"))
    assert all(served.requests[f"/train-000{i}.tar"] == 1 for i in range(4))


def test_workers_open_for_themselves(tmp_path, served, opened):
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


def test_a_fork_does_not_inherit_locks(tmp_path, opened):
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


def test_few_shards_stay_open(tmp_path, opened, monkeypatch):
    write_shards(tmp_path / "shards", "tar")
    source = opened("shards", classes="classes.txt")
    monkeypatch.setattr(source._here(), "most_open", 2)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert_all_there(source)
    assert len(os.listdir("/proc/self/fd")) <= before + 4


def test_threads_read_one_source(tmp_path, served, opened):
    write_shards(tmp_path / "served", "parquet")
    source = opened(served.url + "/train-{0000..0003}.parquet")
    monkey, wrong = np.random.default_rng(1), []

    def read(order):
        wrong.extend(i for i in order if source.read(int(i)) != IMAGES[i])

    threads = [threading.Thread(target=read, args=(monkey.permutation(TOTAL),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---- ahead of time -------------------------------------------------------------------------------


def test_prepare_brings_shards_here(tmp_path, served, opened):
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


def test_failures_do_not_stop_what_comes_ahead():
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


# ---- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["truncate", "reset", "status"])
def test_faults_that_pass_leave_no_trace(tmp_path, served, opened, fault):
    write_shards(tmp_path / "served", "tar", manifest="plain")
    served.fault("/train-0002.tar", fault, **({"after_bytes": 3000} if fault != "status" else {}))
    assert_all_there(opened(served.url, retries=2))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_shard_that_is_cut_for_good_is_named_with_its_byte(tmp_path, served, opened, kind):
    write_shards(tmp_path / "served", kind)
    source = (
        opened(f"{served.url}/train-{{0000..0003}}.{kind}", classes="classes.txt")
        if kind == "parquet"
        else None
    )
    if source is None:
        counted(tmp_path, served)
        source = opened(
            f"{served.url}/train-{{0000..0003}}.tar", classes="classes.txt", cache="other"
        )
    served.fault(f"/train-0002.{kind}", "shorten", on=None, after_bytes=2000)
    where = "cut at byte 2000" if kind == "tar" else r"it has 2000 bytes and \d+ were promised"
    with pytest.raises(UnreadableShardError, match=rf"/train-0002.{kind}: .*{where}"):
        source.read(8)
    requests = served.requests[f"/train-0002.{kind}"]
    with pytest.raises(UnreadableShardError, match=where):
        source.read(9)
    with pytest.raises(UnreadableShardError, match=where):
        _ = source.labels[np.array([0, 10])]
    assert served.requests[f"/train-0002.{kind}"] == requests  # remembered
    assert source.read(0) == IMAGES[0]
    assert f"train-0002.{kind}, " in source.describe(8)


def counted(tmp_path: Path, served: FolderServer) -> None:
    """A list of counts in the folder of the other cache."""
    spec = StreamSpec(kind="stream", path=f"{served.url}/train-{{0000..0003}}.tar")
    count_samples(spec, tmp_path, "data.train", ShardsSpec(cache="other", retries=0))
    for file in (tmp_path / "other").iterdir():
        if file.is_file():
            file.unlink()


def test_a_corrupt_shard_is_named_with_its_byte(tmp_path, served, opened):
    write_shards(tmp_path / "served", "tar")
    counted(tmp_path, served)
    source = opened(f"{served.url}/train-{{0000..0003}}.tar", classes="classes.txt", cache="other")
    served.fault("/train-0002.tar", "corrupt", after_bytes=1)
    assert source.read(8) == IMAGES[8]  # fetched once more
    served.fault("/train-0003.tar", "corrupt", on=None, after_bytes=1)
    with pytest.raises(
        UnreadableShardError, match=r"train-0003.tar: the header at byte 0 is damaged"
    ):
        source.read(TOTAL - 1)


def test_a_manifest_catches_what_a_tar_does_not(tmp_path, served, opened):
    """A changed byte of an image: fetched again, and given up when it comes again."""
    write_shards(tmp_path / "served", "tar", manifest="plain")
    served.fault("/train-0000.tar", "corrupt", on=(1,), after_bytes=600)
    served.fault("/train-0003.tar", "corrupt", on=None, after_bytes=600)
    source = opened(served.url)
    assert source.read(0) == IMAGES[0]
    assert served.requests["/train-0000.tar"] == 2
    with pytest.raises(UnreadableShardError, match=r"train-0003.tar: .*SHA-256"):
        source.read(TOTAL - 1)


def test_a_missing_shard_and_a_dead_server(tmp_path, served, opened):
    write_shards(tmp_path / "served", "tar", manifest="plain")
    source = opened(served.url)
    served.fault("/train-0000.tar", "status", on=None, status=404)
    for _ in range(2):
        with pytest.raises(InputError, match=r"train-0000.tar: .*404"):
            source.read(0)
    assert served.requests["/train-0000.tar"] == 1
    served.close()
    with pytest.raises(UnreadableShardError, match=r"train-0001.tar: at byte 0, tried"):
        source.read(5)
    with pytest.raises(InputError, match=r"data.train.path: .*at byte 0.*mend the server"):
        opened(served.url + "/train-{0000..0003}.parquet", labelled=False)


def test_damage_in_the_cache_is_mended(tmp_path, served, opened):
    write_shards(tmp_path / "served", "tar", manifest="plain")
    source = opened(served.url)
    assert source.read(1) == IMAGES[1]
    (file,) = (f for f in (tmp_path / "cache").iterdir() if f.suffix == "")
    whole = file.read_bytes()
    at = whole.index(IMAGES[1]) + 20
    file.write_bytes(whole[:at] + b"#####" + whole[at + 5 :])
    assert source.read(1) == IMAGES[1]
    assert served.requests["/train-0000.tar"] == 2
    file.write_bytes(whole[:-10] + b"#" * 10)  # the index
    assert opened(served.url).read(1) == IMAGES[1]
    assert served.requests["/train-0000.tar"] == 3


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_local_shards_are_held_to_their_manifest(tmp_path, opened, kind):
    write_shards(tmp_path / "shards", kind, manifest="plain")
    if (
        kind == "tar"
    ):  # an index is kept, and made anew for a file that has changed; of Parquet a checked copy is kept
        assert opened("shards").read(8) == IMAGES[8]
    file = tmp_path / f"shards/train-0002.{kind}"
    content = file.read_bytes()
    at = content.index(IMAGES[8]) + 5
    file.write_bytes(content[:at] + b"#" + content[at + 1 :])
    with pytest.raises(
        UnreadableShardError, match=rf"train-0002.{kind}: its SHA-256 is not the promised"
    ):
        opened("shards").read(8)
    file.write_bytes(content[:-512])
    with pytest.raises(
        UnreadableShardError,
        match=rf"has {len(content) - 512} bytes, and {len(content)} are promised",
    ):
        opened("shards").read(8)


def test_a_local_tar_that_is_cut_while_it_is_open(tmp_path, opened):
    write_shards(tmp_path / "shards", "tar")
    source = opened("shards", classes="classes.txt")
    assert source.read(0) == IMAGES[0]
    os.truncate(tmp_path / "shards/train-0000.tar", 3000)
    with pytest.raises(UnreadableShardError, match=r"train-0000.tar: cut at byte 3000"):
        source.read(4)


# ---- what was said of the shards -----------------------------------------------------------------


def test_a_count_that_is_not_kept(tmp_path, served, opened):
    folder = tmp_path / "served"
    write_shards(folder, "tar")
    names = [f"train-{i:04d}.tar" for i in range(4)]
    said = {"splits": {"train": {"filenames": names, "shard_lengths": [5, 1, 8, 4]}}}
    (folder / "_info.json").write_text(json.dumps(said))
    source = opened(served.url, classes="classes.txt")
    assert len(source) == TOTAL + 1
    with pytest.raises(
        InputError, match=r"data.train.path: .*train-0002.tar holds 7 samples, and 8 are promised"
    ):
        source.read(7)


def test_a_layout_that_is_refused_names_the_shard(tmp_path, served, opened):
    write_shards(tmp_path / "served", "tar", manifest="plain")
    with pytest.raises(
        InputError, match=r"data.train.path: .*/train-0000.tar: key '0000' has no wnid member"
    ) as info:
        opened(served.url, label="wnid").read(0)
    assert str(info.value).count("train-0000.tar") == 1
    requests = served.requests["/train-0000.tar"]
    assert requests == 1


def test_labels_outside_the_classes(tmp_path, opened):
    (tmp_path / "two.txt").write_text("ox\nyak\n")
    write_shards(tmp_path / "shards", "tar")
    with pytest.raises(
        InputError, match=r"train-0000.tar: sample 1 has label 2, and labels go from 0 to 1"
    ):
        opened("shards", classes="two.txt").read(0)
    assert opened("shards", labelled=False).read(0) == IMAGES[0]
    write_shards(tmp_path / "named", "parquet")
    with pytest.raises(
        InputError, match=r"data.train.classes: class 'emu' is not in the class list of 2"
    ):
        opened("named", classes="two.txt")
    write_shards(tmp_path / "with", "tar", manifest="labels")
    with pytest.raises(InputError, match=r"class 'emu' is not in the class list of 2"):
        opened("with", classes="two.txt")


@pytest.mark.parametrize(
    ("kind", "manifest"), [("parquet", ""), ("tar", "plain"), ("tar", "labels")]
)
def test_classes_in_another_order(tmp_path, opened, kind, manifest):
    (tmp_path / "other.txt").write_text("emu\nzebu\nyak\nox\n")
    write_shards(tmp_path / "shards", kind, manifest=manifest)
    source = opened("shards", classes="other.txt")
    assert source.classes == ("emu", "zebu", "yak", "ox")
    names = [source.classes[label] for label in source.labels[np.arange(TOTAL)]]
    assert names == [CLASSES[label] for label in LABELS]


def test_labels_that_are_names(tmp_path, opened):
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards/train-0000.tar", range(8), lambda i: CLASSES[LABELS[i]].encode())
    write_tar(
        tmp_path / "shards/train-0001.tar", range(8, 9), lambda i: CLASSES[LABELS[i]].encode()
    )
    source = opened("shards", classes="classes.txt")
    assert source.labels[np.arange(9)].tolist() == LABELS[:9]
    (tmp_path / "two.txt").write_text("ox\nyaks\n")
    with pytest.raises(InputError, match=r"train-0000.tar: class 'emu' is not in the class list"):
        opened("shards", classes="two.txt").read(0)


@pytest.mark.parametrize("names", ["1\n2\n0\n", "ox\n0\nemu\n"])
def test_digits_that_may_be_numbers_or_names_are_refused(tmp_path, opened, names):
    (tmp_path / "names.txt").write_text(names)
    write_shards(tmp_path / "shards", "tar")
    with pytest.raises(
        InputError, match=r"train-0000.tar has labels of digits, and class \d is called '[01]'"
    ):
        opened("shards", classes="names.txt").read(0)
    (tmp_path / "names.txt").write_text("0\n1\n2\n")
    assert opened("shards", classes="names.txt").labels[np.arange(TOTAL)].tolist() == LABELS


def test_a_label_that_no_index_holds(tmp_path, opened):
    (tmp_path / "shards").mkdir()
    table = pa.table(
        {"image": pa.array([b"x"] * 3), "label": pa.array([0, 2**63 + 1, 0], pa.uint64())}
    )
    pq.write_table(table, tmp_path / "shards/0.parquet")
    with pytest.raises(
        InputError, match=r"0.parquet: row 1 has label 9223372036854775809 in column 'label'"
    ):
        opened("shards", classes="classes.txt").read(0)


def test_classes_that_nothing_names(tmp_path, opened):
    write_shards(tmp_path / "shards", "tar")
    with pytest.raises(
        InputError,
        match=r"data.train.classes: .*a label set such as imagenet-1k, or set labelled: false",
    ):
        opened("shards")
    assert len(opened("shards", classes="imagenet-1k").classes) == 1000
    assert_all_there(opened("shards", labelled=False), labelled=False)


def test_the_fingerprint_tells_data_and_not_places(tmp_path, served, opened):
    write_shards(tmp_path / "served", "tar", manifest="plain")
    prints = {
        opened(path, cache=cache).fingerprint()
        for path in ("served", served.url)
        for cache in ("a", "b")
    }
    assert len(prints) == 1
    write_tar(tmp_path / "served/train-0003.tar", range(0, 4))
    content = (tmp_path / "served/train-0003.tar").read_bytes()
    old = json.loads((tmp_path / "served/manifest.json").read_text())["shards"]
    entries = [
        ShardEntry(each["file"], each["num_samples"], each["size"], each["sha256"]) for each in old
    ]
    entries[3] = ShardEntry("train-0003.tar", 4, len(content), hashlib.sha256(content).hexdigest())
    write_manifest(
        tmp_path / "served", Manifest("tar", CLASSES, tuple(entries), None, None, None, "a test")
    )
    assert opened("served").fingerprint() not in prints
    assert opened("served/train-000[0-2].tar").fingerprint() not in prints
