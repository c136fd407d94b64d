"""A continuation finds the data that the run began with: moved roots are the same, moved or
replaced images are not.
"""

import io
import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from tiny import BASE

from distill.data import fingerprint as prints
from distill.data.sources import open_source
from distill.errors import InputError
from distill.recipe import load_recipe
from distill.recipe.load import merge
from distill.recipe.schema import FashionMnistSpec, TableSpec
from distill.training.inputs import refuse_other_inputs
from distill.training.plan import make_plan

CLASSES = ("ant", "bee", "cat")


def png(value: int, size: int = 8) -> bytes:
    held = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(
        held, "BMP"
    )  # all of one number of bytes
    return held.getvalue()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """train/ and val/ with three classes of 8 and 2 images, all of one size."""
    for part, count in (("train", 8), ("val", 2)):
        for label, name in enumerate(CLASSES):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(count):
                (tmp_path / "data" / part / name / f"{i}.bmp").write_bytes(png(40 * label + i))
    return tmp_path / "data"


def inputs(data: Path, **changes: Any) -> dict[str, str | int]:
    sources = {
        name: {"kind": "image_folder", "path": path}
        for name, path in (("train", "train"), ("eval", "val"))
    }
    tree = merge(deepcopy(BASE), {"data": {"root": str(data), "fraction": 1.0}})
    tree["data"] |= sources | changes
    file = data.with_name("recipe.yaml")
    file.write_text(yaml.safe_dump(tree))
    return make_plan(load_recipe(file)).inputs()


def swap_classes(data: Path) -> None:
    (data / "train/ant").rename(data / "train/x")
    (data / "train/bee").rename(data / "train/ant")
    (data / "train/x").rename(data / "train/bee")


def swap_evaluation_images(data: Path) -> None:
    one, two = data / "val/ant/0.bmp", data / "val/bee/0.bmp"
    one.rename(data / "x"), two.rename(one), (data / "x").rename(two)


def rename(data: Path) -> None:
    (data / "val/ant/0.bmp").rename(data / "val/ant/9.bmp")


def grow(data: Path) -> None:
    (data / "train/cat/3.bmp").write_bytes(png(3, size=9))


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "contents of two class folders swapped": (swap_classes, "training"),
    "two evaluation images swapped": (swap_evaluation_images, "evaluation"),
    "an evaluation image renamed": (rename, "evaluation"),
    "a training image of another size": (grow, "training"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_images_are_refused_by_name(name: str, data: Path) -> None:
    change, what = CHANGES[name]
    before = inputs(data)
    times = data.stat().st_mtime_ns
    change(data)
    os.utime(data, ns=(times, times))
    now = inputs(data)
    other = "evaluation" if what == "training" else "training"
    with pytest.raises(
        InputError, match=rf"(?s){what} names, sizes and contents \(SHA-256\): \w+ -> "
    ) as info:
        refuse_other_inputs(data, before, now)
    assert f"{other} names" not in str(info.value)
    # A checkpoint of a version that did not record contents is compared by what it has.
    refuse_other_inputs(
        data, {key: value for key, value in before.items() if "contents" not in key}, now
    )


def test_a_moved_root_and_new_times_are_the_same_data(data: Path) -> None:
    before = inputs(data)
    shutil.copytree(data, data.with_name("copy"))
    refuse_other_inputs(data, before, inputs(data.with_name("copy")))


def test_held_out_images_are_compared_by_content_as_well(data: Path) -> None:
    holdout = {"kind": "holdout", "fraction": 0.25}
    before = inputs(data, eval=holdout)
    refuse_other_inputs(data, before, inputs(data, eval=holdout))
    (data / "train/ant/0.bmp").write_bytes(png(77))
    with pytest.raises(InputError, match="evaluation names, sizes and contents"):
        refuse_other_inputs(data, before, inputs(data, eval=holdout))


def test_a_run_over_numbers_that_were_sorted_as_text_is_refused(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an earlier version: folders 1, 10, 2 were classes 0, 1, 2."""
    for part in ("train", "val"):
        for old, new in zip(CLASSES, ("2", "10", "1"), strict=True):
            (data / part / old).rename(data / part / new)
    now = inputs(data)
    with monkeypatch.context() as earlier:
        earlier.setattr(
            "distill.data.folder.order_classes", lambda names, where: tuple(sorted(names))
        )
        before = inputs(data)
    with pytest.raises(InputError, match=r"classes \(SHA-256\): "):
        refuse_other_inputs(
            data, {key: value for key, value in before.items() if "contents" not in key}, now
        )


# ---- every kind of source, and large ones --------------------------------------------------------


def table(root: Path, images: list[bytes], labels: list[int], file: str = "t.parquet") -> str:
    rows = [{"bytes": image, "path": None} for image in images]
    pq.write_table(pa.table({"image": rows, "label": labels}), root / file, row_group_size=2)
    return open_source(TableSpec(kind="parquet", path=file), root).fingerprint()


def test_tables_are_distinguished_by_images_labels_and_their_order(tmp_path: Path) -> None:
    images = [b"one", b"two", b"six", b"ten"]
    same = table(tmp_path, images, [0, 1, 0, 1])
    assert same == table(tmp_path, images, [0, 1, 0, 1], "renamed.parquet")
    others = [
        table(tmp_path, [b"one", b"two", b"six", b"TEN"], [0, 1, 0, 1]),
        table(tmp_path, [b"two", b"one", b"six", b"ten"], [0, 1, 0, 1]),
        table(tmp_path, images, [0, 1, 1, 0]),
    ]
    assert len({same, *others}) == 4


def test_of_a_large_set_a_fixed_sample_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prints, "_READ_WHOLE_BYTES", 100)
    monkeypatch.setattr(prints, "_MOST_READ", 5)
    monkeypatch.setattr(prints, "_MOST_SIZES", 50)
    read: list[int] = []

    def one(names: bytes = b"", other: int = -1) -> str:
        read.clear()
        size = lambda rows: np.where(rows == other, 9, 8)  # noqa: E731
        return prints.fingerprint(
            np.zeros(200, np.int64), names, size, lambda i: (read.append(i), b"%d" % i)[1]
        )

    first = one()
    chosen = list(read)
    assert len(chosen) == 5
    assert one() == first
    assert read == chosen
    assert one(b"another name") != first
    assert sum(one(other=i) != first for i in range(200)) == 50


def test_both_forms_of_fashion_mnist_have_one(tmp_path: Path) -> None:
    spec = FashionMnistSpec(kind="fashion_mnist", split="test")
    first = open_source(spec, tmp_path).fingerprint()
    assert first == open_source(spec, tmp_path).fingerprint()
    assert first != open_source(spec.model_copy(update={"split": "train"}), tmp_path).fingerprint()


# ---- class lists of a run ------------------------------------------------------------------------


def test_one_class_is_refused_and_numbers_with_zeros_are_the_same_classes(data: Path) -> None:
    for part, names in (("train", ("1", "2", "10")), ("val", ("01", "02", "10"))):
        for old, new in zip(CLASSES, names, strict=True):
            (data / part / old).rename(data / part / new)
    inputs(data)
    for part, names in (("train", ("2", "10")), ("val", ("02", "10"))):
        for name in names:
            shutil.rmtree(data / part / name)
    with pytest.raises(
        InputError, match=r"data.eval: has one class, '01', and there is nothing to tell apart"
    ):
        inputs(data)
    with pytest.raises(InputError, match=r"data.train: has one class, '1'"):
        inputs(data, eval=None)
