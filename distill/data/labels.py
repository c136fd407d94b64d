"""Label checks and the stratified subset: what is known of a data set before an image is read."""

from collections.abc import Sequence

import numpy as np

from distill.data.class_names import meaning
from distill.errors import InputError, did_you_mean
from distill.rng import hash64, hash64_array


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Refuse labels outside 0..K-1.

    Args:
        labels: [N] integers.
        num_classes: K.
        where: names the data in the message.

    Raises:
        InputError: naming the first offending row and its label.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        row = int(wrong[0])
        hint = " (-1 usually marks a test split without labels)" if labels[row] == -1 else ""
        raise InputError(
            f"{where}: row {row} has label {labels[row]}, and labels go from 0 to"
            f" {num_classes - 1}; {len(wrong)} of {len(labels)} rows are outside{hint}: fix the"
            " labels or the class list"
        )


def index_names(names: Sequence[str], classes: Sequence[str], where: str) -> np.ndarray:
    """The index of each name in the class list, compared by meaning: "07" is 7, and an accent is
    the same in every form of Unicode.

    Returns:
        [len(names)] int64.

    Raises:
        InputError: a name is not in the list; names the nearest one that is.
    """
    position = {meaning(name): i for i, name in enumerate(classes)}
    for name in names:
        if meaning(name) not in position:
            raise InputError(
                f"{where}: class {name!r} is not in the class list of"
                f" {len(classes)}{did_you_mean(name, classes)}"
            )
    return np.array([position[meaning(name)] for name in names], dtype=np.int64)


def stratified_subset(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """A fixed part of every class (Table 13: 30 % and 60 % of ImageNet).

    Each class keeps round(fraction * its size), at least 1. With the same seed a smaller fraction
    is a subset of a larger one.

    Args:
        labels: [N] integers >= 0.
        fraction: in (0, 1].
        seed: of the data order.

    Returns:
        [M] int64 sample indices, ascending.
    """
    assert 0 < fraction <= 1, fraction
    if fraction == 1:
        return np.arange(len(labels), dtype=np.int64)
    hashes = hash64_array(hash64(seed, "subset"), np.arange(len(labels)))
    by_class = np.lexsort((hashes, labels))
    sizes = np.bincount(labels)
    keep = np.where(sizes > 0, np.maximum(1, np.floor(fraction * sizes + 0.5)), 0).astype(np.int64)
    rank_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(by_class[rank_in_class < np.repeat(keep, sizes)])
