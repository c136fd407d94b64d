"""What paths name and what lies beside shards, where it says little, nothing, or another thing;
whose counts are whose.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servers import FolderServer
from shards import describe, write_tars

from distill.data.splits import choose_split
from distill.data.stream.names import (
    container_of,
    display_url,
    matching,
    named_files,
    names_files,
    unsigned,
)
from distill.data.stream.opening import count_samples, open_stream
from distill.data.stream.source import StreamSource
from distill.data.stream.transport import Transport
from distill.data.stream.web import address_of
from distill.errors import InputError
from distill.recipe.schema import ShardsSpec, StreamSpec


@pytest.fixture
def served(tmp_path: Path) -> Iterator[FolderServer]:
    (tmp_path / "served").mkdir()
    with FolderServer(tmp_path / "served") as server:
        yield server


def opened(root: Path, path: object, cache: str = "cache", **fields: Any) -> StreamSource:
    spec = StreamSpec(kind="stream", path=str(path), **{"labelled": False} | fields)
    return open_stream(spec, root, "data.train", ShardsSpec(cache=cache, retries=0, timeout_s=5))


def sizes(root: Path, path: object, cache: str = "cache", **fields: Any) -> list[int]:
    found: list[int] = opened(root, path, cache, **fields).shard_sizes.tolist()
    return found


def info(folder: Path, lengths: Mapping[str, int]) -> None:
    said = {"train": {"filenames": list(lengths), "shard_lengths": list(lengths.values())}}
    (folder / "_info.json").write_text(json.dumps({"splits": said}))


def write_table(file: Path, columns: dict[str, list[Any]], names: Mapping[str, list[str]]) -> None:
    features = {name: {"names": of, "_type": "ClassLabel"} for name, of in names.items()}
    said = {
        "huggingface": json.dumps({"info": {"features": features | {"image": {"_type": "Image"}}}})
    }
    pq.write_table(pa.table(columns).replace_schema_metadata(said), file)


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "plain", "kept"),
    [
        (
            "s3://me:secret@bucket/a.tar?x-amz-signature=2",
            "s3://bucket/a.tar",
            "s3://me:secret@bucket/a.tar",
        ),
        ("s3://bucket/a-?.tar?sig=2", "s3://bucket/a-", "s3://bucket/a-?.tar?sig=2"),
        ("/a/b?sig=1.tar", "/a/b?sig=1.tar", "/a/b?sig=1.tar"),
        ("http://h/a.tar?series=1&policy=2", "http://h/a.tar", "http://h/a.tar?series=1"),
    ],
)
def test_what_is_shown_and_kept_of_a_url(url: str, plain: str, kept: str) -> None:
    assert (display_url(url), unsigned(url)) == (plain, kept)


@pytest.mark.parametrize(
    "url", ["http://me:secret@/a.tar?sig=secret", "http://me:secret@[::1/a.tar?sig=secret"]
)
def test_what_is_no_url_is_shown_without_secrets(url: str) -> None:
    with pytest.raises(InputError) as caught:
        address_of(url)
    assert "a.tar: " in str(caught.value)
    assert "secret" not in str(caught.value)


def test_secrets_stay_out_of_what_is_refused(tmp_path: Path, served: FolderServer) -> None:
    (file,) = write_tars(tmp_path / "served", [b"a"], 1)
    host = served.url.replace("//", "//me:secret@")
    uncounted = f"{host}/{file.name}?sig=secret"

    def refused(path: str, said: str, **fields: Any) -> None:
        with pytest.raises(InputError, match=said) as caught:
            opened(tmp_path, path, **fields)
        assert "secret" not in str(caught.value)

    refused(uncounted, "nothing says how many samples")
    refused(host, "has neither manifest.json nor _info.json")
    info(tmp_path / "served", {file.name: 1})
    refused(uncounted, "names its classes", labelled=True)
    describe(tmp_path / "served")
    refused(uncounted, "were made without labels", labelled=True)
    (tmp_path / "served/manifest.json").write_text('{"format": ')
    refused(uncounted, "manifest.json: damaged")


def test_a_redirect_elsewhere_is_shown_without_secrets(
    tmp_path: Path, served: FolderServer
) -> None:
    served.fault("0.tar", "redirect", on=None, location="ftp://me:secret@h/0.tar?sig=secret")
    with pytest.raises(InputError, match=r"302 redirect to ftp://h/0\.tar") as caught:
        Transport(retries=0, timeout_s=5).read(f"{served.url}/0.tar")
    assert "secret" not in str(caught.value)


def test_a_query_is_no_pattern() -> None:
    assert not names_files("https://h/shards?list=*.tar")
    assert named_files("https://h/a.tar?v=*", "data.train") == ["https://h/a.tar?v=*"]


def test_folders_are_no_shards(tmp_path: Path) -> None:
    write_tars(tmp_path, [b"a"], 1)
    (tmp_path / "unpacked.tar").mkdir()
    assert matching(f"{tmp_path}/*.tar", "data.train") == [f"{tmp_path}/shard-00000.tar"]
    assert sizes(tmp_path, ".") == [1]


def test_compressed_in_capitals() -> None:
    spec = StreamSpec(kind="stream", path="A.TAR.GZ", container="tar")
    with pytest.raises(InputError, match=r"A\.TAR\.GZ is compressed"):
        container_of(spec, ["A.TAR.GZ"], "data.train")


def test_the_only_split_is_not_taken_for_another() -> None:
    with pytest.raises(InputError, match=r"x has no split 'val': choose one of 'train'"):
        choose_split("val", ["train"], "x", "data.train")


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", [b"a", b"b"], 1)
    assert sizes(Path("/nowhere"), f"file://{tmp_path}/tars", str(tmp_path / "cache")) == [1, 1]


def test_another_signature_is_no_other_data(tmp_path: Path, served: FolderServer) -> None:
    """A run that resumes with a URL signed again reads the same shards."""
    write_tars(tmp_path / "served", [b"a", b"b"], 1)
    info(tmp_path / "served", {"shard-00000.tar": 1, "shard-00001.tar": 1})
    path = f"{served.url}/shard-0000{{0..1}}.tar"
    plain, one, two = (opened(tmp_path, path + query) for query in ("", "?sig=1", "?sig=2"))
    assert [shard.name for shard in one.shards] == ["shard-00000.tar", "shard-00001.tar"]
    assert plain.fingerprint() == one.fingerprint() == two.fingerprint()


def test_names_and_counts_are_part_of_what_shards_are(tmp_path: Path, served: FolderServer) -> None:
    """Of tars without checksums they are all that is known."""
    prints = set()
    for names, lengths in (("ab", (1, 2)), ("ac", (1, 2)), ("ab", (2, 1)), ("ba", (1, 2))):
        info(
            tmp_path / "served",
            {f"{name}.tar": count for name, count in zip(names, lengths, strict=True)},
        )
        prints.add(opened(tmp_path, served.url).fingerprint())
    assert len(prints) == 4


# ---- beside the shards ---------------------------------------------------------------------------


def test_a_manifest_of_other_shards_is_not_theirs(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", [b"a", b"b", b"c"], 2)
    describe(tmp_path / "tars")
    write_tars(tmp_path / "more", [b"d"], 1)[0].rename(tmp_path / "tars/later.tar")
    source = opened(tmp_path, "tars/{later,shard-00001}.tar")
    assert (source.shard_sizes.tolist(), [shard.sha256 for shard in source.shards]) == (
        [1, 1],
        [None, None],
    )


def test_a_shard_of_the_manifest_that_is_gone(tmp_path: Path) -> None:
    paths = write_tars(tmp_path / "tars", [b"a", b"b", b"c"], 1)
    describe(tmp_path / "tars")
    paths[1].unlink()
    with pytest.raises(
        InputError, match=r"1 of 3 shards do not exist, the first of them .*shard-00001\.tar"
    ):
        opened(tmp_path, "tars")


def test_a_store_that_forbids_what_is_not_there(tmp_path: Path, served: FolderServer) -> None:
    """Object stores answer 403 where they do not list."""
    write_table(tmp_path / "served/0.parquet", {"image": [b"a"]}, {})
    served.fault("*.json", "status", on=None, status=403)
    assert sizes(tmp_path, f"{served.url}/0.parquet") == [1]


@pytest.mark.parametrize(
    "said", [[], {"splits": 3}, {"splits": {"train": {}}}, {"splits": {"train": 1}}]
)
def test_another_file_of_that_name_is_passed_over(said: object, tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", [b"a"], 1)
    (tmp_path / "tars/_info.json").write_text(json.dumps(said))
    assert sizes(tmp_path, "tars") == [1]
    assert sizes(tmp_path, "tars/*.tar") == [1]


def test_counts_of_some_of_the_shards_are_none(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", [b"a", b"b", b"c"], 2)
    info(tmp_path / "tars", {"shard-00000.tar": 2})
    assert sizes(tmp_path, "tars/*.tar") == [2, 1]


@pytest.mark.parametrize("name", ["../a.tar", "/a.tar", "http://elsewhere/a.tar"])
def test_counts_of_files_elsewhere_are_refused(
    name: str, tmp_path: Path, served: FolderServer
) -> None:
    info(tmp_path / "served", {name: 1})
    with pytest.raises(
        InputError, match=f"_info.json names {name}, which is no file of its folder"
    ):
        opened(tmp_path, served.url)


# ---- counts --------------------------------------------------------------------------------------


def test_footers_are_asked_though_counts_are_known(tmp_path: Path, served: FolderServer) -> None:
    """They tell another table of the same name and length, and a count that is wrong."""
    prints = []
    for number, image in enumerate((b"a", b"b")):
        write_table(tmp_path / "served/0.parquet", {"image": [image * 9]}, {})
        info(tmp_path / "served", {"0.parquet": 1})
        prints.append(opened(tmp_path, served.url, f"cache-{number}").fingerprint())
    assert prints[0] != prints[1]
    info(tmp_path / "served", {"0.parquet": 2})
    with pytest.raises(InputError, match=r"0\.parquet holds 1 rows, and 2 are promised"):
        opened(tmp_path, served.url)


def test_footers_that_are_kept_are_of_the_columns(tmp_path: Path, served: FolderServer) -> None:
    columns = {"image": [b"a"], "other": [b"b"], "label": [0], "fine": [0]}
    write_table(tmp_path / "served/0.parquet", columns, {"label": ["ox"], "fine": ["young ox"]})
    for label, classes in ((None, ("ox",)), ("fine", ("young ox",))):
        assert (
            opened(tmp_path, f"{served.url}/0.parquet", labelled=True, label=label).classes
            == classes
        )
    with pytest.raises(InputError, match="elsewhere"):
        opened(tmp_path, f"{served.url}/0.parquet", image="elsewhere")


def test_footers_that_were_spoilt_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for spoil in (lambda text: text.replace("{", "("), lambda text: "[]".ljust(len(text))):
        write_table(tmp_path / "0.parquet", {"image": [b"a", b"b"]}, {})
        assert sizes(tmp_path, "*.parquet") == [2]
        (kept,) = (file for file in (tmp_path / "cache").glob("*footers*") if file.suffix == "")
        kept.write_text(spoil(kept.read_text()))
        assert sizes(tmp_path, "*.parquet") == [2]
        kept.unlink()


def test_a_table_of_unknown_size(tmp_path: Path) -> None:
    write_table(tmp_path / "0.parquet", {"image": [b"a"]}, {})
    with FolderServer(tmp_path, ranges=False) as server:
        server.fault("0.parquet", "chunked", on=None)
        with pytest.raises(InputError, match=r"0\.parquet: the server does not tell its size"):
            opened(tmp_path, f"{server.url}/0.parquet")


def test_counts_are_of_what_counts_as_an_image(tmp_path: Path, served: FolderServer) -> None:
    with tarfile.open(tmp_path / "served/0.tar", "w") as archive:
        for name in ("a.jpg", "a.thumb", "b.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
    settings = ShardsSpec(cache=str(tmp_path / "cache"), retries=0)
    for image, count in (("jpg", 2), ("thumb", None)):
        spec = StreamSpec(kind="stream", path=f"{served.url}/0.tar", labelled=False, image=image)
        if count is None:
            with pytest.raises(InputError, match="nothing says how many samples"):
                open_stream(spec, tmp_path, "data.train", settings)
        else:
            assert count_samples(spec, tmp_path, "data.train", settings).tolist() == [count]
            assert open_stream(spec, tmp_path, "data.train", settings).shard_sizes.tolist() == [
                count
            ]


def test_of_two_counts_the_last_one_holds(tmp_path: Path, served: FolderServer) -> None:
    settings = ShardsSpec(cache=str(tmp_path / "cache"), retries=0)
    spec = StreamSpec(kind="stream", path=f"{served.url}/shard-00000.tar", labelled=False)
    for images in ([b"a"], [b"a", b"b"]):
        write_tars(tmp_path / "served", images, 2)
        assert count_samples(spec, tmp_path, "data.train", settings).tolist() == [len(images)]
        assert open_stream(spec, tmp_path, "data.train", settings).shard_sizes.tolist() == [
            len(images)
        ]
        for file in (tmp_path / "cache").glob("*tar*"):
            file.unlink()  # of a mere URL it is not known that it is another
