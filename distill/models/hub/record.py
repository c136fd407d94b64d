"""What distill.json and report.json must say, so that a card can be made of them and published."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from distill.errors import InputError, printable
from distill.recipe.teachers import is_teacher

_Percent = Annotated[float, Field(ge=0, le=100)]
_NotNegative = Annotated[float, Field(ge=0)]
_Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, strict=True)


class _Teacher(_Part):
    model: str
    weights: str
    sha256: str
    license: str | None = None


class _Record(_Part):
    student: str | None = None
    model: str | None = None
    run: str | None = None
    weights: str | None = None
    step: _Count | None = None
    began_with: str | None = None
    began_with_license: str | None = None
    teacher: _Teacher | None = None
    teachers: dict[str, _Teacher] | None = None
    top1: _Percent | None = None
    top5: _Percent | None = None
    loss: _NotNegative | None = None
    num_samples: Annotated[int, Field(ge=1)] | None = None
    num_skipped: _Count | None = None
    scored_on: str | None = None


def _of_teachers(origins: object) -> object:
    """Leave out the students, of which a card shows what distill.json says."""
    if not isinstance(origins, Mapping):
        return origins
    return {row: each for row, each in origins.items() if is_teacher(str(row))}


class _Stage(_Part):
    images_used: _Count


class _Data(_Part):
    train: list[_Stage] = []


class _Report(_Part):
    students: dict[str, dict[str, Any] | None]
    origins: Annotated[dict[str, _Teacher], BeforeValidator(_of_teachers)] = {}
    data: _Data | None = None
    device_hours: _NotNegative | None = None
    num_processes: _Count | None = None
    device: str | None = None
    versions: dict[str, str] | None = None


def check_report(report: object, file: Path) -> None:
    """Check the content of a report.json, as far as a card shows it.

    Raises:
        InputError: a part is missing or of another type.
    """
    fix = "delete it, and run the same `distill train` command, which writes it again"
    checked = _checked(_Report, report, file, fix)
    if checked.device_hours is not None and None in (checked.num_processes, checked.device):
        raise InputError(f"{file}: has device_hours, and not of how many devices: {fix}")


_Checked = TypeVar("_Checked", bound=_Part)


def _checked(kind: type[_Checked], content: object, file: Path, fix: str) -> _Checked:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(printable(str(part)) for part in first["loc"]) or "its content"
        given = printable(repr(first["input"]))[:80]
        raise InputError(f"{file}: {where} is {given}: {first['msg']}: {fix}") from error


def check_record(record: Mapping[str, Any], file: Path) -> None:
    """Check the content of a distill.json, which a user may have edited.

    Raises:
        InputError: a value is of another type or out of bounds, a number is not finite, or the
            number of images of an accuracy is missing.
    """
    fix = "it was changed by hand; export again"
    checked = _checked(_Record, dict(record), file, fix)
    try:
        json.dumps(dict(record), allow_nan=False)
    except ValueError as error:
        raise InputError(f"{file}: has a number that is not finite (NaN or Infinity): {fix}") from (
            error
        )
    if checked.top1 is not None and checked.num_samples is None:
        raise InputError(f"{file}: has top1, and not the num_samples that it is of: {fix}")
    for key in ("weights", "step"):
        if key in record and record[key] is None:
            raise InputError(f"{file}: {key} is null: {fix}")
    if "step" in record and "weights" not in record:
        raise InputError(f"{file}: has step, and not the weights that it is of: {fix}")
