"""Tar headers and labels as rarer writers have them."""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distill.data.stream.local import DamagedShardError
from distill.data.stream.tar import index_tar, member_name, read_members
from distill.errors import InputError

Opened = Callable[[bytes], int]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """opened(content): a descriptor of a file with these bytes."""
    descriptors = []

    def write(content: bytes) -> int:
        (tmp_path / "shard.tar").write_bytes(content)
        descriptors.append(os.open(tmp_path / "shard.tar", os.O_RDONLY))
        return descriptors[-1]

    yield write
    for fd in descriptors:
        os.close(fd)


def pack(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def summed(content: bytes, at: int, field: bytes, *, signed: bool = False) -> bytes:
    """The archive with a field of its first header changed, and the checksum with it; `signed`: as
    old tars of Sun add it up.
    """
    header = bytearray(content[:512])
    header[at : at + len(field)] = field
    header[148:156] = b" " * 8
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in header)
    header[148:156] = b"%06o\0 " % total
    return bytes(header) + content[512:]


def test_a_long_link_is_no_member(opened: Opened) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "t" * 150
        archive.addfile(link)
        image = tarfile.TarInfo("a.jpg")
        image.size = 3
        archive.addfile(image, io.BytesIO(b"abc"))
    assert [(m.name, m.size) for m in read_members(opened(buffer.getvalue()))] == [
        ("link", 0),
        ("a.jpg", 3),
    ]


def test_a_prefix_is_posix_s_alone(opened: Opened) -> None:
    """GNU tar keeps times of a file where POSIX has the first part of a long name."""
    timed = summed(pack(("a.jpg", b"abc")), 345, b"14371573422\0")
    assert [m.name for m in read_members(opened(timed))] == ["a.jpg"]
    posix = summed(summed(timed, 257, b"ustar\x0000"), 345, b"folder\0" + bytes(6))
    assert [m.name for m in read_members(opened(posix))] == ["folder/a.jpg"]
    assert member_name(posix[:512]) == "folder/a.jpg"


def test_sums_of_signed_bytes(opened: Opened) -> None:
    content = pack(("größe.jpg", b"abc"))
    for signed in (False, True):
        assert [m.name for m in read_members(opened(summed(content, 0, b"", signed=signed)))] == [
            "größe.jpg"
        ]
    wrong = bytearray(summed(content, 0, b"", signed=True))
    wrong[153] ^= 1
    with pytest.raises(DamagedShardError, match="header at byte 0 is damaged"):
        read_members(opened(bytes(wrong)))


def test_a_size_that_leads_beyond_the_end_is_a_damaged_header(opened: Opened) -> None:
    """And no archive that was cut: fetching it to its end would not help."""
    content = bytearray(pack(("a.jpg", b"abc"), ("b.jpg", b"abc")))
    content[1024 + 124] = ord("7")
    with pytest.raises(DamagedShardError, match="header at byte 1024 is damaged: its checksum"):
        read_members(opened(bytes(content)))


def test_a_truth_is_no_label(opened: Opened) -> None:
    for record in ({"cls": True}, ["cls"], {}):
        content = pack(("a.jpg", b"abc"), ("a.json", json.dumps(record).encode()))
        with pytest.raises(
            InputError, match="key 'a' has no cls member, nor cls or label in its json"
        ):
            index_tar(opened(content))


def test_extensions_in_any_case(opened: Opened) -> None:
    content = pack(("a.JPG", b"abc"), ("a.Target", b"3"))
    for image, label in (("jpg", "target"), ("JPG", "TARGET")):
        entries, names = index_tar(opened(content), image=image, label=label)
        assert (entries["label"].tolist(), names) == ([3], None)


def test_an_extension_that_is_two_things_is_the_image(opened: Opened) -> None:
    content = pack(("a.json", b"12345"), ("a.cls", b"7"))
    entries, _ = index_tar(opened(content), image="json")
    assert entries["size"].tolist() == [5]
