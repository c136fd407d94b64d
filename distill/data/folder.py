"""Image folders: one folder a class."""

import os
from pathlib import Path

import numpy as np

from distill.data.labels import index_names
from distill.data.records import missing
from distill.errors import InputError

IMAGE_EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"))


class ImageFolderSource:
    """One folder a class, sorted by name, images anywhere below it.

    Paths are kept in one block of bytes: a list of a million strings would be copied into every worker, a page at a time, as
    reference counts touch it.
    """

    def __init__(self, root: Path, classes: tuple[str, ...] | None, key: str) -> None:
        if not root.is_dir():
            raise missing(root, key) if not root.exists() else InputError(f"{key}.path: {root} is not a folder")
        self._root = os.fsencode(root)
        folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
        if not folders:
            raise InputError(
                f"{key}.path: {root} has no class folders: put the images of each class into a folder of its own"
            )
        self.classes = tuple(folders) if classes is None else classes
        folder_labels = index_names(folders, self.classes, f"{key}.path {root}")

        paths: list[bytes] = []
        labels: list[np.ndarray] = []
        for folder, label in zip(folders, folder_labels, strict=True):
            found = _images_below(root / folder, self._root)
            if not found:
                extensions = " ".join(sorted(IMAGE_EXTENSIONS))
                raise InputError(
                    f"{key}.path: class folder {root / folder} has no images ({extensions}): fill it or remove it"
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
        with open(self._path(index), "rb") as file:
            return file.read()

    def describe(self, index: int) -> str:
        return os.fsdecode(self._path(index))


def _is_new(path: bytes, name: bytes, above: set[tuple[int, int]]) -> bool:
    """Whether a folder is to be walked: not hidden, not macOS's shadow of an archive, and no link to a folder it lies in."""
    if name.startswith(b".") or name == b"__MACOSX":
        return False
    status = os.stat(path)
    return (status.st_dev, status.st_ino) not in above


def _images_below(folder: Path, root: bytes) -> list[bytes]:
    """Image paths relative to `root`, sorted; symbolic links are followed, but not into a folder above, nor hidden folders."""
    found = []
    above: dict[bytes, set[tuple[int, int]]] = {}
    for directory, below, names in os.walk(os.fsencode(folder), followlinks=True):
        status = os.stat(directory)
        path = above.get(os.path.dirname(directory), set()) | {(status.st_dev, status.st_ino)}
        above[directory] = path
        below[:] = [name for name in below if _is_new(os.path.join(directory, name), name, path)]
        prefix = os.path.relpath(directory, root)
        found += [
            os.path.join(prefix, name)
            for name in names
            if os.path.splitext(os.fsdecode(name))[1].lower() in IMAGE_EXTENSIONS and not name.startswith(b".")
        ]
    return sorted(found)
