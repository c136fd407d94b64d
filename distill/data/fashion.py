"""Fashion-MNIST: a balanced subset that ships with the package, or the whole set from its IDX
files.
"""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill.data.fingerprint import fingerprint
from distill.data.records import NO_SIZES, Source, missing
from distill.errors import InputError

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
EMBEDDED = Path(__file__).parent / "embedded" / "fashion_mnist.parquet"
_PREFIX = {"train": "train", "test": "t10k"}


def open_fashion_mnist(split: str, path: Path | None, key: str = "data.train") -> Source:
    """The embedded subset (600 train and 100 test images a class), or with `path` the folder of IDX
    files, .gz or not.

    Debian's package `dataset-fashion-mnist` puts them in /usr/share/datasets/fashion-mnist.

    Raises:
        InputError: a file is missing or is not IDX.
    """
    if path is None:
        return EmbeddedFashionMnist(split)
    if not path.is_dir():
        raise missing(path, key)
    return IdxSource(path, _PREFIX[split], key)


class EmbeddedFashionMnist:
    """PNG files out of one small Parquet file, held in memory (about 1 MB a thousand images)."""

    shards = ()
    shard_sizes = NO_SIZES

    def __init__(self, split: str) -> None:
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        # Read without `datasets`, whose Arrow cache would be written on every machine for a file
        # this small.
        table = pq.read_table(EMBEDDED)
        table = table.filter(pc.equal(table["split"], split))
        images = table["image"].combine_chunks()
        self.classes = CLASSES
        self.labels = table["label"].to_numpy().astype(np.int64)
        self._records: list[bytes] = images.field("bytes").to_pylist()
        self._names: list[str] = images.field("path").to_pylist()

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> bytes:
        return self._records[index]

    def describe(self, index: int) -> str:
        return f"{EMBEDDED.name}, {self._names[index]}"

    def name(self, index: int) -> str:
        return self._names[index]

    def fingerprint(self) -> str:
        """Of names, labels and images."""
        names = "\n".join(self._names).encode()
        return fingerprint(
            self.labels,
            names,
            lambda rows: np.array([len(self._records[i]) for i in rows]),
            self.read,
        )

    def prefetch(self, shards: Sequence[int]) -> None:
        pass


class IdxSource:
    """A pair of IDX files. Pixels are read into memory once a process, and shared by fork."""

    shards = ()
    shard_sizes = NO_SIZES

    def __init__(self, folder: Path, prefix: str, key: str) -> None:
        self.classes = CLASSES
        self._images_path = _find(folder, f"{prefix}-images-idx3-ubyte", key)
        self._images: np.ndarray | None = read_idx(self._images_path, 3)
        labels_path = _find(folder, f"{prefix}-labels-idx1-ubyte", key)
        self.labels = read_idx(labels_path, 1).astype(np.int64)
        if len(self.labels) != len(self._images):
            raise InputError(
                f"{key}.path: {self._images_path} holds {len(self._images)} images, {labels_path}"
                f" {len(self.labels)} labels"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, object]:
        return {
            **self.__dict__,
            "_images": None,
        }  # a spawned worker reads 30 MB again rather than receive 47 MB

    def read(self, index: int) -> np.ndarray:
        if self._images is None:
            self._images = read_idx(self._images_path, 3)
        image: np.ndarray = self._images[index]
        return image

    def describe(self, index: int) -> str:
        return f"{self._images_path}, image {index}"

    def name(self, index: int) -> str:
        return ""

    def fingerprint(self) -> str:
        """Of labels and pixels."""
        return fingerprint(
            self.labels, b"", lambda rows: np.full(len(rows), self.read(0).size), self.read
        )

    def prefetch(self, shards: Sequence[int]) -> None:
        pass


def _find(folder: Path, name: str, key: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise InputError(
        f"{key}.path: {folder} has neither {name} nor {name}.gz: give the folder of Fashion-MNIST's"
        " four IDX files"
    )


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """An IDX file of bytes, compressed or not, as uint8 with `ndim` axes.

    Raises:
        InputError: not IDX, another number of axes, or cut short.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}): fetch it again") from error
    if data[:4] != bytes((0, 0, 8, ndim)):
        raise InputError(
            f"{path}: not an IDX file of unsigned bytes with {ndim} axes: fetch it again"
        )
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", count=ndim, offset=4))
    header = 4 + 4 * ndim
    if len(data) - header != int(np.prod(shape)):
        raise InputError(
            f"{path}: holds {len(data) - header} bytes, its header promises {int(np.prod(shape))}:"
            " fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
