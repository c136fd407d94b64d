"""report.json as one model. A part that is missing or of another kind is None, never an error."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from distill.errors import InputError

LARGEST = 1e300
"""Numbers beyond it count as absent: axes and sums would overflow."""
_MOST = 2**53  # of counts; beyond it a float is not exact


def finite(value: Any) -> float | None:
    """Return a finite number as a float; None for anything else, and beyond LARGEST."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        return None
    return float(value) if abs(value) >= 1 / LARGEST else 0.0


def _not_negative(value: Any) -> float | None:
    number = finite(value)
    return None if number is None or number < 0 else number


def _or_none(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:
        return None


def _members(value: Any) -> Any:
    """Leave out the members of a mapping that are no mappings."""
    if not isinstance(value, Mapping):
        return {}
    return {name: member for name, member in value.items() if isinstance(member, Mapping)}


_LENIENT = WrapValidator(_or_none)
_Number = Annotated[float | None, WrapValidator(lambda value, _: _not_negative(value))]
_Count = Annotated[Annotated[int, Field(ge=0, le=_MOST)] | None, _LENIENT]
_Text = Annotated[str | None, _LENIENT]
_Values = Annotated[dict[str, Any] | None, _LENIENT]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class StudentResult(_Part):
    """A student in report.json. `best`, `last` and each of `averages` are figures by name."""

    parameters: _Count = None
    stopped_at: _Count = None
    best: _Values = None
    last: _Values = None
    averages: Annotated[dict[str, Any], WrapValidator(lambda value, _: _members(value))] = {}


class Throughput(_Part):
    """The speed of a run."""

    images_per_s: _Number = None
    training_seconds: _Number = None
    data_wait_seconds: _Number = None


class Images(_Part):
    """A set of images."""

    kind: _Text = None
    split: _Text = None
    path: _Text = None
    stage: _Text = None
    images: _Count = None
    images_used: _Count = None


class Data(_Part):
    """The images of a run."""

    train: Annotated[list[Images] | None, _LENIENT] = None
    eval: Annotated[Images | None, _LENIENT] = None
    num_classes: _Count = None


class RunResult(_Part):
    """What report.json says. Without `steps` and `students` it is no report."""

    steps: Annotated[int, Field(ge=0, le=_MOST)]
    students: dict[str, Annotated[StudentResult | None, _LENIENT]]
    run: _Text = None
    epochs: _Number = None
    seconds: _Number = None
    device_hours: _Number = None
    energy_j: _Number = None
    num_processes: _Count = None
    device: _Text = None
    num_skipped: _Count = None
    throughput: Annotated[Throughput | None, _LENIENT] = None
    data: Annotated[Data | None, _LENIENT] = None
    teacher: _Values = None
    teachers: _Values = None
    warnings: Annotated[list[Any] | None, _LENIENT] = None
    versions: _Values = None

    @property
    def missing(self) -> list[str]:
        """The parts that report.json should have and does not."""
        # Runs of one teacher have no `teachers`.
        may_be_none = ({"teacher", "energy_j"} & self.model_fields_set) | {"teachers"}
        parts = [
            name
            for name in type(self).model_fields
            if name not in may_be_none and getattr(self, name) is None
        ]
        students = [name for name, result in self.students.items() if result is None]
        return parts + [f"students.{name}" for name in students]

    @property
    def all_stopped(self) -> bool:
        """Whether every student stopped because its loss was not finite."""
        return all(each and each.stopped_at is not None for each in self.students.values())


def read_result(file: Path) -> RunResult | None:
    """Return report.json; None if there is none.

    Raises:
        InputError: it is damaged.
    """
    if not file.is_file():
        return None
    try:
        return RunResult.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc'])) or 'its content'}: {first['msg']}"
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)
    raise InputError(
        f"{file}: damaged ({reason}): delete it; the report then says that the run is unfinished"
    )
