"""Image folders: one folder a class."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill.data.class_names import check_names, order_classes
from distill.data.fingerprint import fingerprint
from distill.data.labels import index_names
from distill.data.records import NO_SIZES, is_leftover, missing, read_regular
from distill.data.splits import split_named
from distill.data.walk import files_below
from distill.errors import InputError, printable

IMAGE_EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".gif",
    ".ppm",
    ".pgm",
)
_ENDINGS_SHOWN = 5


class ImageFolderSource:
    """One folder a class, in the order of `order_classes`, images anywhere below it.

    Paths are kept in one block of bytes: a list of a million strings would be copied into every
    worker, a page at a time, as reference counts touch it.
    """

    shards = ()
    shard_sizes = NO_SIZES

    def __init__(self, root: Path, classes: tuple[str, ...] | None, key: str) -> None:
        folders = class_folders(root, classes is not None, key)
        self._root = os.fsencode(root)
        self.classes = folders if classes is None else classes
        folder_labels = index_names(folders, self.classes, f"{key}.path {root}")

        paths: list[bytes] = []
        labels: list[np.ndarray] = []
        for folder, label in zip(folders, folder_labels, strict=True):
            below = files_below(root / folder, IMAGE_EXTENSIONS, key)
            found = [os.path.join(os.fsencode(folder), path) for path in below]
            if not found:
                extensions = " ".join(sorted(IMAGE_EXTENSIONS))
                raise InputError(
                    f"{key}.path: class folder {root / folder} has no images ({extensions}): fill"
                    " it or remove it"
                )
            paths += found
            labels.append(np.full(len(found), label, dtype=np.int64))
        self.labels = np.concatenate(labels)
        self._blob = b"".join(paths)
        self._ends = np.cumsum([len(path) for path in paths])

    def __len__(self) -> int:
        return len(self._ends)

    def _path(self, index: int) -> bytes:
        start = int(self._ends[index - 1]) if index else 0
        return os.path.join(self._root, self._blob[start : int(self._ends[index])])

    def read(self, index: int) -> bytes:
        return read_regular(self._path(index))

    def describe(self, index: int) -> str:
        return printable(os.fsdecode(self._path(index)))

    def name(self, index: int) -> str:
        return os.path.basename(os.fsdecode(self._path(index)))

    def fingerprint(self) -> str:
        """Of the paths below the root, sizes, labels, and contents as far as it is cheap."""
        return fingerprint(self.labels, self._blob + self._ends.tobytes(), self._sizes, self.read)

    def prefetch(self, shards: Sequence[int]) -> None:
        pass

    def _sizes(self, indices: np.ndarray) -> np.ndarray:
        return np.array([_size(self._path(index)) for index in indices.tolist()], dtype=np.int64)


def _size(path: bytes) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # a link to nothing, which reading says
        return -1


def class_folders(root: Path, has_list: bool, key: str) -> tuple[str, ...]:
    """The names of the folders that are classes, in the order of `order_classes`, or by text where
    a class list says the order.

    Raises:
        InputError: there are none; names with the same meaning; folders of splits (train, val)
            rather than of classes.
    """
    if not root.is_dir():
        raise (
            missing(root, key)
            if not root.exists()
            else InputError(f"{key}.path: {root} is not a folder")
        )
    try:
        found = [
            entry.name
            for entry in os.scandir(root)
            if entry.is_dir() and not is_leftover(entry.name)
        ]
    except OSError as error:
        raise InputError(
            f"{key}.path: {root} cannot be read ({error.strerror}): correct its permissions"
        ) from error
    if not found:
        raise InputError(
            f"{key}.path: {root} has no class folders: put the images of each class into a folder"
            " of its own"
        )
    check_names(found, f"{key}.path {root}")
    if not has_list:
        _refuse_splits(root, found, key)
    return tuple(sorted(found)) if has_list else order_classes(found, f"{key}.path {root}")


def files_not_read(root: Path, key: str) -> str:
    """How many files `ImageFolderSource` passes over, by their endings: those with no ending of
    IMAGE_EXTENSIONS, and those outside the class folders. Empty if there are none.
    """
    counts: Counter[str] = Counter()
    for entry in os.scandir(root):
        if is_leftover(entry.name):
            continue
        if not entry.is_dir():
            counts["outside the class folders"] += 1
            continue
        for path in map(os.fsdecode, files_below(Path(entry.path), ("",), key)):
            ending = os.path.splitext(path)[1].lower()
            if ending not in IMAGE_EXTENSIONS:
                counts[printable(ending) or "without an ending"] += 1
    shown = [f"{count:,} {what}" for what, count in counts.most_common(_ENDINGS_SHOWN)]
    return ", ".join([*shown, "..."] if len(counts) > len(shown) else shown)


def _refuse_splits(root: Path, folders: list[str], key: str) -> None:
    """A class may be called train; but folders of two splits, or one split alone with folders in
    it, are no classes.
    """
    named = sorted(name for name in folders if split_named(name) is not None)
    alone = len(folders) == 1 and any(entry.is_dir() for entry in os.scandir(root / folders[0]))
    if len({split_named(name) for name in named}) > 1 or (named and alone):
        raise InputError(
            f"{key}.path: {root} holds folders of splits, not of classes: {', '.join(named)}. Give"
            f" one of them: {' or '.join(str(root / name) for name in named)} (where they are"
            f" classes, name all classes with {key}.classes)"
        )
