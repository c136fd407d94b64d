"""distill data shard: every image once, in files that others read; resumed, parallel and damaged sets end the same."""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import multiprocessing
import os
import resource
import shutil
import signal
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from command import Cli
from PIL import Image
from servers import FolderServer

from distill.data.decode import decode
from distill.data.sources import Source
from distill.data.stream.manifest import MANIFEST_FILE, Manifest, read_manifest, write_manifest
from distill.errors import InputError
from distill.prepare.container import Sample, write_tar
from distill.prepare.making import Job, make
from distill.prepare.named import open_named
from distill.prepare.plan import Asked, Plan
from distill.prepare.processes import Rank, in_processes, runs
from distill.prepare.records import Conversion
from distill.prepare.shard import shard
from distill.prepare.storage import STATE_FOLDER

ALONE = Rank(0, 1)
FORK = multiprocessing.get_context("fork")


def cut(
    source: Path | str, out: Path, *, rank: Rank = ALONE, workers: int = 0, skip: bool = False, **asked: Any
) -> Manifest | None:
    """`distill data shard` without its command line; 7 samples a shard."""
    labelled = asked.pop("labelled", True)
    options = {"container": "tar", "seed": 0, "resize": None, "quality": None, "samples_per_shard": 7, "shard_mb": None}
    named = open_named(str(source), labelled=labelled)
    return shard(named, out, Asked(**(options | asked), labelled=labelled), skip=skip, num_workers=workers, rank=rank)


def files(folder: Path) -> dict[str, str]:
    """SHA-256 by name, of all that is there."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def inodes(folder: Path) -> dict[str, int]:
    """Which file each shard is: another number is another file."""
    with contextlib.suppress(FileNotFoundError):
        return {entry.name: entry.inode() for entry in os.scandir(folder) if entry.name.startswith("shard-")}
    return {}


def tar_samples(folder: Path) -> list[tuple[str, str, bytes, int | None]]:
    """(key, extension, content, label) of every sample, by tarfile alone."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            parts: dict[str, dict[str, bytes]] = {}
            for member in archive:
                key, _, extension = member.name.partition(".")
                parts.setdefault(key, {})[extension] = archive.extractfile(member).read()  # type: ignore[union-attr]
        for key, part in parts.items():
            label = part.pop("cls", None)
            ((extension, content),) = part.items()
            found.append((key, extension, content, None if label is None else int(label)))
    return found


@pytest.fixture(scope="module")
def source(photos: Path) -> Source:
    return open_named(str(photos)).source


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of one process, uninterrupted. Read only."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert cut(photos, out) is not None
    return out


# ---- what is written -------------------------------------------------------------------------------------------------


def test_every_image_is_there_once_with_its_bytes_and_label(whole: Path, source: Source) -> None:
    samples = tar_samples(whole)
    assert sorted(int(key) for key, *_ in samples) == list(range(60))
    for key, extension, content, label in samples:
        record = source.read(int(key))
        assert label == source.labels[int(key)]
        if source.describe(int(key)).endswith(".gif"):
            assert Image.open(io.BytesIO(content)).format == "PNG"
            assert np.array_equal(np.asarray(decode(content)), np.asarray(decode(record)))
        else:
            assert content == record
        assert extension == "jpg"  # what most of them are


def test_the_manifest_holds_what_is_there(whole: Path, source: Source) -> None:
    manifest = read_manifest((whole / MANIFEST_FILE).read_bytes(), "here")
    assert manifest.classes == ("cat", "dog", "eel")
    assert manifest.num_samples == 60
    assert manifest.num_skipped == 0
    sizes = [shard.num_samples for shard in manifest.shards]
    assert len(sizes) == 9  # ceil(60 / 7)
    assert max(sizes) <= 7
    assert max(sizes) - min(sizes) <= 1
    for entry in manifest.shards:
        content = (whole / entry.file).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry.size, entry.sha256)
    assert manifest.labels_file is not None
    assert hashlib.sha256((whole / manifest.labels_file).read_bytes()).hexdigest() == manifest.labels_sha256
    labels = np.load(whole / manifest.labels_file)
    assert labels.dtype == np.int32
    assert labels.tolist() == [label for *_, label in tar_samples(whole)]
    assert {path.name for path in (whole / STATE_FOLDER).iterdir()} == {"plan.json"}


def test_classes_are_mixed_over_the_shards(whole: Path, photos: Path, tmp_path: Path) -> None:
    labels = np.load(whole / "labels.npy")
    assert len(set(labels[:7].tolist())) > 1
    keys = [key for key, *_ in tar_samples(whole)]
    cut(photos, tmp_path / "again", seed=1)
    assert [key for key, *_ in tar_samples(tmp_path / "again")] != keys
    cut(photos, tmp_path / "kept", seed=None)
    assert [int(key) for key, *_ in tar_samples(tmp_path / "kept")] == list(range(60))


def test_larger_images_are_shrunk_and_the_others_kept(photos: Path, source: Source, tmp_path: Path) -> None:
    manifest = cut(photos, tmp_path / "out", resize=48, quality=90)
    assert manifest is not None
    assert manifest.resize == 48
    shrunk = 0
    for key, _, content, _ in tar_samples(tmp_path / "out"):
        record = source.read(int(key))
        before = decode(record)
        if min(before.size) > 48:
            shrunk += 1
            after = Image.open(io.BytesIO(content))
            assert after.format == "JPEG"
            assert after.size == (round(90 * 48 / 64), 48)
            reference = before.resize(after.size, Image.Resampling.BICUBIC)
            assert np.abs(np.asarray(after.convert("RGB"), float) - np.asarray(reference, float)).mean() < 4
        elif not source.describe(int(key)).endswith(".gif"):
            assert content == record
    assert shrunk == 15


def test_datasets_reads_tar_shards(whole: Path, tmp_path: Path) -> None:
    import datasets

    data = datasets.load_dataset(
        "webdataset", data_files={"train": [str(p) for p in sorted(whole.glob("*.tar"))]}, split="train", streaming=True
    )
    rows = list(data)
    assert [int(row["cls"]) for row in rows] == np.load(whole / "labels.npy").tolist()
    for row, (key, extension, content, _) in zip(rows, tar_samples(whole), strict=True):
        assert row["__key__"] == key
        assert np.array_equal(np.asarray(row[extension].convert("RGB")), np.asarray(decode(content)))


@pytest.mark.parametrize("labelled", [True, False])
def test_datasets_reads_parquet_shards_with_their_classes(
    labelled: bool, photos: Path, source: Source, tmp_path: Path
) -> None:
    import datasets

    manifest = cut(photos, tmp_path / "out", container="parquet", labelled=labelled)
    assert manifest is not None
    assert manifest.classes == (("cat", "dog", "eel") if labelled else None)
    names = [str(tmp_path / "out" / shard.file) for shard in manifest.shards]
    data = datasets.load_dataset(
        "parquet", data_files={"train": names}, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(data) == 60
    assert isinstance(data.features["image"], datasets.Image)
    if labelled:
        assert data.features["label"].names == ["cat", "dog", "eel"]
        assert data["label"] == np.load(tmp_path / "out" / "labels.npy").tolist()
    else:
        assert data.column_names == ["image"]
        assert not (tmp_path / "out" / "labels.npy").exists()
    seen = set()
    for row in data.cast_column("image", datasets.Image(decode=False)):
        index = int(row["image"]["path"].partition(".")[0])
        seen.add(index)
        assert np.array_equal(np.asarray(decode(row["image"]["bytes"])), np.asarray(decode(source.read(index))))
        if labelled:
            assert row["label"] == source.labels[index]
    assert seen == set(range(60))


def test_without_labels_there_are_none(photos: Path, tmp_path: Path) -> None:
    manifest = cut(photos, tmp_path / "out", labelled=False)
    assert manifest is not None
    assert (manifest.classes, manifest.labels_file) == (None, None)
    assert [label for *_, label in tar_samples(tmp_path / "out")] == [None] * 60


def test_the_size_of_shards_comes_from_that_of_images(photos: Path, tmp_path: Path) -> None:
    manifest = cut(photos, tmp_path / "out", samples_per_shard=None, shard_mb=0.02)
    assert manifest is not None
    assert len(manifest.shards) > 3
    sizes = [shard.size for shard in manifest.shards]
    assert 0.01e6 < sum(sizes) / len(sizes) <= 0.03e6  # tar ends on 10 KiB


def test_pixels_without_a_file_become_png(tmp_path: Path) -> None:
    from distill.data.fashion import read_idx

    folder = Path(__file__).parents[2] / "distill/data/embedded"
    assert folder.is_dir()
    idx = tmp_path / "idx"
    idx.mkdir()
    pixels = np.arange(6 * 5 * 5, dtype=np.uint8).reshape(6, 5, 5)
    for prefix in ("train", "t10k"):
        (idx / f"{prefix}-images-idx3-ubyte").write_bytes(
            bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in pixels.shape) + pixels.tobytes()
        )
        (idx / f"{prefix}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1]) + (6).to_bytes(4, "big") + bytes(range(6))
        )
    assert np.array_equal(read_idx(idx / "train-images-idx3-ubyte", 3), pixels)
    assert cut(idx, tmp_path / "out") is not None
    for key, extension, content, label in tar_samples(tmp_path / "out"):
        assert (extension, label) == ("png", int(key))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels[int(key)])


@pytest.mark.parametrize("container", ["tar", "parquet"])
def test_shards_are_a_source_again_also_behind_http(
    container: str, whole: Path, photos: Path, source: Source, tmp_path: Path, cli: Cli
) -> None:
    cut(photos, tmp_path / "first", container=container)
    ask = ("--samples-per-shard", 9, "--workers", 1, "--cache", tmp_path / "cache", "--seed", 3)
    with FolderServer(tmp_path / "first") as server:
        assert cli("data", "shard", server.url, tmp_path / "second", *ask).code == 0
        assert max(n for path, n in server.requests.items() if "shard-" in path) <= 2  # fetched whole, and once
    manifest = read_manifest((tmp_path / "second" / MANIFEST_FILE).read_bytes(), "here")
    assert (manifest.classes, manifest.num_samples) == (("cat", "dog", "eel"), 60)
    first = tar_samples(whole)
    labels = {content: label for _, _, content, label in first}
    second = tar_samples(tmp_path / "second")
    assert len(second) == 60
    assert {content: label for _, _, content, label in second} == labels
    assert [label for *_, label in second] == np.load(tmp_path / "second" / "labels.npy").tolist()


# ---- the same files, whoever writes them -----------------------------------------------------------------------------


def test_local_processes_write_the_same_files(whole: Path, photos: Path, tmp_path: Path) -> None:
    cut(photos, tmp_path / "out", workers=2)
    assert files(tmp_path / "out") == files(whole)


def test_parquet_is_the_same_twice(photos: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        cut(photos, tmp_path / name, container="parquet")
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_processes_of_a_job_array_write_the_same_files_and_the_last_one_closes(
    order: tuple[int, ...], whole: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = [cut(photos, tmp_path / "out", rank=Rank(rank, 3)) is not None for rank in order]
    assert closed == [False, False, True]
    assert files(tmp_path / "out") == files(whole)
    assert "60 images in 9 tar shards" in capsys.readouterr().out.splitlines()[-1]


def test_processes_at_the_same_time_write_the_same_files(whole: Path, photos: Path, tmp_path: Path) -> None:
    ranks = [FORK.Process(target=cut, args=(photos, tmp_path / "out"), kwargs={"rank": Rank(r, 4)}) for r in range(4)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * 4
    assert files(tmp_path / "out") == files(whole)


def test_every_shard_is_one_process_s() -> None:
    for count in (0, 1, 5, 64, 1000):
        shares = [list(Rank(rank, 7).share(count)) for rank in range(7)]
        assert [i for share in shares for i in share] == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


# ---- interrupted, damaged --------------------------------------------------------------------------------------------


def _killed_at(step: int, photos: Path, out: Path) -> None:
    """Cut, and die at the step-th file that is synced, put in its place or removed."""
    counted = itertools.count(1)

    def deadly(what: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(counted) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return what(*arguments, **options)

        return call

    for owner, name in ((os, "fsync"), (os, "link"), (Path, "replace"), (Path, "unlink")):
        setattr(owner, name, deadly(getattr(owner, name)))
    cut(photos, out, samples_per_shard=30)


def test_killed_at_any_step_it_goes_on(photos: Path, tmp_path: Path) -> None:
    cut(photos, tmp_path / "whole", samples_per_shard=30)
    for step in itertools.count(1):
        out = tmp_path / f"killed-{step}"
        process = FORK.Process(target=_killed_at, args=(step, photos, out))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        done = {path.name.removesuffix(".json") for path in (out / STATE_FOLDER).glob("shard-*.json")}
        before = inodes(out)
        cut(photos, out, samples_per_shard=30)
        assert files(out) == files(tmp_path / "whole")
        assert all(inodes(out)[name] == before[name] for name in done), "a finished shard was written again"
    assert step > 15


def test_killed_at_any_moment_it_goes_on(whole: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    attempts = 0
    while not (out / MANIFEST_FILE).is_file():
        before = inodes(out)
        process = FORK.Process(target=cut, args=(photos, out), kwargs={"workers": 2})
        process.start()
        while process.is_alive() and len(inodes(out).items() - before.items()) <= attempts % 3:
            time.sleep(0.0005)
        process.kill()
        process.join()
        attempts += 1
    while any(runs(int(path.name.rpartition("-")[2])) for path in out.rglob(".tmp-*")):
        time.sleep(0.01)  # local processes that have not ended yet
    cut(photos, out, workers=2)
    assert files(out) == files(whole)


@pytest.mark.parametrize("damage", ["shorten", "flip", "remove"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_shard_is_written_again(
    damage: str, finished: bool, whole: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if finished:
        shutil.copytree(whole, out)
    else:
        assert cut(photos, out, rank=Rank(0, 2)) is None
    path = out / "shard-00002.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-512] if damage == "shorten" else content)
    others = {name: inode for name, inode in inodes(out).items() if name != path.name}
    assert cut(photos, out) is not None
    assert files(out) == files(whole)
    assert others.items() <= inodes(out).items()


def test_a_finished_set_that_cannot_be_made_again_is_said(whole: Path, photos: Path, tmp_path: Path) -> None:
    """As with another version of Pillow: what is written is not what the manifest says."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    manifest = read_manifest((out / MANIFEST_FILE).read_bytes(), "here")
    changed = dataclasses.replace(manifest.shards[2], sha256="00" * 32)
    write_manifest(out, dataclasses.replace(manifest, shards=(*manifest.shards[:2], changed, *manifest.shards[3:])))
    with pytest.raises(
        InputError, match=r"shard-00002\.tar: was damaged, and written again it differs from what manifest\.json says"
    ):
        cut(photos, out)


@pytest.mark.parametrize("name", ["labels.npy", MANIFEST_FILE])
def test_a_damaged_manifest_or_label_file_is_written_again(
    name: str, whole: Path, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / name).write_bytes(b"nothing")
    assert cut(photos, tmp_path / "out") is not None
    assert files(tmp_path / "out") == files(whole)


def test_a_whole_set_is_left_as_it_is(
    whole: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "out")
    before = inodes(tmp_path / "out")
    cut(photos, tmp_path / "out")
    assert inodes(tmp_path / "out") == before
    assert "all of them were there and are whole" in capsys.readouterr().out


def test_the_source_may_have_moved(whole: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "elsewhere")
    cut(photos, tmp_path / "out", rank=Rank(0, 2))
    cut(tmp_path / "elsewhere", tmp_path / "out", rank=Rank(1, 2))
    assert {k: v for k, v in files(tmp_path / "out").items() if k != MANIFEST_FILE} == {
        k: v for k, v in files(whole).items() if k != MANIFEST_FILE
    }


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 1}, r"--seed \(seed 0 then, seed 1 now\)"),
        ({"seed": None}, r"--seed \(seed 0 then, --no-shuffle now\)"),
        ({"resize": 32}, r"--resize \(not given then, 32 now\)"),
        ({"container": "parquet"}, r"--container \(tar then, parquet now\)"),
        ({"samples_per_shard": 8}, r"--samples-per-shard \(7 then, 8 now\)"),
        ({"labelled": False}, r"--unlabelled \(with labels then, without labels now\)"),
    ],
)
def test_other_options_are_refused(changed: dict[str, Any], said: str, whole: Path, photos: Path) -> None:
    with pytest.raises(
        InputError, match=rf"begun with other input: {said}\. Give what it was begun with, or write into"
    ):
        cut(photos, whole, **changed)


def test_another_source_is_refused(
    whole: Path, photos: Path, tmp_path: Path, make_picture: Callable[..., bytes]
) -> None:
    for change in ("picture", "label"):
        other = tmp_path / change
        shutil.copytree(photos, other)
        if change == "picture":
            (other / "cat/000.jpeg").write_bytes(make_picture(99, (90, 64), "JPEG"))
        else:
            (other / "cat/003.jpeg").rename(other / "dog/003.jpeg")
        with pytest.raises(InputError, match="SOURCE or --classes"):
            cut(other, whole)


# ---- unreadable images -----------------------------------------------------------------------------------------------


@pytest.fixture
def broken(photos: Path, tmp_path: Path) -> Path:
    """The same with two broken images, one of them cut in half."""
    folder = tmp_path / "broken"
    shutil.copytree(photos, folder)
    (folder / "dog/021.jpeg").write_bytes(b"no image")
    path = folder / "eel/053.jpeg"
    path.write_bytes(path.read_bytes()[:-200])
    return folder


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_ends_it(workers: int, broken: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"broken/(dog/021\.jpeg|eel/053\.jpeg): unreadable image .*, or give --unreadable skip"
    ):
        cut(broken, tmp_path / "out", workers=workers)
    assert not (tmp_path / "out" / MANIFEST_FILE).exists()
    assert not list((tmp_path / "out").glob(".tmp*"))


def test_unreadable_images_are_left_out_and_counted(
    broken: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError):
        cut(broken, tmp_path / "out")
    manifest = cut(broken, tmp_path / "out", skip=True)  # the same folder goes on with the other policy
    assert manifest is not None
    assert (manifest.num_samples, manifest.num_skipped) == (58, 2)
    assert "58 images in 9 tar shards" in (line := capsys.readouterr().out.splitlines()[-1])
    assert "2 unreadable left out" in line
    labels = np.load(tmp_path / "out" / "labels.npy").tolist()
    samples = tar_samples(tmp_path / "out")
    assert labels == [label for *_, label in samples]
    # All others stand where they would stand otherwise.
    expected = [key for key, *_ in tar_samples(whole) if int(key) not in (21, 53)]
    assert [key for key, *_ in samples] == expected
    ours, theirs = files(tmp_path / "out"), files(whole)
    assert Counter(ours[n] == theirs[n] for n in theirs if n.endswith(".tar"))[False] <= 2


def test_a_shard_of_which_nothing_can_be_read_is_left_out(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(photos, folder)
    for i in range(7):
        next(folder.rglob(f"{i:03d}.*")).write_bytes(b"")
    for _ in range(2):  # again: a whole set, with a shard that has no file
        manifest = cut(folder, tmp_path / "out", skip=True, seed=None, samples_per_shard=6)
        assert manifest is not None
        assert (len(manifest.shards), manifest.num_samples, manifest.num_skipped) == (9, 53, 7)
        assert not (tmp_path / "out/shard-00000.tar").exists()
    # Another process of the finished set, which did not look at that shard.
    assert cut(folder, tmp_path / "out", skip=True, seed=None, samples_per_shard=6, rank=Rank(1, 2)) == manifest


def test_a_lost_disk_is_no_bad_luck(tmp_path: Path, make_picture: Callable[..., bytes]) -> None:
    folder = tmp_path / "gone/cat"
    folder.mkdir(parents=True)
    for i in range(220):
        (folder / f"{i:03d}.png").write_bytes(b"" if i < 110 else make_picture(i, (8, 8), "PNG"))
    with pytest.raises(InputError, match=r"100 images in a row cannot be read, the last of them .*: is the disk there"):
        cut(folder.parent, tmp_path / "out", skip=True, seed=None, samples_per_shard=220)


# ---- the machine -----------------------------------------------------------------------------------------------------


def _with_little_room(photos: Path, out: Path, workers: int, result: Any) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))
    try:
        cut(photos, out, workers=workers)
        result.put("no error")
    except Exception as error:
        result.put(str(error))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_is_said_and_the_rest_goes_on_later(
    workers: int, whole: Path, photos: Path, tmp_path: Path
) -> None:
    result = FORK.SimpleQueue()
    process = FORK.Process(target=_with_little_room, args=(photos, tmp_path / "out", workers, result))
    process.start()
    process.join()
    assert (said := result.get()).startswith(f"{tmp_path / 'out'}: no room left to write there"), said
    assert "the same command goes on" in said
    assert not list((tmp_path / "out").rglob(".tmp*"))
    assert cut(photos, tmp_path / "out") is not None
    assert files(tmp_path / "out") == files(whole)


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not(
    whole: Path, photos: Path, tmp_path: Path
) -> None:
    cut(photos, tmp_path / "out", rank=Rank(0, 3))
    dead = FORK.Process(target=int)
    dead.start()
    dead.join()
    host = os.uname().nodename
    names = [f".tmp-shard-00001.tar--{host}-{pid}" for pid in (dead.pid, os.getpid())] + [
        ".tmp-shard-00001.tar--elsewhere-1",
        ".tmp-shard-00007.tar--elsewhere-1",
    ]
    for name in names:
        (tmp_path / "out" / name).touch()
    os.utime(tmp_path / "out" / names[3], (0, 0))
    cut(photos, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").glob(".tmp*")} == {names[1], names[2]}


def test_what_is_written_is_read_back(source: Source, tmp_path: Path) -> None:
    def careless(file: BinaryIO, samples: Iterable[Sample]) -> None:
        write_tar(file, [sample._replace(content=sample.content[:-1]) for sample in samples])

    plan = Plan(Asked("tar", 0, None, None, True, 7, None), "", 60, 9, "jpg")
    (tmp_path / STATE_FOLDER).mkdir()
    for write, fault in ((write_tar, False), (careless, True)):
        job = Job(source, plan, tmp_path, Conversion(), write, False, {})
        if fault:
            with pytest.raises(InputError, match=r"shard-00001\.tar: what was written is not what is read back"):
                make(job, 1)
            assert not (tmp_path / "shard-00001.tar").exists()
        else:
            assert make(job, 0).num_samples == 6


def _end(_: None, number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_local_process_is_said() -> None:
    with pytest.raises(InputError, match="one of the local processes was killed, often for want of memory"):
        list(in_processes(_end, None, range(8), 2))
    assert sorted(in_processes(_end, None, (0, 1, 2, 4), 2)) == [0, 1, 2, 4]


def _sleep(folder: Path, number: int) -> None:
    (folder / f"{os.getpid()}").touch()
    time.sleep(60)


def _parent(folder: Path) -> None:
    list(in_processes(_sleep, folder, range(2), 2))


def test_local_processes_end_with_a_killed_command(tmp_path: Path) -> None:
    process = FORK.Process(target=_parent, args=(tmp_path,))
    process.start()
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.01)
    process.kill()
    process.join()
    deadline = time.monotonic() + 30
    while any(runs(int(path.name)) for path in tmp_path.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_did_in_a_line(cli: Cli, photos: Path, tmp_path: Path) -> None:
    code, out, err = cli("data", "shard", photos, tmp_path / "out", "--samples-per-shard", 20, "--workers", 1)
    assert (code, err) == (0, "")
    (line,) = out.splitlines()
    assert line.startswith(f"{tmp_path / 'out'}: 60 images in 3 tar shards, 0.2 MB; ")
    assert line.endswith("images/s")


def test_the_data_of_a_recipe_is_a_source(
    cli: Cli, tiny_recipe: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(
        {"data": {"train": {"kind": "image_folder", "path": "train"}, "eval": None, "root": str(photos.parent)}}
    )
    assert cli("data", "shard", f"{recipe}:data.train", tmp_path / "out", "--workers", 0).code == 0
    assert len(tar_samples(tmp_path / "out")) == 60
    code, _, err = cli("data", "shard", f"{recipe}:data.eval", tmp_path / "eval")
    assert (code, "data.eval of the recipe is null" in err) == (2, True)
    code, _, err = cli("data", "shard", f"{recipe}:stages.one.data.train", tmp_path / "eval")
    assert (code, "the recipe has no stage 'one'; it has none" in err) == (2, True)
    code, _, err = cli("data", "shard", f"{recipe}:data.train", tmp_path / "eval", "--split", "x")
    assert (code, "says that itself" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "out"], "SOURCE nowhere: there is no such file or folder"),
        (["trian", "out"], "SOURCE trian: there is no such file or folder (did you mean 'train'?)"),
        (["train", "file"], "file: is a file; give a folder"),
        (["train", "train"], "train: lies in train, which is read: give a folder outside of it"),
        (["train", "train/shards"], "train/shards: lies in train, which is read"),
        (["train", "other"], "other: holds files that distill data shard did not write"),
        (["mixed", "out"], "SOURCE mixed: holds *.tar and *.parquet: say which with a pattern, such as 'mixed/*.tar'"),
        (["train", "out", "--split", "x"], "--split x: train (image_folder) has no splits"),
        (["fashion_mnist:all", "out"], "Fashion-MNIST has no split 'all'"),
        (["empty", "out"], "SOURCE: empty has no class folders"),
        (["train", "out", "--classes", "nowhere.txt"], "--classes nowhere.txt: neither a file nor"),
        (["train", "out", "--classes", "file"], "class 'cat' is not in the class list of 1"),
        (["train", "out", "--shard-mb", "0"], "--shard-mb 0.0: should be above 0"),
        (["train", "out", "--shard-mb", "1", "--samples-per-shard", "1"], "give one of them"),
        (["train", "out", "--quality", "90"], "--quality: only what --resize shrinks"),
    ],
)
def test_bad_input_is_a_sentence(
    arguments: list[str], said: str, cli: Cli, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").symlink_to(photos)
    (tmp_path / "file").write_text("hello\n")
    for folder, name in (("other", "a.txt"), ("mixed", "a.tar"), ("mixed", "a.parquet")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).touch()
    (tmp_path / "empty").mkdir()
    code, out, err = cli("data", "shard", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert not (tmp_path / "out").exists()


def test_a_launcher_that_says_half_is_refused(
    cli: Cli, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, world_size in (("", "2"), ("1", ""), ("2", "2"), ("x", "2")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world_size)
        code, _, err = cli("data", "shard", photos, tmp_path / "out")
        assert (code, f"RANK={rank} and WORLD_SIZE={world_size}: should be" in err) == (2, True)
