"""Opens the source that a recipe names: undecoded records with their labels.

A source does not know order, epochs or pixels. It is cheap to send to a loader worker: large parts
are memory-mapped, shared by fork, or reopened on first use.
"""

from pathlib import Path
from typing import assert_never

import numpy as np

from distill.data.fashion import open_fashion_mnist
from distill.data.folder import ImageFolderSource
from distill.data.label_sets import class_list
from distill.data.labels import check_labels, stratified_subset
from distill.data.records import Source, at
from distill.data.stream.opening import open_stream
from distill.data.tables import open_table
from distill.errors import InputError
from distill.recipe import schema

__all__ = ["Source", "has_class_order", "open_source", "stratified_subset"]

_USUAL_SHARDS = schema.ShardsSpec()


def open_source(
    spec: schema.SourceSpec,
    root: Path,
    key: str = "data.train",
    shards: schema.ShardsSpec = _USUAL_SHARDS,
) -> Source:
    """The source that a recipe names, with its labels checked.

    Args:
        spec: the recipe's `data.train` or `data.eval`.
        root: what relative paths are relative to (`data.root`).
        key: the recipe key of `spec`, for messages.
        shards: settings for the shards of a stream.

    Raises:
        InputError: missing files, empty classes, unknown columns, labels outside the class list, no
            records; of a stream, also no access.
    """
    source: Source
    match spec:
        case schema.ImageFolderSpec():
            classes = None if spec.classes is None else class_list(spec.classes, root, key)
            source = ImageFolderSource(at(root, spec.path, f"{key}.path"), classes, key)
        case schema.TableSpec() | schema.SavedDatasetSpec():
            source = open_table(spec, root, key)
        case schema.FashionMnistSpec():
            folder = None if spec.path is None else at(root, spec.path, f"{key}.path")
            source = open_fashion_mnist(spec.split, folder, key)
        case schema.StreamSpec():
            return open_stream(spec, root, key, shards)  # it checks labels as they come
        case _:
            assert_never(spec)
    if len(source) == 0:
        raise InputError(f"{key}: {spec.kind} holds no records: check path and split")
    assert isinstance(source.labels, np.ndarray)
    check_labels(source.labels, len(source.classes), key)
    return source


def has_class_order(spec: schema.SourceSpec) -> bool:
    """Whether a recipe lists the classes of a source in order; else the order follows from their
    names.
    """
    return isinstance(spec, schema.FashionMnistSpec) or spec.classes is not None
