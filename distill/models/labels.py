"""Matching a model's logits with the classes of the data, by their names; an assumption is
printed.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from distill.data.class_names import class_numbers, meaning, natural_order
from distill.data.label_sets import (
    are_synsets,
    describe_space,
    known_as,
    mismatch,
    named_list,
    possible_synsets,
    space_of_size,
)
from distill.errors import InputError

How = Literal["names", "synsets", "numbers", "order"]
_SHOWN = 5
_FIX = (
    "name the classes in the order of the model's logits, by a file or a label set such as "
    "imagenet-1k: --classes of distill evaluate, --teacher-classes of distill init, "
    "data.train.classes and data.eval.classes in a recipe"
)


@dataclass(frozen=True)
class Match:
    """The logit of each class of the data.

    Attributes:
        logits: [C] int64, for each of the data's classes the index of its logit.
        num_logits: K of the model.
        how: the basis of the match: equal names; synsets or words of WordNet; folder names that
            are class numbers; or only the order, which is an assumption.
        data_classes: the names of the data, in the order of its labels.
        who: the model in messages.
    """

    logits: np.ndarray
    num_logits: int
    how: How
    data_classes: tuple[str, ...]
    who: str

    @property
    def in_order(self) -> bool:
        """Whether class i is logit i, and there are no other logits."""
        return np.array_equal(self.logits, np.arange(self.num_logits))

    def describe(self) -> str:
        """Return the match in a line, with the first five classes."""
        first = ", ".join(
            f"{name} = {index}"
            for name, index in zip(self.data_classes[:_SHOWN], self.logits, strict=False)
        )
        more = ", ..." if len(self.data_classes) > _SHOWN else ""
        part = (
            ""
            if len(self.logits) == self.num_logits
            else f"{len(self.logits)} of {self.num_logits:,} classes, "
        )
        how = {
            "names": "matched by name",
            "synsets": "matched by WordNet's synsets and words",
            "numbers": "class names are numbers and taken for indices of the logits",
            "order": (
                "nothing names the classes of the logits: ASSUMED to be in the order of the data's"
            ),
        }
        return f"classes of {self.who}: {part}{how[self.how]}: {first}{more}"


def match_classes(
    model_classes: Sequence[str] | None,
    num_logits: int,
    data_classes: Sequence[str],
    *,
    who: str = "the teacher",
    order_given: bool = False,
) -> Match:
    """Find the logit of each class of the data; the data may hold only some of the model's classes,
    in any order.

    Names are compared first, then WordNet's synsets and words, then names that are numbers are
    taken for indices. If a model does not name its classes, a head of ImageNet's size is tried as
    ImageNet, and as many logits as classes are assumed to be in the same order.

    Args:
        model_classes: names in the order of the logits; None where nothing recorded them.
        data_classes: names in the order of the labels.
        who: the model in messages.
        order_given: the user gave the data's class list, so its order is not our assumption.

    Raises:
        InputError: the lists cannot be compared or differ, or the order would be a guess; says how
            to name the classes.
    """
    if not data_classes:
        raise InputError(f"{who}: the data have no class names, so its labels say nothing: {_FIX}")
    if num_logits < 2:
        raise InputError(f"{who}'s head has {num_logits} class: there is nothing to tell apart")
    if model_classes is not None and len(model_classes) != num_logits:
        raise InputError(
            f"{who}'s list names {len(model_classes)} classes, its head has {num_logits}"
        )
    own, data = model_classes, tuple(data_classes)

    def match(logits: list[int] | np.ndarray, how: How) -> Match:
        return Match(np.asarray(logits, dtype=np.int64), num_logits, how, data, who)

    if own is not None and (logits := _by_name(own, data)) is not None:
        return match(logits, "names")
    likely = None if own is not None else space_of_size(num_logits)
    list_to_try = own if own is not None else named_list(likely) if likely else None
    if list_to_try is not None and (found := _by_synset(list_to_try, data, who)) is not None:
        return match(found, "synsets")
    numbers = (
        None
        if order_given and list(map(str, range(len(data)))) != list(map(meaning, data))
        else class_numbers(data)
    )
    if numbers is not None and (own is None or class_numbers(own) is None):
        if max(numbers) >= num_logits:
            raise InputError(
                f"{who}'s head has {num_logits} classes, 0 to {num_logits - 1}, and the data's"
                f" classes are numbers up to {max(numbers)}: which logit each means is unknown:"
                f" {_FIX}"
            )
        return match(numbers, "numbers")
    if own is not None and not (
        order_given and class_numbers(data) is not None and len(data) == num_logits
    ):
        raise InputError(_different(own, num_logits, data, who))
    if len(data) != num_logits:
        raise InputError(_different(None, num_logits, data, who))
    _refuse_two_orders(data, who, order_given)
    return match(np.arange(num_logits), "order")


def match_teacher(
    teacher_classes: Sequence[str] | None,
    num_teacher: int,
    data_classes: Sequence[str],
    *,
    pretrained: bool = False,
    order_given: bool = False,
) -> Match:
    """Do as `match_classes` for a teacher, whose logits must be all of the run's classes, in their
    order.

    Args:
        pretrained: the weights are timm's own, so a head of ImageNet's size is ImageNet's.

    Raises:
        InputError: as `match_classes`; other classes, or another order.
    """
    who = "the teacher"
    own = teacher_classes
    if own is None and pretrained and (space := space_of_size(num_teacher)) is not None:
        own = named_list(space)
    if num_teacher != len(data_classes):
        raise InputError(_different(teacher_classes, num_teacher, data_classes, who))
    match = match_classes(own, num_teacher, data_classes, who=who, order_given=order_given)
    if not match.in_order:
        index = int(np.flatnonzero(match.logits != np.arange(num_teacher))[0])
        listed = (
            own
            or named_list(space_of_size(num_teacher) or "")
            or tuple(map(str, range(num_teacher)))
        )
        raise InputError(
            f"{who}'s classes are not the data's: {_spaces(listed, data_classes, who)}; class"
            f" {index} is {listed[index]!r} for {who} and {data_classes[index]!r} in the data; the"
            " order of the labels must agree: give data.train.classes and data.eval.classes in the"
            " teacher's order (teacher.classes names a list of its own)"
        )
    return match


def _by_name(own: Sequence[str], data: Sequence[str]) -> np.ndarray | None:
    """Return the index of each name, or None if one is absent or occurs twice."""
    own, data = list(map(meaning, own)), list(map(meaning, data))
    if own == data:
        return np.arange(len(own))
    position, counts = {name: i for i, name in enumerate(own)}, Counter(own)
    if all(counts[name] == 1 for name in data):
        return np.array([position[name] for name in data], dtype=np.int64)
    return None


def _by_synset(own: Sequence[str], data: Sequence[str], who: str) -> np.ndarray | None:
    """Return the index of each class by WordNet's synsets, or None if the lists are not both of
    WordNet.

    Words differ a little between sources ("maillot, tank suit"): in a complete list, a class that
    WordNet does not know counts as equal to the class at its index, if at least half of the classes
    are known. A known class at another index is refused.
    """
    if not (are_synsets(own) or are_synsets(data) or known_as(own)):
        return None
    left, right = possible_synsets(own), possible_synsets(data)
    every = frozenset[str]().union(*left)
    if 2 * sum(not each.isdisjoint(every) for each in right) < len(data) or not any(left):
        return None
    if len(own) == len(data) and all(map(_agree, left, right)):
        return np.arange(len(own))
    places = defaultdict[str, set[int]](set)
    for index, synsets in enumerate(left):
        for synset in synsets:
            places[synset].add(index)
    found: list[int] = []
    for label, (name, synsets) in enumerate(zip(data, right, strict=True)):
        logits = set[int]().union(*(places[synset] for synset in synsets if synset in places))
        # "crane" is a bird and a machine; here its index decides.
        if label in logits and len(own) == len(data):
            logits = {label}
        if len(logits) != 1:
            what = f"is {len(logits)} classes of {who}" if logits else f"is none of {who}'s classes"
            raise InputError(
                f"{who}'s classes are not the data's: {_spaces(own, data, who)}; class {label} of"
                f" the data, {name!r}, {what}: {_FIX}"
            )
        found += logits
    return np.array(found, dtype=np.int64)


def _agree(own: frozenset[str], other: frozenset[str]) -> bool:
    """Return whether two classes at one index may be the same; words that WordNet does not know may
    be any.
    """
    return not own or not other or not own.isdisjoint(other)


def _refuse_two_orders(data: tuple[str, ...], who: str, order_given: bool) -> None:
    """Raise InputError if torchvision and timm would number these names differently, and the model
    does not name its classes.
    """
    other = natural_order(data)
    if order_given or data != tuple(sorted(data)) or data == other:
        return
    index = next(
        i for i, (ours, theirs) in enumerate(zip(data, other, strict=True)) if ours != theirs
    )
    raise InputError(
        f"{who} does not name its classes, and these folders or names have two usual orders: class"
        f" {index} is {data[index]!r} as text (torchvision) and {other[index]!r} in natural order"
        f" (timm), so which logit is which is unknown: {_FIX}"
    )


def _spaces(own: Sequence[str], data: Sequence[str], who: str) -> str:
    return f"{who} has {describe_space(own)}, the data {describe_space(data)}"


def _different(own: Sequence[str] | None, num_logits: int, data: Sequence[str], who: str) -> str:
    if num_logits != len(data):
        fix = (
            "a teacher knows its own classes only; choose one trained on this data's classes,"
            " or fine-tune it on them first; where the data hold only some of its classes, give the"
            " full list with `classes`"
            if who == "the teacher"
            else (
                "a model is evaluated on its own classes; choose that data, or give the full class"
                " list where a folder holds only some"
            )
        )
        model = known_as(own) if own else space_of_size(num_logits)
        theirs = known_as(data)
        has = set(map(meaning, own or data))
        absent = next((name for name in data if meaning(name) not in has), None)
        missing = "" if absent is None else f" (class {absent!r} is none of the model's)"
        return (
            f"{who}'s head has {num_logits} classes{f' (as {model} has)' if model else ''}, the"
            f" data {len(data)}{f' ({theirs})' if theirs else ''}: {fix}{missing}"
        )
    assert own is not None
    names = " (teacher.classes names a list)" if who == "the teacher" else ""
    return (
        f"{who}'s classes are not the data's: {mismatch(own, data, who)}; the order of the labels"
        f" must agree{names}: {_FIX}"
    )
