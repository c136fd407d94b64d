"""What the folder of a run records, whether the run has ended or not."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.checkpoint.layout import METRICS_FILE, RECIPE_FILE, REPORT_FILE, checkpoints_dir
from distill.checkpoint.store import Checkpoint, load_newest
from distill.errors import InputError
from distill.recipe import Recipe, load_recipe
from distill.training.result_file import RunResult, finite, read_result

Record = Mapping[str, Any]


@dataclass(frozen=True)
class RunRecords:
    """The records of a run.

    Attributes:
        recipe_text: recipe.yaml, the resolved recipe.
        trained, evaluated: the lines of metrics.jsonl of these events, in order.
        stopped: the step at which a student stopped because its loss was not finite.
        num_damaged: lines of metrics.jsonl that are no records; a last line that is still being
            written is not counted.
        result: report.json; None of a run that has not ended.
        checkpoint: the newest one; None if there is none that can be read.
    """

    folder: Path
    recipe: Recipe
    recipe_text: str
    trained: tuple[Record, ...]
    evaluated: tuple[Record, ...]
    stopped: Mapping[str, int]
    num_damaged: int
    result: RunResult | None
    checkpoint: Checkpoint | None

    @property
    def finished(self) -> bool:
        """Whether the run has ended."""
        return self.result is not None

    @property
    def step(self) -> int:
        """The last step that is recorded."""
        if self.result is not None:
            return self.result.steps
        return _last_step(self.trained, self.evaluated) or 0

    @property
    def num_lost_steps(self) -> int:
        """The steps of a finished run after its last record, which every run writes at its end."""
        if self.result is None or self.result.all_stopped:
            return 0
        return self.result.steps - (_last_step(self.trained, self.evaluated) or 0)

    @property
    def epoch(self) -> float | None:
        """The epochs that are recorded; None if nothing was logged yet."""
        if self.result is not None:
            return self.result.epochs
        return number(self.trained[-1], "epoch") if self.trained else None

    @property
    def last_time(self) -> float | None:
        """When the last record was written, in seconds since 1970."""
        times = [number(record, "time") for record in (*self.trained, *self.evaluated)]
        return max((time for time in times if time is not None), default=None)


def number(record: Record, key: str) -> float | None:
    """Return a value that should be a finite number; None if it is absent or something else."""
    return finite(record.get(key))


class NothingRecordedError(InputError):
    """A run has begun and recorded nothing yet."""


def read_run(folder: Path) -> RunRecords:
    """Read the records of a run, which may be training at the same time.

    Raises:
        InputError: it is no run.
        NothingRecordedError: it has recorded nothing yet.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder: name the folder of a run")
    recipe_file = folder / RECIPE_FILE
    if not recipe_file.is_file():
        raise InputError(
            f"{folder}: is not the folder of a run, since it holds no {RECIPE_FILE}: name one such"
            " as runs/quickstart/students"
        )
    recipe = load_recipe(recipe_file)
    trained, evaluated, stopped, num_damaged = _read_metrics(folder / METRICS_FILE)
    result = read_result(folder / REPORT_FILE)
    last_step = _last_step(trained, evaluated)
    if result is not None and not _belongs(result, recipe, last_step):
        result = None
    if result is None and last_step is None:
        raise NothingRecordedError(
            f"{folder}: this run has recorded nothing yet, so there is nothing to report: wait for"
            f" its first entry in {METRICS_FILE} (log.every, {recipe.log.every})"
        )
    return RunRecords(
        folder=folder,
        recipe=recipe,
        recipe_text=recipe_file.read_text(encoding="utf-8", errors="replace"),
        trained=trained,
        evaluated=evaluated,
        stopped=stopped,
        num_damaged=num_damaged,
        result=result,
        checkpoint=_newest_checkpoint(folder),
    )


def _last_step(trained: Sequence[Record], evaluated: Sequence[Record]) -> int | None:
    return max((record["step"] for record in (*trained, *evaluated)), default=None)


def _belongs(result: RunResult, recipe: Recipe, last_step: int | None) -> bool:
    """Whether a report is of this run. Fewer records than its steps do not matter: a run that
    starts deletes an older report, so they were lost later.
    """
    return (
        result.run in (None, recipe.name)
        and result.students.keys() <= recipe.students.keys()
        and (last_step is None or last_step <= result.steps)
    )


def _read_metrics(
    file: Path,
) -> tuple[tuple[Record, ...], tuple[Record, ...], dict[str, int], int]:
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return (), (), {}, 0
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error}: make it readable") from error
    found: dict[str, list[Record]] = {"train": [], "evaluate": []}
    stopped: dict[str, int] = {}
    num_damaged = 0
    # The last part has no line end: it is empty, or a record that is being written.
    for line in lines[:-1]:
        record = _record(line)
        if record is None:
            num_damaged += 1
        elif record["event"] == "stopped":
            stopped[str(record.get("student"))] = record["step"]
        elif record["event"] in found:
            found[record["event"]].append(record)
    return tuple(found["train"]), tuple(found["evaluate"]), stopped, num_damaged


_LAST_STEP = 10**12  # further ones are damage
_MODELS = {"train": "students", "evaluate": "models"}


def _record(line: bytes) -> Record | None:
    """Return the record in a line; None if it is damaged."""
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    if not 0 <= record["step"] <= _LAST_STEP:
        return None
    event = record.get("event")
    if not isinstance(event, str):
        return None
    if event in _MODELS:
        models = record.get(_MODELS[event])
        if not isinstance(models, dict) or not all(isinstance(m, dict) for m in models.values()):
            return None
    return record


def _newest_checkpoint(folder: Path) -> Checkpoint | None:
    try:
        return load_newest(checkpoints_dir(folder), verify=False)
    except (InputError, OSError, ValueError, LookupError):  # none yet, or deleted at this moment
        return None
