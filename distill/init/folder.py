"""What a folder of images holds: layout, classes, number and sizes."""

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distill.data.guess import guess_source
from distill.data.records import is_leftover
from distill.data.sources import Source, open_source
from distill.data.splits import split_named, split_of
from distill.data.walk import files_below
from distill.errors import InputError
from distill.recipe import schema

_SAMPLE = 64  # images whose size is looked at
# The first that is there evaluates while training; others are left for the end.
_EVAL = ("validation", "eval", "test")


@dataclass(frozen=True)
class FolderFacts:
    """What was found.

    Attributes:
        root: absolute; what the paths of `train` and `eval` are relative to.
        train, eval: sources as a recipe writes them; `eval` None: a part is to be held out.
        source: data.train, opened.
        sizes: width and height of some images.
        unread: why images of the sample cannot be read, a line each.
        notes: what was assumed or left out, for the recipe.
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
        """The median over the sample."""
        return int(np.median([min(size) for size in self.sizes]))

    @property
    def images_a_class(self) -> tuple[int, int]:
        """The fewest and the most."""
        counts = np.bincount(np.asarray(self.source.labels), minlength=self.num_classes)
        return int(counts.min()), int(counts.max())


def look_at(folder: Path, class_file: str | None = None) -> FolderFacts:
    """Find out what a folder holds.

    Args:
        class_file: a class list, whose order the labels take; None: the usual order of the names.

    Raises:
        InputError: it is no folder, holds no labelled images, or a single class.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder}: {what}: give a folder of images, one folder a class")
    root = Path(os.path.abspath(folder))
    try:
        str(root).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{root!r}: the name is not UTF-8, and a recipe is: rename the folder"
        ) from None
    train, evaluation, notes = _layout(root)
    if class_file is not None:
        train = {**train, "classes": class_file}
        evaluation = None if evaluation is None else {**evaluation, "classes": class_file}
    source = _open(train, root, "data.train")
    if len(source.classes) < 2:
        raise InputError(
            f"{folder}: holds a single class, {source.classes[0]!r}: a classifier needs two or"
            " more, each in a folder of its own"
        )
    if evaluation is not None:
        _open(evaluation, root, "data.eval")
    sizes, unread = _sample(source)
    if not sizes:
        raise InputError(f"{folder}: none of {len(unread)} images can be read: {unread[0]}")
    return FolderFacts(root, train, evaluation, source, sizes, unread, notes)


def _open(spec: dict[str, Any], root: Path, key: str) -> Source:
    if spec["kind"] == "stream":
        raise InputError(
            f"{root}: holds shards, of which no part can be held out for evaluation: start from a"
            " shipped recipe (kind: stream, with data.eval), or give a folder with a folder a"
            " class, or a table"
        )
    return open_source(schema.DataSpec.model_validate({"train": spec}).train, root, key)


def _layout(root: Path) -> tuple[dict[str, Any], dict[str, Any] | None, tuple[str, ...]]:
    """How training and evaluation images lie in a folder: (train, eval, notes)."""
    folders = sorted(
        entry.name for entry in os.scandir(root) if entry.is_dir() and not is_leftover(entry.name)
    )
    # A class may be called train: then its images lie in it, and not folders of classes.
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
        f"{name} beside {train} is not read" for name in folders if name not in splits.values()
    ]
    for split in _EVAL:
        if split in splits and splits[split] != evaluation:
            notes.append(
                f"{splits[split]} is left for the end: distill evaluate RUN --data"
                f" {root / splits[split]}"
            )
    eval_spec = {"kind": "image_folder", "path": evaluation} if evaluation else None
    return {"kind": "image_folder", "path": train}, eval_spec, tuple(notes)


def _table_layout(
    spec: dict[str, Any], splits: dict[str, str], root: Path
) -> tuple[dict[str, Any], dict[str, Any] | None, tuple[str, ...]]:
    """As `_layout`, of a source whose splits lie side by side.

    Several splits without one for training are refused when the source is opened.
    """
    if "train" not in splits:
        return spec, None, ()
    chosen = next((split for split in _EVAL if split in splits), None)
    others = [name for split, name in splits.items() if split not in ("train", chosen)]
    notes = [
        f"{name} is left for the end: distill evaluate RUN --data {root} --split {name}"
        for name in others
    ]
    evaluation = {**spec, "split": splits[chosen]} if chosen else None
    return {**spec, "split": splits["train"]}, evaluation, tuple(notes)


def _table_splits(root: Path, kind: str) -> dict[str, str]:
    """Splits of the tables in a folder, each with its name in a recipe."""
    if kind in ("parquet", "arrow"):
        files = files_below(root, (f".{kind}",), "FOLDER")
        return {split: split for file in files if (split := split_of(os.fsdecode(file)))}
    saved = root / "dataset_dict.json"
    if kind != "saved" or not saved.is_file():
        return {}
    try:
        names = json.loads(saved.read_bytes())["splits"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}  # refused when it is opened
    return {split: name for name in names if (split := split_named(name))}


def _holds_folders(folder: Path) -> bool:
    return any(entry.is_dir() and not is_leftover(entry.name) for entry in os.scandir(folder))


def _sample(source: Source) -> tuple[tuple[tuple[int, int], ...], tuple[str, ...]]:
    sizes, unread = [], []
    for index in np.linspace(0, len(source) - 1, min(len(source), _SAMPLE)).astype(int).tolist():
        try:
            record = source.read(index)
            if isinstance(record, bytes):
                with Image.open(io.BytesIO(record)) as image:
                    sizes.append(image.size)
            else:
                sizes.append((record.shape[1], record.shape[0]))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            unread.append(f"{source.describe(index)}: {error}")
    return tuple(sizes), tuple(unread)
