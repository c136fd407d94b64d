"""The split of a file or folder, from its name: one way for tables, saved data sets, image folders
and shards.

A name is cut at - _ . and any of its words may name a split: imagenet1k-validation-00.tar belongs
to validation. A file's own name comes before the names of the folders above it, and of these the
nearest comes first.
"""

import posixpath
import re
from collections.abc import Iterable, Sequence

from distill.errors import InputError, did_you_mean, printable

# The names of each split. Names in one line mean one split.
_NAMES = (
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("test", "testing"),
    ("eval", "evaluation"),
    ("holdout", "heldout"),
)
_SPLIT_OF = {word: names[0] for names in _NAMES for word in names}
_WORDS = re.compile(r"[-_.]")


def split_of(path: str) -> str | None:
    """The split of a file or folder by its path below the data's root: train, validation, test,
    eval or holdout; None without such a word.
    """
    for part in reversed(path.strip("/").split("/")):
        for word in _WORDS.split(part.lower()):
            if word in _SPLIT_OF:
                return _SPLIT_OF[word]
    return None


def split_named(folder: str) -> str | None:
    """The split that a folder is called, where that is all of its name: a class may be called
    test_tube.
    """
    return _SPLIT_OF.get(folder.lower())


def same_split(split: str, other: str) -> bool:
    """Return whether two names mean one split: "val" and "validation" do."""
    return split == other or (split_named(split) or split) == (split_named(other) or other)


def refuse_several(paths: Iterable[str], where: str, key: str, fix: str) -> None:
    """Raises InputError when the paths are of several splits, listing them.

    Files of an evaluation split together with files without a split in their names are two sets as
    well (cifar.tar, cifar_test.tar).

    Args:
        paths: below the data's root.
        where: what they were found in, for messages.
        key: the recipe key that is at fault.
        fix: how to name one of them.
    """
    names = {split_of(path): path for path in reversed([*paths])}
    found = sorted((split for split in names if split is not None), key=_rank)
    if len(found) == 1 and found != ["train"] and None in names:
        raise InputError(
            f"{key}: {where} has files of split {found[0]} ({printable(names[found[0]])}) beside"
            f" others that name none ({printable(names[None])}): {fix}"
        )
    if len(found) > 1:
        raise InputError(
            f"{key}: {where} has files of {len(found)} splits side by side, {', '.join(found)}:"
            f" {fix}"
        )


def files_of_split(
    paths: Sequence[str], root: str, split: str | None, where: str, key: str
) -> list[str]:
    """The files of a split; all of them if none is given and there is at most one.

    Args:
        paths: absolute, or as `root` is.
        root: the folder that the files were found in; words above it say nothing.
        where: names it in messages.
        key: the section of the recipe that has `split`.

    Raises:
        InputError: several splits and none asked for, or no file of the one that is.
    """
    below = [posixpath.relpath(path, root) if root else path for path in paths]
    if split is None:
        refuse_several(
            below,
            where,
            f"{key}.split",
            f"set {key}.split to one of them, or {key}.path to its own files",
        )
        return list(paths)
    asked = _SPLIT_OF.get(split.lower())
    chosen = [
        path
        for path, name in zip(paths, below, strict=True)
        if (split_of(name) == asked if asked else split in _words(name))
    ]
    if not chosen:
        splits = {found for name in below if (found := split_of(name)) is not None}
        known = sorted(splits or set[str]().union(*map(_words, below)))[:20]
        raise InputError(
            f"{key}.split: no file in {where} is of split {split!r}{did_you_mean(split, known)}; "
            f"there are {', '.join(known)}: choose one, set split to null, or path to a pattern"
        )
    return chosen


def choose_split(split: str | None, known: Sequence[str], where: str, key: str) -> str:
    """The given split, or the only one. "val" chooses "validation", and so on.

    Raises:
        InputError: there is no such split, or there are several and none is asked for.
    """
    if split is None and len(known) == 1:
        return known[0]
    alike = [name for name in known if split is not None and same_split(name, split)]
    if split not in known and len(alike) == 1:
        return alike[0]
    if split is None or split not in known:
        have = ", ".join(map(repr, known))
        asked = (
            f"{where} has several splits"
            if split is None
            else f"{where} has no split {split!r}{did_you_mean(split, known)}"
        )
        raise InputError(f"{key}.split: {asked}: choose one of {have}")
    return split


def _words(path: str) -> set[str]:
    return {word for part in path.strip("/").split("/") for word in _WORDS.split(part)}


def _rank(split: str) -> int:
    return next(i for i, names in enumerate(_NAMES) if names[0] == split)
