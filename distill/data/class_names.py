"""Class names: how they are compared, and the one order in which classes are numbered for every
kind of source.
"""

import re
import unicodedata
from collections.abc import Sequence

from distill.errors import InputError

_NUMBER = re.compile(r"[0-9]+")
_DIGITS = re.compile(r"([0-9]+)")
# Longer numbers are not class numbers, and Python converts no more than 4,300 digits.
_MOST_DIGITS = 9


def _is_number(text: str) -> bool:
    return bool(_NUMBER.fullmatch(text)) and len(text) <= _MOST_DIGITS


def meaning(name: str) -> str:
    """The form in which names are compared: a number without leading zeros, or the text in
    Unicode's form NFC without blanks around it.

    macOS writes an accent as a character of its own (NFD) where a list typed elsewhere has one
    character for both.
    """
    text = unicodedata.normalize("NFC", name).strip()
    return (text.lstrip("0") or "0") if _NUMBER.fullmatch(text) else text


def class_numbers(names: Sequence[str]) -> list[int] | None:
    """The names as numbers, where every one of them is a decimal number; else None."""
    meanings = [meaning(name) for name in names]
    if not meanings or not all(_is_number(text) for text in meanings):
        return None
    return [int(text) for text in meanings]


def order_classes(names: Sequence[str], where: str) -> tuple[str, ...]:
    """The order in which the classes of a source without a class list are numbered; every kind of
    source uses it.

    Names that are all numbers are sorted by value: a folder named 10 means class 10, and as text it
    stands before 2. Every other list, mixed ones too, is sorted by code points, as torchvision's
    ImageFolder sorts folders and as runs and exports of earlier versions have it. timm's reader
    sorts "class2" before "class10", and ignores capitals: where the two orders differ and a model
    does not name its classes, `distill.models.labels` asks for a list.

    Args:
        where: names the data in messages.

    Raises:
        InputError: as `check_names`.
    """
    check_names(names, where)
    if class_numbers(names) is not None:
        return tuple(sorted(names, key=lambda name: int(meaning(name))))
    return tuple(sorted(names))


def listed_order(names: Sequence[str], where: str) -> tuple[str, ...]:
    """The order of classes that data name in a list of their own (a ClassLabel, a manifest): that
    of the list, but numbers by value.

    Lists of numbers are mostly folders that another program has sorted as text.

    Raises:
        InputError: as `check_names`.
    """
    if class_numbers(names) is not None:
        return order_classes(names, where)
    check_names(names, where)
    return tuple(names)


def natural_order(names: Sequence[str]) -> tuple[str, ...]:
    """The order of timm's folder reader: numbers within names by value, without regard
    to capitals.
    """

    def key(name: str) -> list[tuple[int, str]]:
        parts = _DIGITS.split(name.lower())
        return [
            (len(part.lstrip("0")), part.lstrip("0")) if i % 2 else (0, part)
            for i, part in enumerate(parts)
        ]

    return tuple(sorted(names, key=key))


def check_names(names: Sequence[str], where: str) -> None:
    """Refuse names that look the same or cannot be written.

    Raises:
        InputError: an empty name, one that is not UTF-8, or two that say the same ("1" and "01",
            one accent in two forms of Unicode, a blank more).
    """
    seen: dict[str, str] = {}
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            shown = name.encode("utf-8", "backslashreplace").decode()
            raise InputError(f"{where}: the class name {shown} is not UTF-8: rename it") from error
        known = meaning(name)
        if not known:
            raise InputError(f"{where}: the class name {name!r} is empty: give every class a name")
        if known in seen:
            raise InputError(
                f"{where}: the class names {seen[known]!a} and {name!a} say the same, so which is"
                " meant is not known: rename one, or put the images of both into one class"
            )
        seen[known] = name
