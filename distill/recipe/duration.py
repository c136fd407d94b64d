"""Durations such as "300 epochs", "750k iterations" and "600M samples", and their steps."""

import re
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, PlainSerializer, WrapValidator

Unit = Literal["iterations", "epochs", "samples"]

_UNITS: dict[str, Unit] = {
    "iteration": "iterations",
    "iterations": "iterations",
    "iter": "iterations",
    "iters": "iterations",
    "step": "iterations",
    "steps": "iterations",
    "epoch": "epochs",
    "epochs": "epochs",
    "ep": "epochs",
    "sample": "samples",
    "samples": "samples",
    "image": "samples",
    "images": "samples",
}
UNIT_NAMES = tuple(_UNITS)
_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_LONGEST: dict[Unit, int] = {"iterations": 10**10, "epochs": 10**7, "samples": 10**15}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgKMG]?)\s*([a-z]+)\s*")


class DurationValue(NamedTuple):
    """A length of training, in the unit that the author of a recipe chose."""

    amount: float
    unit: Unit

    def __str__(self) -> str:
        number = (
            int(self.amount)
            if self.amount == int(self.amount)
            else f"{Decimal(repr(self.amount)):f}"
        )
        return f"{number} {self.unit}"

    def steps(self, *, steps_per_epoch: int, batch_size_global: int) -> int:
        """The number of optimizer steps, rounded. An epoch is exactly `steps_per_epoch` steps."""
        if self.unit == "iterations":
            return round(self.amount)
        if self.unit == "epochs":
            return round(self.amount * steps_per_epoch)
        return round(self.amount / batch_size_global)


class InheritedDuration(DurationValue):
    """A duration from a file of this package, `origin`. It equals a DurationValue."""

    origin: str = ""


class ShippedText(str):
    """A text in a recipe file of this package, `origin`: not chosen by the user."""

    origin: str

    def __new__(cls, text: str, origin: str) -> "ShippedText":
        self = super().__new__(cls, text)
        self.origin = origin
        return self


def parse_duration(value: Any) -> DurationValue:
    """Parses "300 epochs", "187.5k iterations", "1.2M samples".

    Returns:
        The duration; an InheritedDuration for a ShippedText.

    Raises:
        ValueError: the number or the unit is missing, the unit is unknown, the number of iterations
            or samples is not whole, or the duration is too long.
    """
    if isinstance(value, DurationValue):
        return value
    match = _PATTERN.fullmatch(value) if isinstance(value, str) and len(value) < 100 else None
    if match is None or match[3] not in _UNITS:
        raise ValueError(
            f"{value!r} is not a duration: write a number and a unit, as in '300 epochs', '750k"
            " iterations' or '10M samples'"
        )
    unit = _UNITS[match[3]]
    amount = Decimal(match[1]) * _MULTIPLES[match[2].lower()]
    if amount > _LONGEST[unit]:
        raise ValueError(f"{value}: should be at most {_LONGEST[unit]:,} {unit}")
    if unit != "epochs" and amount != int(amount):
        raise ValueError(
            f"{value}: should be a whole number of {unit}: only epochs can be fractions"
        )
    if not isinstance(value, ShippedText):
        return DurationValue(float(amount), unit)
    inherited = InheritedDuration(float(amount), unit)
    inherited.origin = value.origin
    return inherited


def _parse_only(value: Any, _handler: object) -> DurationValue:
    """Validates a duration. Pydantic's own validator would lose that it is inherited."""
    return parse_duration(value)


def _positive(value: DurationValue) -> DurationValue:
    if value.amount <= 0:
        raise ValueError(f"{value}: should be longer than 0")
    return value


Duration = Annotated[
    DurationValue, WrapValidator(_parse_only), PlainSerializer(str, return_type=str)
]
Interval = Annotated[Duration, AfterValidator(_positive)]
