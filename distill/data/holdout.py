"""Hold-out evaluation: a fixed part of each class is evaluated on, and training sees
only the rest.
"""

import glob
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill.data.records import NO_SIZES, Source, at
from distill.data.sources import open_source
from distill.data.splits import same_split
from distill.errors import InputError
from distill.recipe import schema
from distill.rng import hash64, hash64_array


def open_undivided(data: schema.DataSpec, root: Path) -> Source | None:
    """Open the data set that a run holds images out of; None for a run that holds none out.

    Raises:
        InputError: as `open_source`.
    """
    return (
        open_source(data.train, root, "data.train", data.shards)
        if isinstance(data.eval, schema.HoldOutSpec)
        else None
    )


def open_train(
    data: schema.DataSpec,
    spec: schema.SourceSpec,
    root: Path,
    key: str,
    whole: Source | None = None,
) -> Source:
    """Open what a run or a stage trains on: without the images that the run holds out.

    Args:
        data: the run's own data, which says what is held out of data.train.
        spec: data.train of the run or of a stage.
        root: what relative paths are relative to.
        key: the recipe key of `spec`, for messages.
        whole: what `open_undivided` gave, where it is open already.

    Raises:
        InputError: as `open_source`; held-out images might be trained on through another source.
    """
    if isinstance(data.eval, schema.HoldOutSpec) and spec != data.train:
        _refuse_overlap(spec, data.train, root, key)
    if not isinstance(data.eval, schema.HoldOutSpec) or spec != data.train:
        return open_source(spec, root, key, data.shards)
    source = whole or open_source(spec, root, key, data.shards)
    return Part(source, ~held_out(source, data.eval.fraction))


def open_eval(
    data: schema.DataSpec, root: Path, key: str = "data.eval", whole: Source | None = None
) -> Source | None:
    """Open what a run evaluates on; None where the recipe has no evaluation.

    Raises:
        InputError: as `open_source`; no class has two images, so that none can be held out.
    """
    if not isinstance(data.eval, schema.HoldOutSpec):
        return None if data.eval is None else open_source(data.eval, root, key, data.shards)
    source = whole or open_source(data.train, root, "data.train", data.shards)
    chosen = held_out(source, data.eval.fraction)
    if not chosen.any():
        raise InputError(
            f"{key}: each class of data.train has a single image, so none can be held out: "
            "add images, or give data.eval a source of its own"
        )
    return Part(source, chosen)


def held_out(source: Source, fraction: float) -> np.ndarray:
    """Which images are for evaluation.

    Keyed by class name and place in the class: neither the seed nor another class moves an image,
    and a smaller fraction is a subset of a larger one.

    Args:
        source: with labels that are known before any record is read.
        fraction: of each class, in (0, 1).

    Returns:
        [N] bool. In a class of n >= 2 images, round(fraction * n) but at least 1 and at most n - 1.
    """
    assert 0 < fraction < 1, fraction
    labels = source.labels
    assert isinstance(labels, np.ndarray), "the schema refuses a stream"
    chosen = np.zeros(len(labels), dtype=bool)
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], np.arange(len(source.classes) + 1))
    for name, start, end in zip(source.classes, starts[:-1], starts[1:], strict=True):
        size = int(end - start)
        if size < 2:
            continue
        count = min(max(1, int(fraction * size + 0.5)), size - 1)
        hashes = hash64_array(hash64("holdout", name), np.arange(size))
        chosen[by_class[start:end][np.argsort(hashes, kind="stable")[:count]]] = True
    return chosen


class Part:
    """Some records of a source, in their order, as a source of its own.

    Args:
        source: with labels that are known before any record is read.
        chosen: [N] bool.
    """

    shards = ()
    shard_sizes = NO_SIZES

    def __init__(self, source: Source, chosen: np.ndarray) -> None:
        assert isinstance(source.labels, np.ndarray)
        self._source = source
        self.indices = np.flatnonzero(chosen)
        self.labels = source.labels[self.indices]
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> bytes | np.ndarray:
        return self._source.read(int(self.indices[index]))

    def describe(self, index: int) -> str:
        return self._source.describe(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self._source.name(int(self.indices[index]))

    def fingerprint(self) -> str:
        """Of the whole source, and of which records are in this part."""
        return hashlib.sha256(
            self._source.fingerprint().encode() + self.indices.tobytes()
        ).hexdigest()

    def prefetch(self, shards: Sequence[int]) -> None:
        pass


def _refuse_overlap(
    spec: schema.SourceSpec, train: schema.SourceSpec, root: Path, key: str
) -> None:
    """Raise InputError where a stage may read images of data.train through other settings than
    data.train's.
    """
    if isinstance(spec, schema.StreamSpec):
        return  # its images lie in shards, and data.train is none
    splits = (schema.SavedDatasetSpec, schema.FashionMnistSpec)
    named = [each.split for each in (spec, train) if isinstance(each, splits) and each.split]
    if len(named) == 2 and not same_split(*named):
        return
    assert not isinstance(train, schema.StreamSpec), "the schema refuses it"
    if (spec.path is None) != (train.path is None):
        return  # one of them is the Fashion-MNIST that comes with the package
    ours, theirs = _folder(spec.path, root, key), _folder(train.path, root, key)
    if ours == theirs or ours in theirs.parents or theirs in ours.parents:
        raise InputError(
            f"{key}: reads {ours} with other settings than data.train, so it may train on images"
            " that data.eval (kind: holdout) holds out: give both the same settings, or data.eval"
            " a source of its own"
        )


def _folder(path: str | None, root: Path, key: str) -> Path:
    """The file or folder that a path names; of a pattern, the folder above its first wildcard."""
    whole = at(root, path or "", f"{key}.path")
    while glob.has_magic(str(whole)):
        whole = whole.parent
    return whole.resolve()
