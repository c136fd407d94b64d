"""One order of classes for every kind of source: numbers by value, other names by code points;
names that cannot be distinguished are refused.
"""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.data.class_names import class_numbers, meaning, natural_order, order_classes
from distill.data.label_sets import class_list
from distill.data.sources import open_source
from distill.errors import InputError
from distill.recipe.schema import ImageFolderSpec, SourceSpec, TableSpec

TWELVE = tuple(str(i) for i in range(12))
ANY_NAMES = st.lists(
    st.one_of(
        st.text(min_size=0, max_size=6),
        st.integers(0, 10**12).map(str),
        st.sampled_from(["01", "1", "train", "a ", "\ud800"]),
    ),
    min_size=1,
    max_size=8,
)


def names_of(spec: SourceSpec, root: Path) -> tuple[str, ...]:
    return open_source(spec, root).classes


def folders(root: Path, names: tuple[str, ...]) -> ImageFolderSpec:
    for name in names:
        (root / "photos" / name).mkdir(parents=True)
        (root / "photos" / name / f"of {name}.png").write_bytes(name.encode())
    return ImageFolderSpec(kind="image_folder", path="photos")


def table(root: Path, names: tuple[str, ...], file: str = "t.parquet") -> TableSpec:
    images = pa.array([name.encode("utf-8", "replace") for name in names], pa.binary())
    pq.write_table(pa.table({"image": images, "label": pa.array(list(names))}), root / file)
    return TableSpec(kind="parquet", path=file)


@pytest.mark.parametrize("make", [folders, table])
def test_numbers_are_sorted_by_value_in_every_kind_of_source(
    make: Callable[[Path, tuple[str, ...]], SourceSpec], tmp_path: Path
) -> None:
    source = open_source(make(tmp_path, tuple(sorted(TWELVE))), tmp_path)
    assert source.classes == TWELVE
    assert [int(source.read(i)) for i in range(12)] == source.labels.tolist()


def test_a_class_label_of_numbers_is_renumbered_by_value_and_one_of_words_is_kept(
    tmp_path: Path,
) -> None:
    import datasets

    for names, expected in ((tuple(sorted(TWELVE)), TWELVE), (("yak", "ox"), ("yak", "ox"))):
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
        )
        rows = {
            "image": [{"bytes": name.encode(), "path": None} for name in names],
            "label": range(len(names)),
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(
            tmp_path / f"{len(names)}.parquet"
        )
        source = open_source(TableSpec(kind="parquet", path=f"{len(names)}.parquet"), tmp_path)
        assert source.classes == expected
        assert [source.classes[label].encode() for label in source.labels] == [
            source.read(i) for i in range(len(names))
        ]


def test_words_and_mixed_lists_keep_the_order_of_text(tmp_path: Path) -> None:
    assert order_classes(["b", "B", "a"], "x") == ("B", "a", "b")
    assert order_classes(["class2", "class10"], "x") == ("class10", "class2")
    assert order_classes(["2", "10", "x"], "x") == ("10", "2", "x")
    assert natural_order(["class10", "B", "class2", "a"]) == ("a", "B", "class2", "class10")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("1", "01"), "'1' and '01' say the same|'01' and '1' say the same"),
        (("caf\u00e9", "cafe\u0301"), "say the same"),
        (("cat", "cat "), "say the same"),
    ],
)
@pytest.mark.parametrize("make", [folders, table])
def test_names_that_say_the_same_are_refused(
    make: Callable[[Path, tuple[str, ...]], SourceSpec],
    names: tuple[str, ...],
    message: str,
    tmp_path: Path,
) -> None:
    spec = make(tmp_path, names)
    with pytest.raises(InputError, match=message):
        open_source(spec, tmp_path)
    (tmp_path / "names.txt").write_text("\n".join(names))
    with pytest.raises(InputError, match=r"say the same|twice"):
        class_list("names.txt", tmp_path, "data.train")


def test_empty_names_and_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"column 'label' .*the class name '' is empty"):
        open_source(table(tmp_path, ("", "cat")), tmp_path)
    spec = folders(tmp_path, ("cat",))
    os.mkdir(os.fsencode(tmp_path / "photos") + b"/caf\xe9")
    with pytest.raises(
        InputError, match=r"the class name caf\\udce9 is not UTF-8: rename it"
    ) as info:
        open_source(spec, tmp_path)
    assert str(info.value).isprintable()


def test_a_list_names_folders_in_any_form_of_unicode_and_numbers_with_zeros(tmp_path: Path) -> None:
    spec = folders(tmp_path, ("cafe\u0301", "007"))
    (tmp_path / "names.txt").write_text("\ufeff7\ncaf\u00e9\n", encoding="utf-8")
    source = open_source(spec.model_copy(update={"classes": "names.txt"}), tmp_path)
    assert source.classes == ("7", "caf\u00e9")
    assert {source.read(i).decode(): int(source.labels[i]) for i in range(2)} == {
        "007": 0,
        "cafe\u0301": 1,
    }


# ---- any names at all ----------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(ANY_NAMES)
def test_any_names_are_ordered_or_refused(names: list[str]) -> None:
    try:
        classes = order_classes(names, "here")
    except InputError:
        return
    assert sorted(classes) == sorted(names)
    assert classes == order_classes(names[::-1], "here")  # of any order that a file system gives
    assert len({meaning(name) for name in names}) == len(names)
    numbers = class_numbers(classes)
    assert numbers == sorted(numbers) if numbers is not None else classes == tuple(sorted(names))
    assert sorted(natural_order(names)) == sorted(names)
    forms = [unicodedata.normalize("NFD", name) for name in classes]
    assert [meaning(name) for name in forms] == [meaning(name) for name in classes]


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(names=ANY_NAMES)
def test_any_table_of_names_is_read_right_or_refused(names: list[str], tmp_path: Path) -> None:
    rows = tuple(name.encode("utf-8", "replace").decode() for name in names)
    spec = table(tmp_path, rows, f"{abs(hash(rows))}.parquet")
    try:
        source = open_source(spec, tmp_path)
    except InputError:
        return
    assert source.classes == order_classes(list(dict.fromkeys(rows)), "here")
    assert [source.classes[label] for label in source.labels] == list(rows)
    assert [np.asarray(source.read(i)).tobytes().decode() for i in range(len(rows))] == list(rows)
