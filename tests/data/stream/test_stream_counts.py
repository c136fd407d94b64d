"""The number of samples of each shard: footers, _info.json, manifests and stored counts."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from listings import TRANSPORT, cache_in, fill, listed, parquet_of, sizes, tar_of
from servers import FolderServer

from distill.data.stream.listing import list_shards
from distill.data.stream.manifest import Manifest, ShardEntry, write_manifest
from distill.data.stream.opening import count_samples, open_stream
from distill.errors import InputError
from distill.recipe.schema import ShardsSpec, StreamSpec


def test_counts_of_parquet_are_read_from_footers_alone(
    tmp_path: Path, served: FolderServer
) -> None:
    # The last footer is larger than what is asked for at first.
    for i, padding in enumerate((0, 0, 200_000)):
        (tmp_path / f"served/{i}.parquet").write_bytes(
            parquet_of(range(300 + i), ["ox", "yak"], padding)
        )
    spec = StreamSpec(kind="stream", path=f"{served.url}/{{0..2}}.parquet")
    source = open_stream(spec, tmp_path, "data.train", ShardsSpec(cache="cache", retries=0))
    assert (source.shard_sizes.tolist(), source.classes) == ([300, 301, 302], ("ox", "yak"))
    assert not any(
        seen.status == 200 for seen in served.log if seen.path.endswith("parquet")
    )  # parts only


def test_counts_of_info_files(tmp_path: Path, served: FolderServer) -> None:
    fill(tmp_path / "served", "train-0.tar train-1.tar val-0.tar")
    said = {
        "name": "x",
        "splits": {
            "train": {
                "filenames": ["train-0.tar", "train-1.tar"],
                "shard_lengths": [1, 2],
                "num_samples": 3,
            },
            "val": {"filenames": ["val-0.tar"], "shard_lengths": [3]},
        },
    }
    (tmp_path / "served/_info.json").write_text(json.dumps(said))
    assert sizes(tmp_path, served.url, split="train") == [1, 2]
    assert sizes(tmp_path, f"{served.url}/{{val-0,train-1}}.tar") == [3, 2]
    assert sizes(tmp_path, "served", split="val") == [3]
    assert not any(seen.path.endswith(".tar") for seen in served.log)
    with pytest.raises(
        InputError, match=r"data.train.split: .* has several splits: choose one of 'train', 'val'"
    ):
        sizes(tmp_path, served.url)
    with pytest.raises(InputError, match=r"no split 'vall' \(did you mean 'val'"):
        sizes(tmp_path, served.url, split="vall")
    (tmp_path / "served/train-1.tar").unlink()
    with pytest.raises(
        InputError, match=r"1 of 2 shards do not exist, the first of them .*train-1.tar"
    ):
        sizes(tmp_path, "served", split="train")


def test_counts_of_a_manifest_for_some_of_its_shards(tmp_path: Path, served: FolderServer) -> None:
    files = fill(tmp_path / "served", "a-0.tar a-1.tar a-2.tar")
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    entries = [ShardEntry(f.name, i + 1, f.stat().st_size, hashes[i]) for i, f in enumerate(files)]
    np.save(tmp_path / "served/labels.npy", np.array([0, 0, 1, 0, 1, 0], np.int32))
    said = hashlib.sha256((tmp_path / "served/labels.npy").read_bytes()).hexdigest()
    write_manifest(
        tmp_path / "served",
        Manifest("tar", ("ox", "yak"), tuple(entries), "labels.npy", said, None, "test"),
    )
    for place in ("served", served.url):
        spec = StreamSpec(kind="stream", path=f"{place}/a-{{2,1}}.tar")
        listing = list_shards(spec, tmp_path, "data.train", TRANSPORT, cache_in(tmp_path))
        assert [(s.num_samples, s.sha256) for s in listing.shards] == [
            (3, hashes[2]),
            (2, hashes[1]),
        ]
        assert listing.labels.tolist() == [0, 1, 0, 0, 1]
        assert listing.classes == ("ox", "yak")
    assert listed(tmp_path, f"{served.url}/manifest.json") == ["a-0.tar", "a-1.tar", "a-2.tar"]
    np.save(tmp_path / "served/labels.npy", np.array([0, 0, 1, 0, 1, 1], np.int32))
    with pytest.raises(InputError, match=r"labels.npy is not what the manifest's sha256 says"):
        listed(tmp_path, served.url)
    assert listed(tmp_path, served.url, labelled=False) == ["a-0.tar", "a-1.tar", "a-2.tar"]
    with pytest.raises(InputError, match=r"data.train.split: the manifest in .* knows no splits"):
        listed(tmp_path, "served", split="train")
    with pytest.raises(InputError, match=r"data.train.container: .* holds tar shards"):
        listed(tmp_path, "served", container="parquet")
    (tmp_path / "served/manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest.json: damaged"):
        listed(tmp_path, served.url)


def test_shards_made_without_labels(tmp_path: Path) -> None:
    (file,) = fill(tmp_path / "shards", "a-0.tar")
    entry = ShardEntry(
        file.name, 1, file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()
    )
    write_manifest(tmp_path / "shards", Manifest("tar", None, (entry,), None, None, None, "test"))
    with pytest.raises(
        InputError, match=r"data.train.path: .* made without labels: set labelled: false"
    ):
        sizes(tmp_path, "shards", labelled=True)
    assert sizes(tmp_path, "shards") == [1]


def test_counts_of_local_tars_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = fill(tmp_path / "shards", "a-0.tar a-1.tar")
    assert sizes(tmp_path, "shards") == [1, 2]
    monkeypatch.setattr("distill.data.stream.shard_fetcher.index_tar", None)
    assert sizes(tmp_path, "shards") == [1, 2]
    monkeypatch.undo()
    files[1].write_bytes(tar_of(range(9)))
    assert sizes(tmp_path, "shards") == [1, 9]
    files[1].write_bytes(tar_of(range(9))[:3000])
    with pytest.raises(InputError, match=r"data.train.path: .*a-1.tar: cut at byte 3000"):
        sizes(tmp_path, "shards")


def test_counting_remote_tars(tmp_path: Path, served: FolderServer) -> None:
    fill(tmp_path / "served", "a-0.tar a-1.tar a-2.tar")
    path = f"{served.url}/a-{{0..2}}.tar"
    with pytest.raises(
        InputError,
        match=r"data.train.path: nothing says how many .*distill data inspect '.*' --count",
    ):
        sizes(tmp_path, path)
    calls = []
    spec = StreamSpec(kind="stream", path=path, labelled=False)
    settings = ShardsSpec(cache="cache", retries=0)
    counts = count_samples(
        spec, tmp_path, "data", settings, lambda done, of: calls.append((done, of))
    )
    assert counts.tolist() == [1, 2, 3]
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert sizes(tmp_path, path) == [1, 2, 3]
    assert all(served.requests[f"/a-{i}.tar"] == 1 for i in range(3))
    with pytest.raises(InputError, match="nothing says how many"):
        sizes(tmp_path, path, cache="another")
    served.fault("/a-1.tar", "shorten", on=None, after_bytes=700)
    with pytest.raises(InputError, match=r"data.path: .*a-1.tar: cut at byte 700"):
        count_samples(spec, tmp_path, "data", ShardsSpec(cache="third", retries=0))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (
            [parquet_of(range(3), ["ox", "yak"]), parquet_of(range(3), ["yak", "ox"])],
            "name other classes in their schemas",
        ),
        (
            [parquet_of(range(3)), parquet_of(range(3))[:-1]],
            "1.parquet: it does not end as a Parquet file does",
        ),
        ([parquet_of(range(3)), parquet_of(range(0))], "1.parquet holds no samples: remove it"),
        ([b"", b""], "0.parquet: it does not end as"),
    ],
)
def test_parquet_that_is_refused(tmp_path: Path, contents: list[bytes], message: str) -> None:
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.parquet").write_bytes(content)
    with pytest.raises(InputError, match=rf"data.train.path: .*{message}"):
        sizes(tmp_path, "*.parquet", labelled=True)


def test_a_column_that_is_not_there_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "0.parquet").write_bytes(parquet_of(range(3)))
    with pytest.raises(
        InputError,
        match=(
            r"data.train.path: .*0.parquet: no column 'jpg'.*set `image` to one of 'image', 'label'"
        ),
    ):
        sizes(tmp_path, "0.parquet", image="jpg")
