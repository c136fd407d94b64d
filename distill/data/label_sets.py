"""Label spaces by name: ImageNet's class lists as timm ships them. Lists are compared, never their
lengths.

imagenet-1k             1,000  ILSVRC 2012
imagenet-12k           11,821  the classes of fall 2011 with the most images (timm's choice)
imagenet-22k           21,841  fall 2011, all of it
imagenet-22k-ms        21,842  the same with ImageNet-1K's classes first (Microsoft's FocalNet)
imagenet-21k-goog      21,843  fall 2011 and two synsets more (Google's ViT and BiT)
imagenet-21k-miil      11,221  ImageNet-21K-P of fall 2011 (Alibaba's MIIL)
imagenet-21k-miil-w21  10,450  ImageNet-21K-P of winter 2021: 771 synsets fewer than the former

"ImageNet-21K" alone could be four of them, so it is no name here. All of winter 2021, some 19,170
classes, has no list in timm: give a file. The long lists hold 991 to 999 of ImageNet-1K's synsets
(only Microsoft's has all): the teddy of 1K (n04399382) is not in fall 2011.
"""

import csv
import pkgutil
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from distill.data.class_names import check_names, meaning
from distill.data.records import at, read_regular
from distill.errors import InputError, did_you_mean

# Name -> (classes, the list within timm.data). timm's ImageNetInfo knows all of them but the last.
_SPACES = {
    "imagenet-1k": (1_000, "imagenet_synsets.txt"),
    "imagenet-12k": (11_821, "imagenet12k_synsets.txt"),
    "imagenet-22k": (21_841, "imagenet22k_synsets.txt"),
    "imagenet-22k-ms": (21_842, "imagenet22k_ms_synsets.txt"),
    "imagenet-21k-goog": (21_843, "imagenet21k_goog_synsets.txt"),
    "imagenet-21k-miil": (11_221, "imagenet21k_miil_synsets.txt"),
    "imagenet-21k-miil-w21": (10_450, "imagenet21k_miil_w21_synsets.txt"),
}
NAMES = tuple(_SPACES)

_SYNSET = re.compile(r"n\d{8}")
# Lists in words differ from WordNet's in places: of the Hub's ImageNet-1K it is one name in a
# thousand ("crane2").
_MOST_UNKNOWN_WORDS = 0.01


@cache
def named_list(name: str) -> tuple[str, ...] | None:
    """The synsets of a label space in the order of its labels; None for a name that is not of the
    registry.

    Raises:
        InputError: the installed timm does not have the list.
    """
    if name not in _SPACES:
        return None
    num_classes, file = _SPACES[name]
    synsets = tuple(timm_file(file).splitlines())
    assert len(synsets) == num_classes, f"{name}: {len(synsets)} classes"
    return synsets


def space_of_size(num_classes: int) -> str | None:
    """The label space that a head of so many logits most likely speaks, for want of better
    knowledge; None for other sizes.
    """
    return next((name for name, (count, _) in _SPACES.items() if count == num_classes), None)


def class_list(name_or_path: str, root: Path, key: str, distinct: bool = True) -> tuple[str, ...]:
    """Class names by the name of a label space, or from a text file, one a line; blank lines at the
    end do not count.

    Args:
        name_or_path: a name of the registry, or a file relative to `root`; a file of that name
            comes first.
        key: the recipe's section that has `classes`, for messages.
        distinct: refuse names that stand for two classes; a model's list may have them ("crane" of
            ImageNet).

    Raises:
        InputError: neither a name nor a file; an empty file, or one that names a class twice.
    """
    path = at(root, name_or_path, f"{key}.classes")
    if not path.is_file() and (known := named_list(name_or_path)) is not None:
        return known
    try:
        lines = [
            line.strip() for line in read_regular(path).decode("utf-8-sig").rstrip().splitlines()
        ]
    except (OSError, ValueError) as error:
        raise InputError(
            f"{key}.classes: cannot read {path} ({error}): give a text file, a class name a line,"
            f" or one of {', '.join(NAMES)}{did_you_mean(name_or_path, NAMES)}"
        ) from error
    if not lines or not all(lines):
        raise InputError(
            f"{key}.classes: {path} has {'an empty line' if lines else 'no lines'}: give a class"
            " name a line"
        )
    if not distinct:
        return tuple(lines)
    if len(set(lines)) != len(lines):
        twice = next(name for i, name in enumerate(lines) if name in lines[:i])
        raise InputError(f"{key}.classes: {path} names {twice!r} twice: each line is one class")
    check_names(lines, f"{key}.classes: {path}")
    return tuple(lines)


def known_as(classes: Sequence[str]) -> str | None:
    """The name of the label space that a class list is, in synsets or in WordNet's words; None for
    a list of another kind.

    In words, one name in a hundred may be unknown to WordNet; none may be another class's.
    """
    name = space_of_size(len(classes))
    if name is None:
        return None
    synsets = named_list(name)
    assert synsets is not None
    if are_synsets(classes):
        return name if tuple(classes) == synsets else None
    lemmas, known = _lemmas(), _synsets_by_words()
    others = [own for synset, own in zip(synsets, classes, strict=True) if lemmas[synset] != own]
    agree = len(others) <= _MOST_UNKNOWN_WORDS * len(classes) and not any(
        own in known for own in others
    )
    return name if agree else None


def same_space(classes: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists name the same classes in the same order: name by name, or one label space
    in synsets here and in words there.
    """
    return list(map(meaning, classes)) == list(map(meaning, others)) or (
        (space := known_as(classes)) is not None
        and len(classes) == len(others)
        and space == known_as(others)
    )


def describe_space(classes: Sequence[str]) -> str:
    """A class list in a few words, for messages: "imagenet-22k (21,841 classes)", "37 classes of
    its own".
    """
    if not classes:
        return "no classes"
    count = f"{len(classes):,} class{'es' if len(classes) > 1 else ''}"
    name = known_as(classes)
    if name is not None:
        return f"{name} ({count})"
    likely = space_of_size(len(classes))
    if likely is not None and set(classes) == set(named_list(likely) or ()):
        return f"{likely} in another order ({count})"
    return f"{count} of its own"


def mismatch(
    own: Sequence[str], others: Sequence[str], who: str = "the teacher", whose: str = "the data"
) -> str | None:
    """How two class lists differ: both spaces and the first class that is another. None where they
    agree, name by name.
    """
    if list(map(meaning, own)) == list(map(meaning, others)):
        return None
    spaces = f"{who} has {describe_space(own)}, {whose} {describe_space(others)}"
    for index, (left, right) in enumerate(zip(own, others, strict=False)):
        if meaning(left) != meaning(right):
            return f"{spaces}; class {index} is {left!r} for {who} and {right!r} in {whose}"
    index, longer = min(len(own), len(others)), own if len(own) > len(others) else others
    return (
        f"{spaces}; from class {index} ({longer[index]!r}) on only"
        f" {who if longer is own else whose} has names"
    )


def overlap(classes: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """Which of `classes` the others have as well: by synset where a list is of synsets or of the
    registry, else by name.

    Words of another list that stand for several synsets ("crane") count as shared if any of them
    is.

    Returns:
        [len(classes)] bool.

    Raises:
        InputError: lists that cannot be compared: empty, mere numbers, or one WordNet's and the
            other not.
    """
    for names in (classes, others):
        if not names or all(name.isdecimal() for name in names):
            has = "has numbers for class names" if names else "has no class names"
            raise InputError(
                f"which classes two sets share shows in their names, and one {has}: give its class"
                f" list, a file or one of {', '.join(NAMES)}"
            )
    left, right = _synsets_of(classes), _synsets_of(others)
    if left is None and right is None:
        have = set(map(meaning, others))
        return np.array([meaning(name) in have for name in classes])
    left, right = left or _by_words(classes), right or _by_words(others)
    if left is None or right is None:
        strange = classes if left is None else others
        raise InputError(
            "cannot tell which classes two sets share: one speaks WordNet's language, the other"
            f" ({describe_space(strange)}, such as {strange[0]!r}) does not: give both as synsets,"
            " or by the same names"
        )
    synsets = frozenset[str]().union(*right)
    return np.array([not possible.isdisjoint(synsets) for possible in left])


def are_synsets(names: Sequence[str]) -> bool:
    """Whether every name has the form of a noun synset, n and eight digits."""
    return all(_SYNSET.fullmatch(name) for name in names)


def words_of(synset: str) -> str:
    """WordNet's words ("tench, Tinca tinca"); what is no synset of ImageNet stays as it is."""
    return _lemmas().get(synset, synset)


def possible_synsets(classes: Sequence[str]) -> list[frozenset[str]]:
    """The synsets that each class may be, in the words of a whole label space if it is one; an
    empty set for what WordNet does not know.
    """
    known = _synsets_by_words()
    whole = _synsets_of(classes)
    if whole is not None:
        return whole
    return [frozenset((n,)) if _SYNSET.fullmatch(n) else known.get(n, frozenset()) for n in classes]


def _synsets_of(classes: Sequence[str]) -> list[frozenset[str]] | None:
    """The synset of each class, in a set of its own; None for a list that is neither synsets nor
    known as a whole.
    """
    if are_synsets(classes):
        return [frozenset((name,)) for name in classes]
    name = known_as(classes)
    return None if name is None else [frozenset((synset,)) for synset in named_list(name) or ()]


def _by_words(classes: Sequence[str]) -> list[frozenset[str]] | None:
    """The synsets that each class may be by its words; None where WordNet does not know all of
    them.
    """
    known = _synsets_by_words()
    return [known[name] for name in classes] if all(name in known for name in classes) else None


@cache
def _lemmas() -> dict[str, str]:
    """Synset -> words."""
    return dict(csv.reader(timm_file("imagenet_synset_to_lemma.txt").splitlines(), delimiter="\t"))


@cache
def _synsets_by_words() -> dict[str, frozenset[str]]:
    """Words -> synsets; of ImageNet's 21,844, 525 strings of words stand for two or more."""
    found: dict[str, set[str]] = {}
    for synset, words in _lemmas().items():
        found.setdefault(words, set()).add(synset)
    return {words: frozenset(synsets) for words, synsets in found.items()}


def timm_file(name: str) -> str:
    """The text of a file that timm ships about ImageNet.

    Raises:
        InputError: the installed timm does not have it.
    """
    try:
        content = pkgutil.get_data("timm.data", f"_info/{name}")
    except OSError as error:
        import timm

        raise InputError(
            f"timm {timm.__version__} has no {name}: install the version of constraints.txt, or"
            " give the class list as a file"
        ) from error
    assert content is not None
    return content.decode("utf-8")
