"""What a path names: brackets of a name, ~, what file servers leave, what is not read; and a table
that is replaced under the same name and time.
"""

import multiprocessing
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import Cli
from PIL import Image

from distill.data import converted
from distill.data.folder import files_not_read
from distill.data.guess import guess_source
from distill.data.sources import open_source
from distill.errors import InputError
from distill.recipe.schema import ImageFolderSpec, SourceSpec, StreamSpec, TableSpec


def parquet(file: Path, images: list[bytes], labels: list[object] | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table(
            {"image": pa.array(images), "label": labels or [i % 2 for i in range(len(images))]}
        ),
        file,
    )
    return file


def contents(spec: SourceSpec, root: Path) -> list[object]:
    source = open_source(spec, root)
    return [source.read(i) for i in range(len(source))]


def photos(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


# ---- replaced tables -----------------------------------------------------------------------------


@pytest.fixture
def table_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache/distill"


@pytest.mark.parametrize("in_place", [True, False])
def test_a_table_replaced_under_the_same_name_size_and_time_is_read_again(
    in_place: bool, tmp_path: Path, table_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converted, "_SETTLED_S", 0.0)  # remember a checksum at once
    file = parquet(tmp_path / "t.parquet", [b"old 1", b"old 2"])
    spec, before = TableSpec(kind="parquet", path="t.parquet"), file.stat()
    assert contents(spec, tmp_path) == [b"old 1", b"old 2"]
    other = parquet(tmp_path / "other", [b"new 1", b"new 2"])
    if in_place:
        file.write_bytes(other.read_bytes())
    else:
        other.replace(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert contents(spec, tmp_path) == [b"new 1", b"new 2"]


def test_a_table_is_converted_and_read_whole_once_wherever_it_lies(
    tmp_path: Path, table_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = parquet(tmp_path / "t.parquet", [b"1", b"2"])
    monkeypatch.setattr(converted, "_SETTLED_S", 0.0)
    contents(TableSpec(kind="parquet", path="t.parquet"), tmp_path)
    assert len(list(table_cache.glob("*.arrow"))) == 1
    with monkeypatch.context() as patched:
        patched.setattr(converted.xxhash, "xxh3_128", None)  # the file is not read again
        contents(TableSpec(kind="parquet", path="t.parquet"), tmp_path)
    (tmp_path / "moved").mkdir()
    file.replace(tmp_path / "moved/u.parquet")
    assert contents(TableSpec(kind="parquet", path="moved"), tmp_path) == [b"1", b"2"]
    assert [
        file.suffix for file in table_cache.iterdir() if file.suffix not in (".arrow", ".json")
    ] == []
    assert len(list(table_cache.glob("*.arrow"))) == 1


def test_a_converted_table_is_read_after_a_fork_and_by_processes_that_start_together(
    tmp_path: Path, table_cache: Path
) -> None:
    images = [b"%d" % i for i in range(250)]
    parquet(tmp_path / "t.parquet", images)
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        found = pool.starmap(
            contents, [(TableSpec(kind="parquet", path="t.parquet"), tmp_path)] * 4
        )
    assert found == [images] * 4
    source = open_source(TableSpec(kind="parquet", path="t.parquet"), tmp_path)
    with context.Pool(1) as pool:
        assert pool.map(source.read, [249, 0, 100]) == [b"249", b"0", b"100"]


def test_a_table_that_changes_between_its_checksum_and_its_rows_is_refused(
    tmp_path: Path, table_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the rows of one file would be kept under the checksum of another."""
    file = parquet(tmp_path / "t.parquet", [b"old 1"])
    taken, other = converted._checksum, parquet(tmp_path / "other", [b"new 1"])

    def then_replaced(path: Path, state: list[int], folder: Path) -> str:
        checksum = taken(path, state, folder)
        other.replace(file)
        return checksum

    with monkeypatch.context() as patched:
        patched.setattr(converted, "_checksum", then_replaced)
        with pytest.raises(InputError, match=r"t\.parquet changes while it is read"):
            contents(TableSpec(kind="parquet", path="t.parquet"), tmp_path)
    assert not list(table_cache.glob("*.arrow"))
    assert contents(TableSpec(kind="parquet", path="t.parquet"), tmp_path) == [b"new 1"]


def test_a_home_that_cannot_be_written_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file/cache")
    monkeypatch.setattr(converted.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    parquet(tmp_path / "t.parquet", [b"1"], ["cat"])
    assert contents(TableSpec(kind="parquet", path="t.parquet"), tmp_path) == [b"1"]
    assert list(tmp_path.glob("temporary/distill-tables-*/*.arrow"))
    monkeypatch.setattr(converted.tempfile, "gettempdir", lambda: str(tmp_path / "file"))
    with pytest.raises(InputError, match="HF_DATASETS_CACHE: neither"):
        contents(TableSpec(kind="parquet", path="t.parquet"), tmp_path)


def test_categories_of_pandas_are_words(tmp_path: Path) -> None:
    labels = pa.array(["ox", "yak", "ox"]).dictionary_encode()
    table = pa.table({"image": pa.array([b"1", b"2", b"3"]), "label": labels})
    pq.write_table(table, tmp_path / "t.parquet")
    source = open_source(TableSpec(kind="parquet", path="t.parquet"), tmp_path)
    assert (source.classes, source.labels.tolist()) == (("ox", "yak"), [0, 1, 0])


# ---- paths ---------------------------------------------------------------------------------------


def test_a_path_that_exists_is_no_pattern(tmp_path: Path) -> None:
    root = tmp_path / "data [2024] {a,b}"
    parquet(root / "t[0].parquet", [b"1"])
    parquet(root / "set[1]" / "part-0.parquet", [b"2"])
    for path, image in (
        ("t[0].parquet", b"1"),
        ("t*.parquet", b"1"),
        ("set[1]", b"2"),
        ("set[1]/part-[0-9].parquet", b"2"),
    ):
        for at in ((Path(path), root), (root / path, Path())):
            assert contents(TableSpec(kind="parquet", path=str(at[0])), at[1]) == [image]
            assert contents(StreamSpec(kind="stream", path=str(at[0]), labelled=False), at[1]) == [
                image
            ]
        assert guess_source(str(root / path)).kind == "parquet"
    photos(root / "photos", "a/1.png", "b/1.png")
    assert contents(ImageFolderSpec(kind="image_folder", path="photos"), root) == [
        b"a/1.png",
        b"b/1.png",
    ]
    (tmp_path / "names [1].txt").write_text("b\na\n")
    spec = ImageFolderSpec(
        kind="image_folder", path="photos", classes=str(tmp_path / "names [1].txt")
    )
    assert open_source(spec, root).labels.tolist() == [1, 0]


def test_a_path_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    photos(tmp_path / "photos", "a/1.png", "b/1.png")
    parquet(tmp_path / "t.parquet", [b"1"])
    (tmp_path / "names").write_text("b\na\n")
    elsewhere = Path("/nowhere")
    source = open_source(
        ImageFolderSpec(kind="image_folder", path="~/photos", classes="~/names"), elsewhere
    )
    assert source.labels.tolist() == [1, 0]
    assert contents(TableSpec(kind="parquet", path="~/t.parquet"), elsewhere) == [b"1"]
    assert contents(StreamSpec(kind="stream", path="~/t.parquet", labelled=False), elsewhere) == [
        b"1"
    ]
    assert guess_source("~/photos").kind == "image_folder"
    with pytest.raises(
        InputError, match=r"data.train.path: ~nobody-of-that-name/x: .*give the path without ~"
    ):
        open_source(ImageFolderSpec(kind="image_folder", path="~nobody-of-that-name/x"), elsewhere)
    with pytest.raises(InputError, match="has a NUL"):
        open_source(ImageFolderSpec(kind="image_folder", path="a\0b"), elsewhere)


def test_what_file_servers_leave_is_neither_class_nor_image_nor_table(tmp_path: Path) -> None:
    left = ("@eaDir", ".AppleDouble", "__MACOSX", "lost+found", ".ipynb_checkpoints", "#recycle")
    photos(
        tmp_path / "photos",
        "a/1.png",
        "b/sub/1.png",
        "a/._1.png",
        "Thumbs.db",
        "a/Thumbs.db",
        "@eaDir/x/1.png",
    )
    photos(
        tmp_path / "photos",
        *(f"{name}/1.png" for name in left),
        *(f"a/{name}/1.png" for name in left),
    )
    source = open_source(ImageFolderSpec(kind="image_folder", path="photos"), tmp_path)
    assert source.classes == ("a", "b")
    assert [source.read(i) for i in range(len(source))] == [b"a/1.png", b"b/sub/1.png"]
    parquet(tmp_path / "tables/t.parquet", [b"1"])
    for name in ("tables/._t.parquet", "tables/@eaDir/t.parquet", "tables/.AppleDouble/t.parquet"):
        photos(tmp_path, name)
    for path in ("tables", "tables/**/*.parquet"):
        assert contents(TableSpec(kind="parquet", path=path), tmp_path) == [b"1"]
        assert contents(StreamSpec(kind="stream", path=path, labelled=False), tmp_path) == [b"1"]


def test_a_link_to_a_folder_above_adds_no_image(tmp_path: Path) -> None:
    """Else a class would have the images of all classes."""
    photos(tmp_path / "photos", "a/1.png", "b/1.png")
    (tmp_path / "photos/a/up").symlink_to("..")
    (tmp_path / "photos/b/far").symlink_to(tmp_path)
    source = open_source(ImageFolderSpec(kind="image_folder", path="photos"), tmp_path)
    assert [source.read(i) for i in range(len(source))] == [b"a/1.png", b"b/1.png"]
    assert source.labels.tolist() == [0, 1]
    for target in (".", "..", str(tmp_path / "photos")):
        link = tmp_path / "photos/all"
        link.symlink_to(target)
        with pytest.raises(InputError, match=r"class folder .*all has no images"):
            open_source(ImageFolderSpec(kind="image_folder", path="photos"), tmp_path)
        link.unlink()
    (tmp_path / "photos/a").rename(tmp_path / "elsewhere")  # a class that is a link itself
    (tmp_path / "photos/a").symlink_to("../elsewhere")
    (tmp_path / "elsewhere/up").unlink()
    (tmp_path / "elsewhere/up").symlink_to(tmp_path / "photos")
    source = open_source(ImageFolderSpec(kind="image_folder", path="photos"), tmp_path)
    assert [source.read(i) for i in range(len(source))] == [b"a/1.png", b"b/1.png"]


@pytest.mark.skipif(os.getuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    photos(tmp_path / "photos", "a/1.png", "b/1.png", "b/sub/2.png")
    (tmp_path / "photos/b/sub").chmod(0)
    try:
        with pytest.raises(
            InputError, match=r"data.train.path: .*b/sub cannot be read \(Permission denied\)"
        ):
            open_source(ImageFolderSpec(kind="image_folder", path="photos"), tmp_path)
    finally:
        (tmp_path / "photos/b/sub").chmod(0o700)


def test_files_that_an_image_folder_passes_over_are_counted(cli: Cli, tmp_path: Path) -> None:
    folder, shared = tmp_path / "photos", tmp_path / "shared"
    shared.mkdir()
    (shared / "one.JFIF").write_bytes(b"x")
    for name in ("cat", "dog", "eel"):  # more than 16 links in all, six in each class
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(folder / name / "0.png")
        assert not files_not_read(folder, "SOURCE")
    for name in ("cat", "dog", "eel"):
        for way in range(6):
            (folder / name / f"link{way}").symlink_to(shared)
        (folder / name / "note.txt").write_bytes(b"x")
    (folder / "loose.png").write_bytes(b"x")
    (folder / "Thumbs.db").write_bytes(b"x")
    assert files_not_read(folder, "SOURCE") == "18 .jfif, 3 .txt, 1 outside the class folders"
    outcome = cli("data", "inspect", folder, "--no-sheet", "--workers", 0)
    assert "not read    18 .jfif, 3 .txt, 1 outside the class folders" in outcome.out, outcome
