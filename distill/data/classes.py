"""The class list of a run, and which samples of a data set it uses, as far as it is known before
any record is read.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from distill.data.class_names import meaning
from distill.data.label_sets import mismatch, overlap, same_space
from distill.data.labels import stratified_subset
from distill.data.records import Source
from distill.errors import InputError, prefix_errors


class Named(NamedTuple):
    """A source and its recipe key. `read`: whether its labels are read; `why`: by what."""

    key: str
    source: Source
    read: bool
    why: str


def run_classes(
    trained: Sequence[Named],
    eval_source: Source | None,
    *,
    reads_eval: bool = True,
    of_teacher: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """The class list of a run: that of all sources whose labels are read, and of the evaluation
    set.

    A source whose labels are not read may have other classes, or none.

    Args:
        reads_eval: whether the labels of the evaluation set are read.
        of_teacher: the classes that the recipe names for the teacher, which are the run's where
            nothing reads labels.

    Raises:
        InputError: lists that must agree differ, labels are missing where they are read, or no
            source names the classes.
    """
    for named in trained:
        if named.read and not named.source.classes:
            raise InputError(
                f"{named.key}: has no labels, and {named.why} reads them: teach soft labels alone"
                " (objective.hard: null), or give labels"
            )
    lists = [(named.key, named.source.classes, named.why) for named in trained if named.read]
    if eval_source is not None and reads_eval:
        if not eval_source.classes:
            raise InputError(
                "data.eval: has no labels, and evaluate.metric reads them: give labelled images, or"
                " set evaluate.metric to teacher_kl or agreement"
            )
        lists.append(("data.eval", eval_source.classes, ""))
    if not lists:
        lists = _unread(trained, eval_source, of_teacher)
    if not lists or not lists[0][1]:
        raise InputError(
            "data.eval: nothing here names the classes of the run: give a labelled data.eval, a"
            " source with labels, or teacher.classes"
        )
    first_key, classes, why = lists[-1] if eval_source is not None and reads_eval else lists[0]
    if len(classes) == 1:
        raise InputError(
            f"{first_key}: has one class, {classes[0]!r}, and there is nothing to tell apart: give"
            " the folder above it, or data of several classes"
        )
    for key, others, reader in lists:
        same_classes(others, classes, key, first_key, reader or why)
    return classes


def _unread(
    trained: Sequence[Named], eval_source: Source | None, of_teacher: tuple[str, ...]
) -> list[tuple[str, tuple[str, ...], str]]:
    """Return what names the classes of a run in which nothing reads labels: key, classes, reader.
    Empty if nothing does.

    Raises:
        InputError: the training sources have different classes, and nothing else names them.
    """
    if eval_source is not None and eval_source.classes:
        lists = [("data.eval", eval_source.classes, "")]
    else:
        lists = [(named.key, named.source.classes, "") for named in trained if named.source.classes]
    if of_teacher and not any(same_space(classes, of_teacher) for _, classes, _ in lists[:1]):
        return [("teacher.classes", of_teacher, "")]
    if len({classes for _, classes, _ in lists}) > 1:
        raise InputError(
            "data.eval: nothing says whose classes the run has:"
            f" {' and '.join(key for key, _, _ in lists)} differ, and no loss reads their labels:"
            " give a labelled data.eval, or teacher.classes"
        )
    return lists[:1]


def same_classes(
    train: tuple[str, ...], other: tuple[str, ...], key: str, other_key: str, why: str = ""
) -> None:
    """Raise InputError if two class lists differ, naming the first difference."""
    if same_space(train, other):
        return
    how = mismatch(train, other, key, other_key)
    absent = _only_there(train, other, key, other_key) or _only_there(other, train, other_key, key)
    reader = f", and {why} reads its labels" if why else ""
    raise InputError(
        f"{how}{reader}. {absent}Give both the same list, a file with a class name a line, with"
        f" {key}.classes and {other_key}.classes, or teach soft labels alone (objective.hard: null)"
    )


def _only_there(classes: tuple[str, ...], others: tuple[str, ...], key: str, other_key: str) -> str:
    """Return which classes one list has beyond all of the other's; empty where each has some of its
    own, or neither.
    """
    own, theirs = {meaning(name): name for name in classes}, set(map(meaning, others))
    more = [name for known, name in own.items() if known not in theirs]
    if not more or not theirs <= own.keys():
        return ""
    shown = ", ".join(map(repr, more[:5])) + (f" and {len(more) - 5} more" if len(more) > 5 else "")
    return f"{other_key} lacks {shown} of {key}. "


def chosen_samples(
    source: Source, classes: tuple[str, ...], *, fraction: float, keep: str, seed: int, key: str
) -> np.ndarray | None:
    """The samples that data.fraction and data.keep_classes select; None for all.

    Args:
        classes: those of the run.
        keep: "all", "shared" or "unshared".
        seed: of the run: a smaller fraction is a subset of a larger one.

    Returns:
        [M] int64 indices, ascending.

    Raises:
        InputError: labels are needed and not known before records are read, or nothing is left.
    """
    if fraction == 1 and keep == "all":
        return None
    labels = source.labels
    if not isinstance(labels, np.ndarray):
        if source.classes or keep != "all":
            setting = "keep_classes" if keep != "all" else "fraction"
            raise InputError(
                f"{key.removesuffix('.train')}.{setting}: needs the label of every sample before"
                f" any is read, and {key} has them inside its shards: convert it with `distill data"
                f" shard`, whose manifest keeps them, or leave {setting} out"
            )
        labels = np.zeros(len(source), dtype=np.int64)  # without labels all are of one class
    chosen = stratified_subset(labels, fraction, seed)
    if keep != "all":
        with prefix_errors(f"{key.removesuffix('.train')}.keep_classes"):
            shared = overlap(source.classes, classes)
        chosen = chosen[(shared if keep == "shared" else ~shared)[labels[chosen]]]
    if not len(chosen):
        raise InputError(
            f"{key.removesuffix('.train')}.keep_classes: {keep} leaves no sample of {key}"
        )
    return chosen
