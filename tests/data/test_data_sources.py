import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.data.decode import read_image
from distill.data.sources import Source, open_source
from distill.errors import InputError
from distill.files import tmp_name
from distill.recipe.schema import ImageFolderSpec, SavedDatasetSpec, TableSpec

if TYPE_CHECKING:
    from datasets import Dataset


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def colours(png: Callable[..., bytes]) -> list[bytes]:
    """Nine PNG files, each of its own colour."""
    return [png(np.full((6, 7, 3), 20 * i, np.uint8)) for i in range(9)]


@pytest.fixture
def folder(tmp_path: Path, colours: list[bytes]) -> Path:
    for i, name in enumerate(
        ["cat/1.png", "cat/deep/er/2.PNG", "ant/1.png", "ant/0.jpeg", "dog/x.png"]
    ):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(colours[i])
    (tmp_path / "images/cat/notes.txt").write_text("not an image")
    (tmp_path / "images/.cache").mkdir()
    return tmp_path


def first_pixel(source: Source, index: int) -> int:
    return int(np.asarray(read_image(source, index))[0, 0, 0])


# ---- image folders -------------------------------------------------------------------------------


def test_image_folder_reads_sorted_classes_at_any_depth(folder: Path) -> None:
    source = open_source(ImageFolderSpec(kind="image_folder", path="images"), folder)
    assert source.classes == ("ant", "cat", "dog")
    assert source.labels.tolist() == [0, 0, 1, 1, 2]
    assert [first_pixel(source, i) for i in range(5)] == [60, 40, 0, 20, 80]
    assert source.describe(3) == str(folder / "images/cat/deep/er/2.PNG")
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read(4) == source.read(4)


def test_image_folder_with_a_class_list(folder: Path) -> None:
    (folder / "names.txt").write_text("dog\nemu\ncat\nant\n")
    source = open_source(
        ImageFolderSpec(kind="image_folder", path="images", classes="names.txt"), folder
    )
    assert source.classes == ("dog", "emu", "cat", "ant")
    assert source.labels.tolist() == [3, 3, 2, 2, 0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("dog\ncats\nant\n", "class 'cat' is not in the class list of 3.*did you mean 'cats'"),
        ("dog\ndog\n", "'dog' twice"),
        ("", "no lines"),
        ("dog\n\ncat\n", "an empty line"),
        (None, "cannot read"),
    ],
)
def test_bad_class_lists(folder: Path, names: str | None, message: str) -> None:
    if names is not None:
        (folder / "names.txt").write_text(names)
    with pytest.raises(InputError, match=message):
        open_source(
            ImageFolderSpec(kind="image_folder", path="images", classes="names.txt"), folder
        )


def test_bad_image_folders(folder: Path) -> None:
    spec = ImageFolderSpec(kind="image_folder", path="imags")
    with pytest.raises(
        InputError, match=r"data.eval.path: .*imags does not exist.*did you mean 'images'"
    ):
        open_source(spec, folder, key="data.eval")
    (folder / "images/bee").mkdir()
    with pytest.raises(InputError, match=r"class folder .*bee has no images"):
        open_source(ImageFolderSpec(kind="image_folder", path="images"), folder)
    with pytest.raises(InputError, match="has no class folders"):
        open_source(ImageFolderSpec(kind="image_folder", path="images/bee"), folder)


# ---- tables --------------------------------------------------------------------------------------


def test_numbers_that_are_no_class_numbers(tmp_path: Path, colours: list[bytes]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = [10**12, *range(len(colours) - 1)]
    pq.write_table(pa.table({"image": colours, "label": labels}), tmp_path / "ids.parquet")
    with pytest.raises(
        InputError,
        match=r"has numbers up to 1,000,000,000,000 in 9 rows, which are no class numbers",
    ):
        open_source(TableSpec(kind="parquet", path="ids.parquet"), tmp_path)


def test_a_label_that_its_names_do_not_have(tmp_path: Path, colours: list[bytes]) -> None:
    data = make_dataset(colours, "class_label")
    table = data.data.table.set_column(
        1, data.data.table.schema.field(1), [[0, 2, 3] * 3]
    )  # 3 of 3 names
    import pyarrow.parquet as pq

    pq.write_table(table, tmp_path / "d.parquet")
    (tmp_path / "names").write_text("asp\nox\nyak\nzebra\n")  # a list in which 3 is zebra
    for classes in ("names", None):
        with pytest.raises(
            InputError, match=r"row 2 has label 3, and labels go from 0 to 2; 3 of 9 rows"
        ):
            open_source(TableSpec(kind="parquet", path="d.parquet", classes=classes), tmp_path)


def make_dataset(colours: list[bytes], kind: str) -> "Dataset":
    import datasets

    images = datasets.Image()
    rows: dict[str, list[Any]] = {
        "image": [{"bytes": record, "path": f"{i}.png"} for i, record in enumerate(colours)]
    }
    if kind == "class_label":
        rows["label"] = [0, 2, 1] * 3
        label = datasets.ClassLabel(names=["ox", "yak", "asp"])
    elif kind == "string":
        rows["label"] = ["ox", "yak", "asp"] * 3
        label = datasets.Value("string")
    else:
        rows["label"] = [0, 2, 1] * 3
        label = datasets.Value("int32")
    return datasets.Dataset.from_dict(
        rows, features=datasets.Features({"image": images, "label": label})
    )


EXPECTED = {
    "class_label": (("ox", "yak", "asp"), [0, 2, 1] * 3),
    "string": (("asp", "ox", "yak"), [1, 2, 0] * 3),
    "int": (("0", "1", "2"), [0, 2, 1] * 3),
}


@pytest.mark.parametrize("labels", EXPECTED)
@pytest.mark.parametrize("storage", ["parquet", "arrow", "saved"])
def test_tables_keep_bytes_and_name_classes(
    tmp_path: Path, colours: list[bytes], labels: str, storage: str
) -> None:
    data = make_dataset(colours, labels)
    if storage == "saved":
        data.save_to_disk(tmp_path / "d")
        spec = SavedDatasetSpec(kind="saved", path="d")
    elif storage == "parquet":
        data.to_parquet(tmp_path / "d.parquet")
        spec = TableSpec(kind="parquet", path="d.parquet")
    else:
        data.save_to_disk(tmp_path / "d")
        spec = TableSpec(kind="arrow", path="d/*.arrow")
    source = open_source(spec, tmp_path)
    assert (source.classes, source.labels.tolist()) == EXPECTED[labels]
    assert source.labels.dtype == np.int64
    assert [source.read(i) for i in range(9)] == colours
    assert "row 4 (4.png)" in source.describe(4)
    sent = pickle.dumps(source)
    assert pickle.loads(sent).read(5) == colours[5]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(source.read, (7,)) == colours[7]


def test_several_parquet_files_and_where_a_row_lies(tmp_path: Path, colours: list[bytes]) -> None:
    data = make_dataset(colours, "class_label")
    data.select(range(4)).to_parquet(tmp_path / "part-0.parquet")
    data.select(range(4, 9)).to_parquet(tmp_path / "part-1.parquet")
    for path in (".", "part-*.parquet"):
        source = open_source(TableSpec(kind="parquet", path=path), tmp_path)
        assert [source.read(i) for i in range(9)] == colours
        assert source.describe(5) == f"{tmp_path / 'part-1.parquet'}, row 1 (5.png)"


def test_plain_parquet_without_hugging_face_features(tmp_path: Path, colours: list[bytes]) -> None:
    table = pa.table({"jpg": pa.array(colours, pa.binary()), "cls": [2, 1, 0] * 3})
    pq.write_table(table, tmp_path / "plain.parquet")
    source = open_source(
        TableSpec(kind="parquet", path="plain.parquet", image_column="jpg", label_column="cls"),
        tmp_path,
    )
    assert [source.read(i) for i in range(9)] == colours
    assert source.labels.tolist() == [2, 1, 0] * 3


def test_arrow_files_of_either_format(tmp_path: Path, colours: list[bytes]) -> None:
    table = pa.table({"image": pa.array(colours, pa.binary()), "label": [2, 1, 0] * 3})
    with (
        pa.OSFile(str(tmp_path / "f.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    source = open_source(TableSpec(kind="arrow", path="f.arrow"), tmp_path)
    assert [source.read(i) for i in range(9)] == colours


def test_a_shuffled_or_filtered_data_set_keeps_labels_with_images(
    tmp_path: Path, colours: list[bytes]
) -> None:
    data = make_dataset(colours, "class_label").shuffle(seed=1).select([1, 5, 6])
    data.save_to_disk(tmp_path / "d")
    source = open_source(SavedDatasetSpec(kind="saved", path="d"), tmp_path)
    for i in range(3):
        original = colours.index(source.read(i))
        assert source.labels[i] == [0, 2, 1][original % 3]


def test_class_lists_over_tables(tmp_path: Path, colours: list[bytes]) -> None:
    (tmp_path / "names").write_text("asp\nzebu\nyak\nox\n")
    for kind, expected in (("class_label", [3, 0, 2]), ("string", [3, 2, 0]), ("int", [0, 2, 1])):
        make_dataset(colours, kind).to_parquet(tmp_path / f"{kind}.parquet")
        source = open_source(
            TableSpec(kind="parquet", path=f"{kind}.parquet", classes="names"), tmp_path
        )
        assert source.classes == ("asp", "zebu", "yak", "ox")
        assert source.labels[:3].tolist() == expected


def test_saved_splits(tmp_path: Path, colours: list[bytes]) -> None:
    import datasets

    data = make_dataset(colours, "int")
    datasets.DatasetDict({"train": data, "validation": data.select(range(3))}).save_to_disk(
        tmp_path / "d"
    )
    assert (
        len(open_source(SavedDatasetSpec(kind="saved", path="d", split="validation"), tmp_path))
        == 3
    )
    with pytest.raises(
        InputError,
        match=(
            r"no split 'validate' \(did you mean 'validation'\?\): choose one of 'train',"
            r" 'validation'"
        ),
    ):
        open_source(SavedDatasetSpec(kind="saved", path="d", split="validate"), tmp_path)
    with pytest.raises(InputError, match="choose one of"):
        open_source(SavedDatasetSpec(kind="saved", path="d"), tmp_path)
    with pytest.raises(InputError, match="without splits"):
        open_source(SavedDatasetSpec(kind="saved", path="d/train", split="train"), tmp_path)
    with pytest.raises(InputError, match="cannot be loaded as what save_to_disk writes"):
        open_source(SavedDatasetSpec(kind="saved", path="."), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_column": "imag"},
            r"data.train.image_column: .* no column 'imag' \(did you mean 'image'\?\)",
        ),
        (
            {"label_column": "labels"},
            r"data.train.label_column: .* no column 'labels' \(did you mean 'label'\?\)",
        ),
        ({"image_column": "label"}, "column 'label' .* not image files"),
        ({"label_column": "image"}, "labels are integers, names or a ClassLabel"),
        ({"path": "d.parqet"}, r"does not exist \(did you mean 'd.parquet'"),
        ({"path": "*.pq"}, "no file matches"),
        ({"path": "empty"}, r"has no \*.parquet files"),
        ({"path": "text.parquet"}, "cannot open .*text.parquet"),
    ],
)
def test_bad_tables(
    tmp_path: Path, colours: list[bytes], changes: dict[str, str], message: str
) -> None:
    make_dataset(colours, "class_label").to_parquet(tmp_path / "d.parquet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("this is not parquet")
    with pytest.raises(InputError, match=message) as info:
        open_source(TableSpec(kind="parquet", **{"path": "d.parquet"} | changes), tmp_path)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, -1], "row 2 has label -1, and labels go from 0 to 1"),
        ([0, None, 1], "1 rows without a label"),
    ],
)
def test_bad_labels_in_tables(
    tmp_path: Path, colours: list[bytes], labels: list[int | None], message: str
) -> None:
    table = pa.table(
        {
            "image": pa.array(colours[: len(labels)], pa.binary()),
            "label": pa.array(labels, pa.int64()),
        }
    )
    pq.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(InputError, match=message):
        open_source(TableSpec(kind="parquet", path="d.parquet"), tmp_path)


def test_no_records_at_all(tmp_path: Path, colours: list[bytes]) -> None:
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    with (
        pa.OSFile(str(tmp_path / "d.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        writer.write_table(schema.empty_table())
    with pytest.raises(InputError, match=r"data.train: arrow holds no records"):
        open_source(TableSpec(kind="arrow", path="d.arrow"), tmp_path)
    make_dataset(colours, "class_label").select([]).save_to_disk(tmp_path / "d")
    with pytest.raises(InputError, match=r"data.train.path: .* cannot be loaded"):
        open_source(SavedDatasetSpec(kind="saved", path="d"), tmp_path)


def test_an_empty_image_cell_is_unreadable_by_row(tmp_path: Path, colours: list[bytes]) -> None:
    images = pa.array([{"bytes": colours[0], "path": None}, {"bytes": None, "path": None}, None])
    pq.write_table(pa.table({"image": images, "label": [0, 0, 0]}), tmp_path / "d.parquet")
    source = open_source(TableSpec(kind="parquet", path="d.parquet"), tmp_path)
    assert source.read(0) == colours[0]
    for row in (1, 2):
        with pytest.raises(InputError, match=f"d.parquet, row {row}: unreadable image"):
            read_image(source, row)


def test_images_kept_as_paths(tmp_path: Path, colours: list[bytes]) -> None:
    (tmp_path / "a.png").write_bytes(colours[3])
    images = pa.array([{"bytes": None, "path": str(tmp_path / "a.png")}])
    pq.write_table(pa.table({"image": images, "label": [0]}), tmp_path / "d.parquet")
    source = open_source(
        TableSpec(kind="parquet", path=str(tmp_path / "d.parquet")), Path("/nowhere")
    )
    assert source.read(0) == colours[3]


def test_machines_that_share_a_folder_write_files_of_different_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = set()
    for host in ("one.example", "two.example"):
        monkeypatch.setattr("os.uname", lambda host=host: SimpleNamespace(nodename=host))
        names.add(tmp_name("x.arrow"))
    assert len(names) == 2
