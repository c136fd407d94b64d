import hashlib
import pickle
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from distill.data.decode import read_image
from distill.data.fashion import CLASSES, EMBEDDED, open_fashion_mnist, read_idx
from distill.data.sources import open_source
from distill.errors import InputError
from distill.recipe.schema import FashionMnistSpec, TableSpec

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
needs_debian = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)


@pytest.mark.parametrize(("split", "per_class"), [("train", 600), ("test", 100)])
def test_the_embedded_set_is_balanced_and_decodes(
    split: Literal["train", "test"], per_class: int
) -> None:
    source = open_source(FashionMnistSpec(kind="fashion_mnist", split=split), Path())
    assert len(source) == 10 * per_class
    assert source.classes == CLASSES
    assert np.bincount(source.labels).tolist() == [per_class] * 10
    assert len({hashlib.sha256(source.read(i)).digest() for i in range(len(source))}) > 0.99 * len(
        source
    )
    assert np.asarray(read_image(source, 0)).shape == (28, 28, 3)
    assert "fashion_mnist.parquet" in source.describe(3)
    assert len(pickle.loads(pickle.dumps(source))) == len(source)


def test_it_is_small_and_carries_its_licence() -> None:
    assert EMBEDDED.stat().st_size < 5e6
    text = (EMBEDDED.parent / "LICENSE.fashion-mnist").read_text()
    assert "2017 Zalando SE" in text
    assert "Permission is hereby granted" in text


def test_any_tool_of_datasets_can_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    source = open_source(TableSpec(kind="parquet", path=str(EMBEDDED)), Path())
    assert source.classes == CLASSES
    assert np.bincount(source.labels).tolist() == [700] * 10


@needs_debian
@pytest.mark.parametrize("split", ["train", "test"])
def test_it_holds_debians_pixels(split: Literal["train", "test"]) -> None:
    whole = open_source(
        FashionMnistSpec(kind="fashion_mnist", split=split, path=str(DEBIAN)), Path()
    )
    assert len(whole) == {"train": 60_000, "test": 10_000}[split]
    assert whole.classes == CLASSES
    part = open_fashion_mnist(split, None)
    numbers = [int(part.describe(i).split("-")[-1].removesuffix(".png")) for i in range(len(part))]
    assert len(set(numbers)) == len(part)
    assert np.array_equal(whole.labels[numbers], part.labels)
    for i in range(0, len(part), 7):
        assert np.array_equal(np.asarray(read_image(part, i))[..., 0], whole.read(numbers[i]))


@needs_debian
def test_idx_files_are_reopened_rather_than_sent() -> None:
    source = open_fashion_mnist("test", DEBIAN)
    sent = pickle.dumps(source)
    assert len(sent) < 200_000  # labels alone
    assert np.array_equal(pickle.loads(sent).read(17), source.read(17))


def test_bad_idx_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_fashion_mnist("train", tmp_path / "nowhere")
    with pytest.raises(
        InputError, match=r"neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz"
    ):
        open_fashion_mnist("train", tmp_path)
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(b"no idx at all")
    with pytest.raises(InputError, match="not an IDX file"):
        read_idx(file, 3)
    file.write_bytes(bytes((0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 4)) + bytes(20))
    with pytest.raises(InputError, match="holds 20 bytes, its header promises 32"):
        read_idx(file, 3)
    (tmp_path / "x.gz").write_bytes(b"\x1f\x8b\x08\x00broken")
    with pytest.raises(InputError, match="cannot be read"):
        read_idx(tmp_path / "x.gz", 3)
