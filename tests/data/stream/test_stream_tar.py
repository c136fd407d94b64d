"""Tar shards: the members of an archive, and the samples that they make."""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from shard_files import flipped

from distill.data.stream.local import (
    DamagedShardError,
)
from distill.data.stream.tar import index_tar, member_name, read_members
from distill.errors import InputError

# The fixture `opened`: content -> a descriptor of a file with it.
OpenBytes = Callable[[bytes], int]


def pack(members: Iterable[tuple[str, bytes]], kind: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def samples(count: int) -> list[tuple[str, bytes]]:
    return [
        member
        for i in range(count)
        for member in (
            (f"{i:06d}.jpg", bytes([i + 1]) * (300 + 100 * i)),
            (f"{i:06d}.cls", b"%d" % (i % 3)),
        )
    ]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[OpenBytes]:
    """opened(content): a descriptor of a file with these bytes."""
    descriptors: list[int] = []

    def write(content: bytes) -> int:
        file = tmp_path / "shard.tar"
        file.write_bytes(content)
        descriptors.append(os.open(file, os.O_RDONLY))
        return descriptors[-1]

    yield write
    for fd in descriptors:
        os.close(fd)


# ---- tar: members --------------------------------------------------------------------------------

NAMES = [
    "a.jpg",
    "folder/b.jpg",
    "ü/größe.png",
    "x" * 99,
    "x" * 100,
    "y" * 101 + ".jpg",
    "d/" * 60 + "deep.jpg",
]
LONG = ["z" * 300 + ".jpg", "0.cls", "ö" * 120 + ".jpg", "1.cls"]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (tarfile.USTAR_FORMAT, [*NAMES[:5], "d/" * 60 + "deep.jpg"]),
        (tarfile.GNU_FORMAT, NAMES + LONG),
        (tarfile.PAX_FORMAT, NAMES + LONG),
    ],
)
def test_members_are_those_that_tarfile_finds(
    opened: OpenBytes, kind: int, names: list[str]
) -> None:
    sizes = [0, 1, 511, 512, 513, 4096, 100_000]
    content = pack([(name, os.urandom(sizes[i % 7])) for i, name in enumerate(names)], kind)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive.getmembers()]
    assert [tuple(member[:3]) for member in read_members(opened(content))] == expected


def test_what_other_writers_write(opened: OpenBytes, tmp_path: Path) -> None:
    """Folders, links, V7 headers, PAX of the whole archive, sizes in base 256, and one block of
    zeros at the end or many.
    """
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "of all"}
    ) as archive:
        for name, kind in (("d", tarfile.DIRTYPE), ("s", tarfile.SYMTYPE), ("h", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = (
                kind,
                "d/a.jpg",
                0 if kind == tarfile.DIRTYPE else 600,
            )
            archive.addfile(info)
        info = tarfile.TarInfo("d/a.jpg")
        info.size, info.pax_headers = 3, {"mtime": "1.5", "size": "3"}
        archive.addfile(info, io.BytesIO(b"abc"))
    content = buffer.getvalue()
    found = read_members(opened(content))
    assert [(m.name, m.size) for m in found] == [("d", 0), ("s", 0), ("h", 0), ("d/a.jpg", 3)]
    assert content[found[-1].offset :][:3] == b"abc"

    at = found[-1].offset - 512
    sizeless = content[:at] + _summed(content[at:], 124, b"0" * 11)
    assert read_members(opened(sizeless)) == found  # the size is PAX's alone

    plain = _summed(pack([("a.jpg", b"abc")]), 257, bytes(8))
    plain = _summed(plain, 124, b"\x80" + (3).to_bytes(11))
    for end in (1024 + 512, 1024 + 1024, len(plain)):
        assert [tuple(m[:3]) for m in read_members(opened(plain[:end]))] == [("a.jpg", 512, 3)]


def _summed(content: bytes, at: int, field: bytes) -> bytes:
    """The archive with a field of its first header changed, and the checksum with it."""
    header = bytearray(content[:512])
    header[at : at + len(field)] = field
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
    return bytes(header) + content[512:]


SHARD = pack(samples(3))  # members at 0, 1024, ... 5120; zeros from 6144

FAULTS = {
    "empty": (b"", "cut at byte 0"),
    "garbage": (b"?html>" * 1000, "no tar header at byte 0"),
    "gzip": (gzip.compress(SHARD), "compressed with gzip.*unpack"),
    "cut in an image": (SHARD[:4700], "cut at byte 4700: the member at byte 4096 ends at 5108"),
    "cut in a header": (SHARD[:5300], "cut at byte 5300.*header is due at byte 5120"),
    "cut between members": (SHARD[:4096], "cut at byte 4096: the archive has no end"),
    "a name changed": (flipped(SHARD, 2048), "header at byte 2048 is damaged: its checksum"),
    "a size changed": (flipped(SHARD, 2048 + 132), "header at byte 2048 is damaged"),
    "a size without digits": (
        SHARD[:2172] + b"hello" + SHARD[2177:],
        "header at byte 2048 is damaged",
    ),
    "overwritten": (SHARD[:2048] + b"\xff" * 4096 + SHARD[6144:], "no tar header at byte 2048"),
    "zeroed in the middle": (
        SHARD[:2048] + bytes(1024) + SHARD[3072:],
        "data after the end of the archive at byte 2048",
    ),
    "two archives": (SHARD + SHARD, "data after the end"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_archives_are_named_by_byte(opened: OpenBytes, fault: str) -> None:
    content, message = FAULTS[fault]
    with pytest.raises(DamagedShardError, match=message):
        read_members(opened(content))


def test_a_cut_anywhere_is_noticed(opened: OpenBytes) -> None:
    end = len(SHARD.rstrip(b"\0")) // 512 * 512 + 512
    for size in range(0, end + 512, 31):
        with pytest.raises(DamagedShardError, match=f"cut at byte {size}: "):
            read_members(opened(SHARD[:size]))


def test_a_damaged_pax_header(opened: OpenBytes) -> None:
    content = pack([("z" * 200 + ".jpg", b"abc")], tarfile.PAX_FORMAT)
    at = content.index(b"path=") - 4
    with pytest.raises(DamagedShardError, match="PAX header at byte 512"):
        read_members(opened(content[:at] + b"999" + content[at + 3 :]))


# ---- tar: samples --------------------------------------------------------------------------------


def test_samples_of_a_tar(opened: OpenBytes) -> None:
    fd = opened(pack(samples(5)))
    entries, names = index_tar(fd)
    assert names is None
    assert entries["label"].tolist() == [0, 1, 2, 0, 1]
    assert [os.pread(fd, size, offset) for offset, size, _, _ in entries] == [
        c for n, c in samples(5) if "jpg" in n
    ]
    assert [member_name(os.pread(fd, 512, offset - 512)) for offset, *_ in entries] == [
        f"{i:06d}.jpg" for i in range(5)
    ]


def test_members_are_grouped_as_webdataset_groups_them(opened: OpenBytes) -> None:
    """By folder and name up to the first dot, whatever the letters' case; other members and hidden
    files do not matter.
    """
    shard = pack(
        [
            ("README.md", b"text"),
            ("./a/0.JPG", b"first"),
            ("a/0.cls", b"7"),
            ("b/0.cls", b"8\n"),
            ("b/0.seg.png", b"mask"),
            ("b/0.jpeg", b"second"),
            ("b/0.json", b"{}"),
            ("b/._0.jpg", b"shadow"),
            ("b/.1.cls", b""),
            ("b/.jpg", b"hidden"),
            ("__index__.txt", b""),
        ]
    )
    with pytest.raises(InputError, match="key 'a/0' has a label and no image"):
        index_tar(opened(shard))  # "./a/0" is another key for webdataset too
    fd = opened(pack([(name.removeprefix("./"), content) for name, content in _members(shard)]))
    entries, _ = index_tar(fd)
    assert [os.pread(fd, size, offset) for offset, size, *_ in entries] == [b"first", b"second"]
    assert entries["label"].tolist() == [7, 8]
    fd = opened(pack([("b/0.seg.png", b"mask"), ("b/0.jpeg", b"second")]))
    masks, _ = index_tar(fd, image="seg.png", labelled=False)
    assert [os.pread(fd, size, offset) for offset, size, *_ in masks] == [b"mask"]
    assert masks["label"].tolist() == [-1]


def _members(content: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return [(m.name, archive.extractfile(m).read()) for m in archive.getmembers()]


def test_labels_of_a_tar(opened: OpenBytes) -> None:
    images = [("0.jpg", b"x"), ("1.jpg", b"y"), ("2.jpg", b"z")]
    jsons = [
        (f"{i}.json", json.dumps({"label": i + 4, "wnid": f"n{2 - i}"}).encode()) for i in range(3)
    ]
    assert index_tar(opened(pack(images + jsons)))[0]["label"].tolist() == [4, 5, 6]
    entries, names = index_tar(opened(pack(images + jsons)), label="wnid")
    assert (entries["label"].tolist(), names) == ([2, 1, 0], ("n0", "n1", "n2"))
    texts = [("0.wnid", b"yak\n"), ("1.wnid", b"ox"), ("2.wnid", b"yak")]
    entries, names = index_tar(opened(pack(images + texts)), label="wnid")
    assert (entries["label"].tolist(), names) == ([1, 0, 1], ("ox", "yak"))
    mixed = [("0.cls", b"7"), ("1.json", b'{"cls": "5"}'), ("2.json", b'{"label": 6}')]
    assert index_tar(opened(pack(images + mixed)))[0]["label"].tolist() == [7, 5, 6]
    assert index_tar(opened(pack([("0.jpg", b"x"), ("0.cls", b"--1")])))[1] == ("--1",)


@pytest.mark.parametrize("name", ["b.gif", "b.v1.jpg", "b.JFIF", "b.seg.tiff"])
def test_an_image_under_another_name_is_not_lost(opened: OpenBytes, name: str) -> None:
    members = [("a.jpg", b"1"), ("a.seg.png", b"mask"), (name, b"2"), ("b.txt", b"")]
    with pytest.raises(
        InputError,
        match=rf"'{name}' is an image, and none of key 'b'.*name all extensions in `image`",
    ):
        index_tar(opened(pack(members)), labelled=False)
    found, _ = index_tar(opened(pack(members)), image=f"jpg;{name[2:]}", labelled=False)
    assert len(found) == 2


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b"1"), ("a.cls", b"0"), ("a.png", b"2")], "key 'a' has two images"),
        ([("a.jpg", b"1"), ("a.cls", b"0"), ("a.jpg", b"2")], "key 'a' has two images"),
        ([("a.jpg", b"1"), ("a.cls", b"0"), ("a.cls", b"2")], "key 'a' has two cls members"),
        ([("a.jpg", b"1"), ("a.cls", b"0"), ("b.cls", b"2")], "key 'b' has a label and no image"),
        (
            [("a.jpg", b"1"), ("a.cls", b"0"), ("b.jpg", b"2")],
            "key 'b' has no cls member.*labelled: false",
        ),
        ([("a.jpg", b"1"), ("a.cls", b"")], r"key 'a': its label member at byte \d+ is empty"),
        ([("a.jpg", b"1"), ("a.json", b"{")], "key 'a': its json member at byte 1536 is broken"),
        (
            [("a.jpg", b"1"), ("a.json", b"[1]")],
            "key 'a' has no cls member, nor cls or label in its json",
        ),
        (
            [("a.jpg", b"1"), ("a.cls", b"0"), ("b.jpg", b"2"), ("b.cls", b"ox")],
            "key 'a' has a number .* key 'b' a name",
        ),
        (
            [("a.jpg", b"1"), ("a.cls", b"9" * 20)],
            "key 'a' has label 9{20}, which is no class number",
        ),
        ([("a.jpg", b"1"), ("a.json", b'{"cls": -%d}' % 10**19)], "key 'a' has label -1"),
        ([("a.gif", b"1"), ("a.cls", b"0")], "no member is an image.*name the extension"),
        ([], "no member is an image"),
    ],
)
def test_layouts_that_are_refused(
    opened: OpenBytes, members: list[tuple[str, bytes]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        index_tar(opened(pack(members)))


def test_links_are_refused(opened: OpenBytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "b.jpg"
        archive.addfile(info)
    with pytest.raises(InputError, match=r"'a.jpg' is a link"):
        index_tar(opened(buffer.getvalue()))
