"""Tar archives of any members: the samples are those that Python's tarfile finds, or the archive is
refused in words.
"""

import io
import os
import tarfile
import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data.stream.local import DamagedShardError
from distill.data.stream.tar import index_tar, read_members
from distill.errors import InputError

STEMS = st.one_of(
    st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=12),
    st.sampled_from(
        [
            "a",
            "b",
            "../up",
            "/abs/x",
            "d/e",
            "x" * 120,
            "y" * 300,
            "./dot",
            "a//b",
            ".hidden",
            "é图\u202e",
        ]
    ),
)
EXTENSIONS = st.sampled_from([".jpg", ".png", ".JPG", ".cls", ".json", ".txt", ".seg.png", ""])
TYPES = st.sampled_from([tarfile.REGTYPE] * 8 + [b"\0", b"7", b"1", b"2", b"3", b"4", b"5", b"6"])
MEMBERS = st.lists(
    st.tuples(
        STEMS,
        EXTENSIONS,
        TYPES,
        st.binary(max_size=700),
        st.dictionaries(
            st.sampled_from(["comment", "mtime", "path2"]), st.text(max_size=5), max_size=2
        ),
    ),
    max_size=6,
)


def archive_of(
    members: list[tuple[str, str, bytes, bytes, dict[str, str]]], form: int
) -> bytes | None:
    """None where tarfile refuses to write it."""
    buffer = io.BytesIO()
    try:
        with tarfile.open(
            fileobj=buffer, mode="w", format=form, errors="surrogateescape"
        ) as archive:
            for stem, extension, kind, content, pax in members:
                member = tarfile.TarInfo(stem + extension)
                member.type, member.linkname, member.pax_headers = kind, "a.jpg", dict(pax)
                regular = kind in (tarfile.REGTYPE, b"\0", b"7")
                member.size = len(content) if regular else 0
                archive.addfile(member, io.BytesIO(content))
    except (ValueError, UnicodeError):
        return None
    return buffer.getvalue()


def expected(content: bytes) -> dict[str, bytes]:
    """key -> bytes of its image, as tarfile sees them and webdataset groups them."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(content), errors="surrogateescape") as archive:
        for member in archive:
            folder, slash, base = member.name.rpartition("/")
            stem, _, extension = base.partition(".")
            if stem and extension.lower() in ("jpg", "png") and not member.isdir():
                file = archive.extractfile(member)
                assert file is not None
                found[folder + slash + stem] = file.read()
    return found


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    members=MEMBERS,
    form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    labelled=st.booleans(),
    cut=st.one_of(st.none(), st.floats(0, 1)),
    flip=st.one_of(st.none(), st.floats(0, 1, exclude_max=True)),
)
def test_any_archive_is_read_as_tarfile_reads_it_or_refused(
    members: list[tuple[str, str, bytes, bytes, dict[str, str]]],
    form: int,
    labelled: bool,
    cut: float | None,
    flip: float | None,
) -> None:
    content = archive_of(members, form)
    if content is None:
        return
    whole = content
    if cut is not None:
        content = content[: int(len(content) * cut)]
    if flip is not None and content:
        at = int(len(content) * flip)
        content = content[:at] + bytes([content[at] ^ 0x20]) + content[at + 1 :]
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            if content == whole:
                names = [member.name for member in read_members(file.fileno())]
                with tarfile.open(fileobj=io.BytesIO(content), errors="surrogateescape") as archive:
                    assert names == archive.getnames()
            entries, _ = index_tar(file.fileno(), labelled=labelled)
        except (DamagedShardError, InputError):
            return
        images = [
            os.pread(file.fileno(), int(entry["size"]), int(entry["offset"])) for entry in entries
        ]
    assert images == list(expected(content).values())
