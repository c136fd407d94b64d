"""distill data shard: every image once, in files that others read, and the same files from any
number of processes.
"""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from command import Cli
from cutting import ALONE, FORK, cut, files, tar_samples
from PIL import Image
from servers import FolderServer

from distill.data.decode import decode
from distill.data.sources import Source
from distill.data.stream.manifest import MANIFEST_FILE, read_manifest
from distill.datatools.inspect import examine
from distill.datatools.named import open_named
from distill.datatools.plan import ShardOptions
from distill.datatools.processes import Rank
from distill.datatools.records import Conversion
from distill.datatools.shard import _agreed_plan, shard
from distill.datatools.storage import STATE_FOLDER
from distill.recipe import schema

# ---- what is written -----------------------------------------------------------------------------


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
    assert (
        hashlib.sha256((whole / manifest.labels_file).read_bytes()).hexdigest()
        == manifest.labels_sha256
    )
    labels = np.load(whole / manifest.labels_file)
    assert labels.dtype == np.int32
    assert labels.tolist() == [label for *_, label in tar_samples(whole)]
    assert not (whole / STATE_FOLDER).exists()


def test_classes_are_mixed_over_the_shards(whole: Path, photos: Path, tmp_path: Path) -> None:
    labels = np.load(whole / "labels.npy")
    assert len(set(labels[:7].tolist())) > 1
    keys = [key for key, *_ in tar_samples(whole)]
    cut(photos, tmp_path / "again", seed=1)
    assert [key for key, *_ in tar_samples(tmp_path / "again")] != keys
    cut(photos, tmp_path / "kept", seed=None)
    assert [int(key) for key, *_ in tar_samples(tmp_path / "kept")] == list(range(60))


def test_larger_images_are_shrunk_and_the_others_kept(
    photos: Path, source: Source, tmp_path: Path
) -> None:
    manifest = cut(photos, tmp_path / "out", resize=40, quality=90)
    assert manifest is not None
    assert manifest.resize == 40
    shrunk = 0
    for key, _, content, _ in tar_samples(tmp_path / "out"):
        record = source.read(int(key))
        before = decode(record)
        if min(before.size) > 40:
            shrunk += 1
            after = Image.open(io.BytesIO(content))
            assert after.format == "JPEG"
            assert after.size == (round(90 * 40 / 64), 40)
            reference = before.resize(after.size, Image.Resampling.BICUBIC)
            assert (
                np.abs(
                    np.asarray(after.convert("RGB"), float) - np.asarray(reference, float)
                ).mean()
                < 4
            )
        elif not source.describe(int(key)).endswith(".gif"):
            assert content == record
    assert shrunk == 15


def test_datasets_reads_tar_shards(whole: Path, tmp_path: Path) -> None:
    import datasets

    data = datasets.load_dataset(
        "webdataset",
        data_files={"train": [str(p) for p in sorted(whole.glob("*.tar"))]},
        split="train",
        streaming=True,
    )
    rows = list(data)
    assert [int(row["cls"]) for row in rows] == np.load(whole / "labels.npy").tolist()
    for row, (key, extension, content, _) in zip(rows, tar_samples(whole), strict=True):
        assert row["__key__"] == key
        assert np.array_equal(
            np.asarray(row[extension].convert("RGB")), np.asarray(decode(content))
        )


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
        assert np.array_equal(
            np.asarray(decode(row["image"]["bytes"])), np.asarray(decode(source.read(index)))
        )
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
            bytes([0, 0, 8, 3])
            + b"".join(n.to_bytes(4, "big") for n in pixels.shape)
            + pixels.tobytes()
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
        assert (
            max(n for path, n in server.requests.items() if "shard-" in path) <= 2
        )  # fetched whole, and once
    manifest = read_manifest((tmp_path / "second" / MANIFEST_FILE).read_bytes(), "here")
    assert (manifest.classes, manifest.num_samples) == (("cat", "dog", "eel"), 60)
    first = tar_samples(whole)
    labels = {content: label for _, _, content, label in first}
    second = tar_samples(tmp_path / "second")
    assert len(second) == 60
    assert {content: label for _, _, content, label in second} == labels
    assert [label for *_, label in second] == np.load(tmp_path / "second" / "labels.npy").tolist()


# ---- the same files from any number of processes -------------------------------------------------


def test_local_processes_write_the_same_files(whole: Path, photos: Path, tmp_path: Path) -> None:
    cut(photos, tmp_path / "out", workers=2)
    assert files(tmp_path / "out") == files(whole)


def test_parquet_is_the_same_twice(photos: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        cut(photos, tmp_path / name, container="parquet")
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_processes_of_a_job_array_write_the_same_files_and_the_last_one_closes(
    order: tuple[int, ...],
    whole: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    closed = [cut(photos, tmp_path / "out", rank=Rank(rank, 3)) is not None for rank in order]
    assert closed == [False, False, True]
    assert files(tmp_path / "out") == files(whole)
    assert "60 images in 9 tar shards" in capsys.readouterr().out.splitlines()[-1]


def test_processes_at_the_same_time_write_the_same_files(
    whole: Path, photos: Path, tmp_path: Path
) -> None:
    ranks = [
        FORK.Process(target=cut, args=(photos, tmp_path / "out"), kwargs={"rank": Rank(r, 4)})
        for r in range(4)
    ]
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


# ---- of a stream ---------------------------------------------------------------------------------


def test_the_first_look_brings_one_shard_here(whole: Path, tmp_path: Path) -> None:
    """Each process of a job takes it, before anything is said."""
    asked = ShardOptions("tar", 0, None, None, True, None, 64.0)
    with FolderServer(whole) as server:
        named = open_named(server.url, shards=schema.ShardsSpec(cache=str(tmp_path / "cache")))
        (tmp_path / "out").mkdir()
        plan = _agreed_plan(named, tmp_path / "out", asked, Conversion(None, 95), False)
        assert sum(n for path, n in server.requests.items() if path.endswith(".tar")) == 1
    assert (plan.num_samples, plan.num_shards) == (60, 1)


def test_passwords_and_signatures_are_not_written_out(whole: Path, tmp_path: Path) -> None:
    with FolderServer(whole) as server:
        url = server.url.replace("//", "//me:s3@cret@") + "/shard-0000{0..8}.tar?signature=s3cret"
        named = open_named(url, shards=schema.ShardsSpec(cache=str(tmp_path / "cache")))
        asked = ShardOptions("tar", 0, None, None, True, 20, None)
        shard(named, tmp_path / "out", asked, skip=False, num_workers=0, rank=ALONE)
        report, _ = examine(named, num_images=2, seed=0, num_workers=0)
    plain = f"{server.url}/shard-0000{{0..8}}.tar"
    assert report["source"] == named.text == plain
    text = (tmp_path / "out" / MANIFEST_FILE).read_text()
    assert plain in text
    assert "cret" not in text
