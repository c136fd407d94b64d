"""Examines a folder of images: its layout, classes, number of images and image sizes."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.decode import open_image
from distill.data.folder import files_not_read
from distill.data.guess import guess_source
from distill.data.records import first_line, is_leftover
from distill.data.sources import Source, open_source
from distill.data.splits import split_named, split_of
from distill.data.walk import files_below
from distill.errors import InputError
from distill.recipe import schema

_SAMPLE = 64  # images whose size is read
# The first of these splits that exists is used for evaluation during training.
_EVAL = ("validation", "eval", "test")


@dataclass(frozen=True)
class FolderFacts:
    """The content of a folder.

    Attributes:
        root: absolute; the paths of `train` and `eval` are relative to it.
        train, eval: sources as in a recipe; `eval` is None if a part must be held out.
        source: the opened source of data.train.
        sizes: width and height of some images.
        unread: the images of the sample that cannot be read, a line each.
        notes: assumptions, and what is not used.
    """

    root: Path
    train: dict[str, Any]
    eval: dict[str, Any] | None
    source: Source
    sizes: tuple[tuple[int, int], ...]
    unread: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def num_images(self) -> int:
        return len(self.source)

    @property
    def num_classes(self) -> int:
        return len(self.source.classes)

    @property
    def shorter_side(self) -> int:
        """The median of the shorter sides in the sample."""
        return int(np.median([min(size) for size in self.sizes]))

    @property
    def images_per_class(self) -> tuple[int, int]:
        """The smallest and the largest number of images in a class."""
        counts = np.bincount(np.asarray(self.source.labels), minlength=self.num_classes)
        return int(counts.min()), int(counts.max())


def examine_folder(folder: Path, class_file: str | None = None) -> FolderFacts:
    """Examines a folder of images.

    Args:
        class_file: a class list with the order of labels; None: names in their usual order.

    Raises:
        InputError: it is not a folder, has no labelled images, or has only one class.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder}: {what}: give a folder with one folder of images per class")
    root = Path(os.path.abspath(folder))
    try:
        str(root).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{root!r}: the name is not UTF-8, which a recipe needs: rename the folder"
        ) from None
    train, evaluation, notes = _layout(root)
    if class_file is not None:
        train = {**train, "classes": class_file}
        evaluation = None if evaluation is None else {**evaluation, "classes": class_file}
    source = _open(train, root, "data.train")
    if len(source.classes) < 2:
        raise InputError(
            f"{folder}: has only one class, {source.classes[0]!r}: a classifier needs two or more,"
            " each in its own folder"
        )
    if evaluation is not None:
        _open(evaluation, root, "data.eval")
    sizes, unread = _sample(source)
    if not sizes:
        raise InputError(f"{folder}: none of {len(unread)} images can be read: {unread[0]}")
    is_folder = train["kind"] == "image_folder"
    others = files_not_read(root / train["path"], "FOLDER") if is_folder else ""
    if others:
        notes = (*notes, f"not read as images: {others}")
    return FolderFacts(root, train, evaluation, source, sizes, unread, notes)


def _open(spec: dict[str, Any], root: Path, key: str) -> Source:
    if spec["kind"] == "stream":
        raise InputError(
            f"{root}: contains shards, of which no part can be held out for evaluation: extend a"
            " recipe of the package (kind: stream, with data.eval), or give a table or a folder"
            " with one folder per class"
        )
    return open_source(schema.DataSpec.model_validate({"train": spec}).train, root, key)


def _layout(root: Path) -> tuple[dict[str, Any], dict[str, Any] | None, tuple[str, ...]]:
    """Finds the training and evaluation images in a folder. Returns (train, eval, notes)."""
    folders = sorted(
        entry.name for entry in os.scandir(root) if entry.is_dir() and not is_leftover(entry.name)
    )
    # A class may have the name train: then the folder contains images, not folders of classes.
    splits = {
        split: name
        for name in folders
        if (split := split_named(name)) and _holds_folders(root / name)
    }
    if "train" not in splits:
        guessed = guess_source(str(root), default_split="train", option="FOLDER")
        spec = {**guessed.model_dump(exclude_defaults=True, exclude={"classes"}), "path": "."}
        return _table_layout(spec, _table_splits(root, guessed.kind), root)
    train = splits["train"]
    evaluation = next((splits[split] for split in _EVAL if split in splits), None)
    notes = [
        f"{name} next to {train} is not used" for name in folders if name not in splits.values()
    ]
    for split in _EVAL:
        if split in splits and splits[split] != evaluation:
            notes.append(
                f"{splits[split]} is not used in training: distill evaluate RUN --data"
                f" {root / splits[split]}"
            )
    eval_spec = {"kind": "image_folder", "path": evaluation} if evaluation else None
    return {"kind": "image_folder", "path": train}, eval_spec, tuple(notes)


def _table_layout(
    spec: dict[str, Any], splits: dict[str, str], root: Path
) -> tuple[dict[str, Any], dict[str, Any] | None, tuple[str, ...]]:
    """Like `_layout`, for a source with several splits in one folder.

    Several splits without one for training are refused when the source is opened.
    """
    if "train" not in splits:
        return spec, None, ()
    chosen = next((split for split in _EVAL if split in splits), None)
    others = [name for split, name in splits.items() if split not in ("train", chosen)]
    notes = [
        f"{name} is not used in training: distill evaluate RUN --data {root} --split {name}"
        for name in others
    ]
    evaluation = {**spec, "split": splits[chosen]} if chosen else None
    return {**spec, "split": splits["train"]}, evaluation, tuple(notes)


def _table_splits(root: Path, kind: str) -> dict[str, str]:
    """The splits of the tables in a folder, with their names in a recipe."""
    if kind in ("parquet", "arrow"):
        files = files_below(root, (f".{kind}",), "FOLDER")
        return {split: split for file in files if (split := split_of(os.fsdecode(file)))}
    saved = root / "dataset_dict.json"
    if kind != "saved" or not saved.is_file():
        return {}
    try:
        names = json.loads(saved.read_bytes())["splits"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}  # opening it raises an InputError
    return {split: name for name in names if (split := split_named(name))}


def _holds_folders(folder: Path) -> bool:
    return any(entry.is_dir() and not is_leftover(entry.name) for entry in os.scandir(folder))


def _sample(source: Source) -> tuple[tuple[tuple[int, int], ...], tuple[str, ...]]:
    sizes, unread = [], []
    for index in np.linspace(0, len(source) - 1, min(len(source), _SAMPLE)).astype(int).tolist():
        try:
            record = source.read(index)
            if isinstance(record, bytes):
                sizes.append(open_image(record).size)
            else:
                sizes.append((record.shape[1], record.shape[0]))
        except Exception as error:  # Pillow raises any type for a broken header
            unread.append(f"{source.describe(index)}: {first_line(error)}")
    return tuple(sizes), tuple(unread)
