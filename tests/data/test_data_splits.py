"""One way to know splits for every kind of data: several side by side and none named is an error
that lists them.
"""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import Cli
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distill.data.guess import guess_source
from distill.data.sources import open_source
from distill.data.splits import files_of_split, split_of
from distill.errors import InputError
from distill.recipe import schema

SIZES = {"train": 6, "test": 3, "validation": 2}


def png(value: int) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(held, "PNG")
    return held.getvalue()


def parquet(root: Path, **sizes: int) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, size in sizes.items():
        table = pa.table(
            {
                "image": pa.array([png(i) for i in range(size)]),
                "label": [i % 2 for i in range(size)],
            }
        )
        pq.write_table(table, root / f"{name.replace('__', '-')}.parquet")


def tars(root: Path, **sizes: int) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, size in sizes.items():
        with tarfile.open(root / f"{name.replace('__', '-')}.tar", "w") as archive:
            for i in range(size):
                for member, content in ((f"{i}.png", png(i)), (f"{i}.cls", b"%d" % (i % 2))):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))


def saved(root: Path, **sizes: int) -> None:
    import datasets

    rows = {
        n: {"image": [png(i) for i in range(k)], "label": [i % 2 for i in range(k)]}
        for n, k in sizes.items()
    }
    datasets.DatasetDict(
        {n: datasets.Dataset.from_dict(row) for n, row in rows.items()}
    ).save_to_disk(root)


def table(path: str, **fields: str) -> schema.TableSpec:
    return schema.TableSpec(kind=fields.pop("kind", "parquet"), path=path, **fields)


def stream(path: str, **fields: str) -> schema.StreamSpec:
    return schema.StreamSpec(kind="stream", path=path, labelled=False, **fields)


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("imagenet-train-0000.tar", "train"),
        ("imagenet1k-validation-00.tar", "validation"),
        ("VAL/0.tar", "validation"),
        ("dev.parquet", "validation"),
        ("test/train_0.tar", "train"),
        ("testing/0.tar", "test"),
        ("retrain-0.tar", None),
        ("trainer.tar", None),
        ("part-0.parquet", None),
    ],
)
def test_the_split_of_a_name(path: str, split: str | None) -> None:
    assert split_of(path) == split


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(
        st.from_regex(r"[a-z0-9]{0,4}[-_.]?(train|val|test|x)[-_.][0-9]{1,3}\.tar", fullmatch=True),
        min_size=1,
    ),
    st.sampled_from([None, "train", "val", "validation", "test", "x", "nothing"]),
)
def test_files_of_one_split_or_an_error(paths: list[str], split: str | None) -> None:
    try:
        chosen = files_of_split(
            [f"/data/test/{path}" for path in paths], "/data/test", split, "here", "data.train"
        )
    except InputError:
        return
    assert chosen
    assert len({split_of(path.removeprefix("/data/test/")) for path in chosen} - {None}) <= 1


# ---- several side by side ------------------------------------------------------------------------

SPECS = {
    "parquet folder": (parquet, lambda: table("d"), "validation, test"),
    "parquet pattern": (parquet, lambda: table("d/*.parquet"), "validation, test"),
    "arrow folder of a DatasetDict": (
        saved,
        lambda: table("d", kind="arrow"),
        "'test', 'train', 'validation'",
    ),
    "saved": (
        saved,
        lambda: schema.SavedDatasetSpec(kind="saved", path="d"),
        "'train', 'test', 'validation'",
    ),
    "tar folder": (tars, lambda: stream("d"), "validation, test"),
    "tar pattern": (tars, lambda: stream("d/*.tar"), "validation, test"),
    "parquet stream": (parquet, lambda: stream("d"), "validation, test"),
}


@pytest.mark.parametrize("name", SPECS)
def test_several_splits_and_none_named_are_listed(name: str, tmp_path: Path) -> None:
    make, spec, listed = SPECS[name]
    make(tmp_path / "d", **SIZES)
    with pytest.raises(InputError, match=f"data.train.(split|path): .*{listed}"):
        open_source(spec(), tmp_path)


@pytest.mark.parametrize(
    "name", [name for name in SPECS if "pattern" not in name or "tar" not in name]
)
def test_a_named_split_is_read_alone(name: str, tmp_path: Path) -> None:
    make, spec, _ = SPECS[name]
    make(tmp_path / "d", **SIZES)
    for split, size in SIZES.items():
        assert len(open_source(spec().model_copy(update={"split": split}), tmp_path)) == size


def test_names_with_a_prefix_and_other_words_for_a_split(tmp_path: Path) -> None:
    tars(tmp_path / "d", imagenet__train__0=3, imagenet__train__1=4, imagenet__val__0=2)
    with pytest.raises(
        InputError, match=r"2 splits side by side, train, validation: set data.train.split"
    ):
        open_source(stream("d"), tmp_path)
    for split, size in (("train", 7), ("val", 2), ("validation", 2)):
        assert len(open_source(stream("d", split=split), tmp_path)) == size
    with pytest.raises(
        InputError,
        match=r"of split 'trian' \(did you mean 'train'\?\); there are train, validation",
    ):
        open_source(stream("d", split="trian"), tmp_path)
    parquet(tmp_path / "h", train__0=3, holdout__0=4)
    with pytest.raises(InputError, match="2 splits side by side, train, holdout"):
        open_source(table("h"), tmp_path)
    assert len(open_source(table("h", split="heldout"), tmp_path)) == 4
    parquet(tmp_path / "t", part__0=3, part__1=4)
    assert len(open_source(table("t"), tmp_path)) == 7
    parquet(tmp_path / "test", part__0=3)  # a word above the data says nothing
    assert len(open_source(table("test"), tmp_path)) == 3
    with pytest.raises(InputError, match=r"split: .* is one file"):
        open_source(table("test/part-0.parquet", split="test"), tmp_path)


@pytest.mark.parametrize(("make", "spec"), [(parquet, table), (parquet, stream), (tars, stream)])
def test_a_test_set_beside_files_that_name_no_split(make: Any, spec: Any, tmp_path: Path) -> None:
    make(tmp_path / "d", cifar_1=6, cifar_2=4, cifar_test=3)
    with pytest.raises(
        InputError,
        match=r"of split test \(cifar_test\..*\) beside others that name none \(cifar_1\.",
    ):
        open_source(spec("d"), tmp_path)
    assert len(open_source(spec("d", split="test"), tmp_path)) == 3
    assert len(open_source(spec("d/cifar_[0-9].*"), tmp_path)) == 10
    make(tmp_path / "more", train_1=6, extra=4)  # more to train on
    assert len(open_source(spec("more"), tmp_path)) == 10


@pytest.mark.parametrize("name", ["arrow folder of a DatasetDict", "saved"])
def test_other_words_for_a_split_of_a_saved_data_set(name: str, tmp_path: Path) -> None:
    make, spec, _ = SPECS[name]
    make(tmp_path / "d", **SIZES)
    for split, size in (("val", 2), ("dev", 2), ("Training", 6), ("testing", 3)):
        assert len(open_source(spec().model_copy(update={"split": split}), tmp_path)) == size
    with pytest.raises(
        InputError, match=r"d has no split 'trian' \(did you mean 'train'\?\): choose one of '"
    ):
        open_source(spec().model_copy(update={"split": "trian"}), tmp_path)
    with pytest.raises(InputError, match=r"d has several splits: choose one of '"):
        open_source(spec(), tmp_path)


def test_the_only_split_of_a_saved_data_set_needs_no_name(tmp_path: Path) -> None:
    saved(tmp_path / "d", train=6)
    assert len(open_source(schema.SavedDatasetSpec(kind="saved", path="d"), tmp_path)) == 6


def test_what_map_and_filter_left_is_no_data(tmp_path: Path) -> None:
    import datasets

    saved(tmp_path / "d", train=6)
    folder = tmp_path / "d/train"
    data = datasets.load_from_disk(str(folder))
    data.map(lambda row: row, cache_file_name=str(folder / "cache-1234.arrow"))
    data.select(range(2)).save_to_disk(tmp_path / "other")
    (folder / "left.arrow").write_bytes(next((tmp_path / "other").glob("*.arrow")).read_bytes())
    assert len(list(folder.glob("*.arrow"))) == 3
    for path in ("d", "d/train", "d/train/*.arrow"):
        assert len(open_source(table(path, kind="arrow"), tmp_path)) == 6
    (folder / "state.json").unlink()  # now nothing says which files count, but for their names
    (folder / "left.arrow").unlink()
    assert len(open_source(table("d/train", kind="arrow"), tmp_path)) == 6


def test_image_folders_of_splits_are_no_classes(tmp_path: Path) -> None:
    for name in ("train/ant", "train/bee", "val/ant", "val/bee"):
        (tmp_path / "d" / name).mkdir(parents=True)
        (tmp_path / "d" / name / "1.png").write_bytes(png(1))
    spec = schema.ImageFolderSpec(kind="image_folder", path="d")
    with pytest.raises(
        InputError, match=r"d holds folders of splits, not of classes: train, val. Give .*d/train"
    ):
        open_source(spec, tmp_path)
    (tmp_path / "names").write_text("train\nval\n")
    assert open_source(spec.model_copy(update={"classes": "names"}), tmp_path).classes == (
        "train",
        "val",
    )
    assert open_source(spec.model_copy(update={"path": "d/train"}), tmp_path).classes == (
        "ant",
        "bee",
    )
    for name in ("train", "car", "test_tube"):  # vehicles and things
        (tmp_path / "things" / name).mkdir(parents=True)
        (tmp_path / "things" / name / "1.png").write_bytes(png(1))
    assert open_source(spec.model_copy(update={"path": "things"}), tmp_path).classes == (
        "car",
        "test_tube",
        "train",
    )


# ---- the command line ----------------------------------------------------------------------------


def test_inspect_lists_the_splits_of_a_parquet_folder_and_reads_the_named_one(
    tmp_path: Path, cli: Cli
) -> None:
    parquet(tmp_path / "d", train__0=12, test__0=6)
    for path in ("d", "d/*.parquet"):
        done = cli("data", "inspect", tmp_path / path, "--no-sheet", "--workers", 0)
        assert done.code == 2
        said = " ".join(done.err.replace("\n", " ").replace("│", " ").split())
        assert (
            "2 splits side by side, train, test: set --split to one of them, or SOURCE to its own"
            " files" in said
        )
    done = cli(
        "data", "inspect", tmp_path / "d", "--split", "test", "--no-sheet", "--workers", 0, "--json"
    )
    assert json.loads(done.out)["num_samples"] == 6


def test_the_kind_of_a_folder_shows_below_its_subfolders(tmp_path: Path) -> None:
    parquet(tmp_path / "d/train", a=1)
    assert guess_source(str(tmp_path / "d")).kind == "parquet"
    assert guess_source(str(tmp_path / "d"), split="train").split == "train"
