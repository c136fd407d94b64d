"""ImageNet's evaluation sets: where they are below a folder, which classes and which labels they
have.

val         50,000 images of the 1,000 classes
real        the same images with the labels of ImageNet-ReaL (arXiv 2006.07159)
v2          ImageNet-V2, 10,000 new images (arXiv 1902.10811), matched frequency
v2-threshold, v2-top    its other two variants
a, r        ImageNet-A (1907.07174) and ImageNet-R (2006.16241), 200 classes each
sketch      ImageNet-Sketch (1905.13549), 50,000 drawings of the 1,000 classes
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from distill.data.label_sets import named_list, timm_file
from distill.data.sources import Source
from distill.errors import InputError, did_you_mean, printable

_CUSTOM_NAME = re.compile(r"[\w.-]+")
_VAL_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")
_NUM_VAL = 50_000
_COMMA = re.compile(r",(?![^{]*\})")  # not one of a pattern in braces


@dataclass(frozen=True)
class KnownSet:
    """One of ImageNet's evaluation sets.

    Attributes:
        folders: the usual places below --root; capitals do not count.
        part: the list of timm with the synsets of a part of ImageNet's classes, among which alone
            the answer is looked for; None for all classes.
        table: the name of timm's CSV of results on it.
        num_images: of the whole set.
    """

    name: str
    title: str
    folders: tuple[str, ...]
    table: str
    num_images: int
    part: str | None = None


_VAL = (
    "val",
    "validation",
    "imagenet/val",
    "imagenet/validation",
    "imagenet-1k/val",
    "ILSVRC2012/val",
    "ILSVRC/Data/CLS-LOC/val",
)


def _v2(variant: str) -> tuple[str, ...]:
    names = [f"imagenetv2-{variant}-format-val", f"imagenetv2-{variant}"]
    return (*names, *(f"imagenetv2/{name}" for name in names))


KNOWN = {
    known.name: known
    for known in (
        KnownSet("val", "ImageNet-1K validation", _VAL, "results-imagenet", 50_000),
        KnownSet("real", "ImageNet-ReaL", _VAL, "results-imagenet-real", 50_000),
        KnownSet(
            "v2",
            "ImageNet-V2 matched frequency",
            (*_v2("matched-frequency"), "imagenetv2", "imagenet-v2", "v2"),
            "results-imagenetv2-matched-frequency",
            10_000,
        ),
        KnownSet(
            "v2-threshold",
            "ImageNet-V2 threshold 0.7",
            _v2("threshold0.7"),
            "results-imagenetv2-threshold0.7",
            10_000,
        ),
        KnownSet(
            "v2-top",
            "ImageNet-V2 top images",
            _v2("top-images"),
            "results-imagenetv2-top-images",
            10_000,
        ),
        KnownSet(
            "a",
            "ImageNet-A",
            ("imagenet-a", "a"),
            "results-imagenet-a",
            7_500,
            "imagenet_a_synsets.txt",
        ),
        KnownSet(
            "r",
            "ImageNet-R",
            ("imagenet-r", "r"),
            "results-imagenet-r",
            30_000,
            "imagenet_r_synsets.txt",
        ),
        KnownSet(
            "sketch",
            "ImageNet-Sketch",
            ("imagenet-sketch/sketch", "imagenet-sketch", "sketch"),
            "results-sketch",
            50_889,
        ),
    )
}


# Of a set NAME the results are in results-NAME.csv.
_RESERVED = {"data", *(known.table.removeprefix("results-") for known in KNOWN.values())} - set(
    KNOWN
)


@dataclass(frozen=True)
class NamedSet:
    """A set to evaluate on, and where its images are. `known`: None for one of the user's own."""

    name: str
    path: str
    known: KnownSet | None

    @property
    def title(self) -> str:
        return self.known.title if self.known else self.name


def named_sets(text: str, root: Path | None) -> list[NamedSet]:
    """Return the sets that `--sets` names: `val,real,a=/data/imagenet-a,birds=/data/birds`.

    Raises:
        InputError: an unknown name without a path, a name twice, or a set that is not below `root`.
    """
    found: list[NamedSet] = []
    parts = [part.strip() for part in _COMMA.split(text) if part.strip()]
    given = dict(part.split("=", 1) for part in parts if "=" in part)
    for part in parts:
        name, equals, path = part.partition("=")
        if part == "real" and given.get("val"):  # the same images
            equals, path = "=", given["val"]
        if not _CUSTOM_NAME.fullmatch(name) or (equals and not path):
            raise InputError(
                f"--sets {part}: write NAME or NAME=PATH, with letters, digits, dots or dashes in"
                " the name"
            )
        if any(each.name == name for each in found):
            raise InputError(f"--sets {text}: names {name} twice: leave one out")
        known = KNOWN.get(name)
        if known is None and (name in _RESERVED or name.endswith("-clean")):
            raise InputError(f"--sets {part}: {name} names results of another set: choose another")
        if known is None and not equals:
            raise InputError(
                f"--sets {name}: no set of ImageNet{did_you_mean(name, KNOWN)}: they are"
                f" {', '.join(KNOWN)}; write {name}=PATH for images of your own"
            )
        if equals:
            place = path
        else:
            assert known is not None
            place = str(_below(root, known))
        found.append(NamedSet(name, place, known))
    if not found:
        raise InputError("--sets: names no set: write for example --sets val,real")
    return found


def _below(root: Path | None, known: KnownSet) -> Path:
    """Return where a set is below `root`."""
    if root is None:
        raise InputError(
            f"--sets {known.name}: where is it? Give the folder above with --root, or"
            f" {known.name}=PATH"
        )
    if not root.is_dir():
        raise InputError(f"--root {root}: there is no such folder")
    if (place := find_below(root, known)) is not None:
        return place
    raise InputError(
        f"--sets {known.name}: {root} has none of {', '.join(known.folders)}: write"
        f" {known.name}=PATH"
    )


def find_below(root: Path, known: KnownSet) -> Path | None:
    """Return the first of the usual places of a set below `root` that exists."""
    for folder in known.folders:
        place: Path | None = root
        for part in folder.split("/"):
            place = None if place is None else _entry(place, part)
        if place is not None:
            return place
    return None


def _entry(folder: Path, name: str) -> Path | None:
    exact = folder / name
    if exact.exists():
        return exact
    if not folder.is_dir():
        return None
    same = (entry for entry in sorted(folder.iterdir()) if entry.name.lower() == name.lower())
    return next(same, None)


def part_synsets(known: KnownSet) -> tuple[str, ...] | None:
    """Return the synsets of the classes among which an answer is looked for; None for all."""
    return None if known.part is None else tuple(timm_file(known.part).split())


@cache
def _real_labels() -> np.ndarray:
    """[50000, M] int64: the right classes of each image of the validation set, in the order of
    their numbers, filled up with -1; without a right class only -1.
    """
    lists: list[list[int]] = json.loads(timm_file("imagenet_real_labels.json"))
    assert len(lists) == _NUM_VAL, len(lists)
    labels = np.full((len(lists), max(map(len, lists))), -1, dtype=np.int64)
    for row, each in zip(labels, lists, strict=True):
        row[: len(each)] = each
    return labels


def real_labels(source: Source, logits: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the right classes of each image after ImageNet-ReaL, matched by the file name that
    says its number in the validation set.

    Args:
        source: N images of the validation set, or a part of it.
        logits: [1000] int64, the logit of each class of ImageNet-1K.

    Returns:
        [N, M] int64, filled up with -1. A row of -1 alone has no right class and does not count.

    Raises:
        InputError: images whose names have no such number, or two with the same number.
    """
    names = [source.name(index) for index in range(len(source))]
    found = [_VAL_NUMBER.search(name) for name in names]
    numbers = np.array([int(match[1]) if match else 0 for match in found], dtype=np.int64)
    if unknown := [i for i, number in enumerate(numbers) if not 1 <= number <= _NUM_VAL]:
        raise InputError(
            f"real: {len(unknown)} of {len(names)} images are not named as in ImageNet's validation"
            f" set (ILSVRC2012_val_00000001.JPEG), such as {printable(names[unknown[0]])!r} in"
            f" {source.describe(unknown[0])}: ReaL's labels belong to these names"
        )
    unique, counts = np.unique(numbers, return_counts=True)
    if counts.max(initial=1) > 1:
        twice = int(unique[counts > 1][0])
        raise InputError(
            f"real: ILSVRC2012_val_{twice:08d} is there twice: give a folder that has each image"
            " once"
        )
    labels = _real_labels()[numbers - 1]
    return np.where(labels < 0, -1, np.asarray(logits)[labels])


def imagenet_classes() -> tuple[str, ...]:
    """Return the synsets of ImageNet-1K in their order."""
    classes = named_list("imagenet-1k")
    assert classes is not None
    return classes
