"""Durations: "300 epochs", "750000 iterations", "600M samples" become steps in one place."""

import re
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

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
    """A length of training in the unit its author thought in."""

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
        """Optimizer steps, rounded to the nearest. An epoch is `steps_per_epoch` steps, so "300
        epochs" is exact.
        """
        if self.unit == "iterations":
            return round(self.amount)
        if self.unit == "epochs":
            return round(self.amount * steps_per_epoch)
        return round(self.amount / batch_size_global)


def parse_duration(value: Any) -> DurationValue:
    """Parse "300 epochs", "187.5k iterations", "1.2M samples".

    Raises:
        ValueError: no number, no unit, an unknown unit, a part of an iteration, or longer than any
            machine lasts.
    """
    if isinstance(value, DurationValue):
        return value
    match = _PATTERN.fullmatch(value) if isinstance(value, str) and len(value) < 100 else None
    if match is None or match[3] not in _UNITS:
        raise ValueError(
            f"{value!r} is no duration: write a number and a unit, as in '300 epochs', '750k"
            " iterations' or '10M samples'"
        )
    unit = _UNITS[match[3]]
    amount = Decimal(match[1]) * _MULTIPLES[match[2].lower()]
    if amount > _LONGEST[unit]:
        raise ValueError(
            f"{value}: should be at most {_LONGEST[unit]:,} {unit}: longer than any machine lasts"
        )
    if unit != "epochs" and amount != int(amount):
        raise ValueError(f"{value}: should be a whole number of {unit}: only epochs have parts")
    return DurationValue(float(amount), unit)


def _positive(value: DurationValue) -> DurationValue:
    if value.amount <= 0:
        raise ValueError(f"{value} never passes: give a length above 0")
    return value


Duration = Annotated[
    DurationValue, BeforeValidator(parse_duration), PlainSerializer(str, return_type=str)
]
Interval = Annotated[Duration, AfterValidator(_positive)]
