"""The figures of each cell of a study, from the report.json of the run that trains it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from distill.checkpoint.layout import REPORT_FILE
from distill.errors import InputError
from distill.study.fleets import Run
from distill.training.result_file import RunResult, StudentResult, finite, read_result

BEST = "best"
"""The figure that is the best value of the run's metric over all evaluations."""
DEVICE_HOURS = "device_hours"
"""The figure that is the time of the whole run, times its devices."""
Status = Literal["not run", "training", "done", "diverged"]


@dataclass(frozen=True)
class CellResult:
    """What is known of a cell.

    Attributes:
        figures: by name: those of the last evaluation, BEST and DEVICE_HOURS.
        cost: what DEVICE_HOURS are of: "2 students on 8 x NVIDIA A100"; empty where they are not
            known.
        run: the run that trains it; None if none does.
        student: its name in that run.
    """

    status: Status
    figures: Mapping[str, float] = field(default_factory=dict)
    run: Run | None = None
    student: str = ""
    cost: str = ""


def read_results(
    folder: Path, runs: Mapping[str, tuple[Run, str]]
) -> tuple[dict[str, CellResult], list[str]]:
    """Returns the result of each cell by its key, and a sentence for each report that is damaged.

    Args:
        folder: of the study.
        runs: for each key of a cell, the run that trains it and the state of that run.
    """
    reports: dict[str, RunResult | None] = {}
    damaged: list[str] = []
    results = {}
    for key, (run, state) in runs.items():
        if run.name not in reports:
            try:
                reports[run.name] = read_result(folder / run.name / REPORT_FILE)
            except InputError as error:
                reports[run.name] = None
                damaged.append(str(error))
        student = next(name for name, own in run.cells.items() if own == key)
        found = reports[run.name]
        own = found.students.get(student) if found else None
        if own is None:
            status: Status = "not run" if state == "new" else "training"
            results[key] = CellResult(status, {}, run, student)
        else:
            status = "done" if own.stopped_at is None else "diverged"
            figures, cost = _figures(own), ""
            if found and state == "done" and (hours := finite(found.device_hours)) is not None:
                figures[DEVICE_HOURS] = hours
                cost = f"{len(run.cells)} students on {found.num_processes} x {found.device}"
            results[key] = CellResult(status, figures, run, student, cost)
    return results, damaged


def _figures(student: StudentResult) -> dict[str, float]:
    """Returns the figures of a student by name."""
    found = {name: finite(value) for name, value in (student.last or {}).items()}
    best = student.best or {}
    if isinstance(metric := best.get("metric"), str):
        found[BEST] = finite(best.get(metric))
    return {name: value for name, value in found.items() if value is not None}
