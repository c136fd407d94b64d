"""Durations: "300 epochs", "750000 iterations", "600M samples" become steps in one place."""

import re
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
_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgKMG]?)\s*([a-z]+)\s*")


class DurationValue(NamedTuple):
    """A length of training in the unit its author thought in."""

    amount: float
    unit: Unit

    def __str__(self) -> str:
        number = int(self.amount) if self.amount == int(self.amount) else self.amount
        return f"{number} {self.unit}"

    def steps(self, *, steps_per_epoch: int, batch_size_global: int) -> int:
        """Optimizer steps, rounded to the nearest. An epoch is `steps_per_epoch` steps, so "300 epochs" is exact."""
        if self.unit == "iterations":
            return round(self.amount)
        if self.unit == "epochs":
            return round(self.amount * steps_per_epoch)
        return round(self.amount / batch_size_global)


def parse_duration(value: Any) -> DurationValue:
    """Parse "300 epochs", "187.5k iterations", "1.2M samples".

    Raises:
        ValueError: no number, no unit, or an unknown unit.
    """
    if isinstance(value, DurationValue):
        return value
    match = _PATTERN.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[3] not in _UNITS:
        raise ValueError(
            f"{value!r} is no duration: write a number and a unit, as in '300 epochs', '750k iterations' or '10M samples'"
        )
    return DurationValue(float(match[1]) * _MULTIPLES[match[2].lower()], _UNITS[match[3]])


def _positive(value: DurationValue) -> DurationValue:
    if value.amount <= 0:
        raise ValueError(f"{value} never passes: give a length above 0")
    return value


Duration = Annotated[DurationValue, BeforeValidator(parse_duration), PlainSerializer(str, return_type=str)]
Interval = Annotated[Duration, AfterValidator(_positive)]
