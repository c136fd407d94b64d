"""metrics.jsonl: what a run records for programs, one JSON object a line."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from distill.errors import InputError
from distill.files import replace_text


def _finite(value: Any) -> Any:
    """A record with None in place of each number that JSON lacks."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsFile:
    """metrics.jsonl: one JSON object a line, with its step and its kind of event.

    The main process writes it. A file that was deleted, moved or rotated during the run is replaced
    by a new one at the same path, so that no later record is lost.
    """

    def __init__(
        self, path: Path, write: bool, say: Callable[[str], None] = lambda message: None
    ) -> None:
        self._path, self._say = path, say
        self._file: TextIO | None = path.open("a") if write else None

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one record and hand it to the operating system.

        Raises:
            InputError: the disk is full, or the folder is gone or cannot be written.
        """
        if self._file:
            record = {"event": event, "step": step, "time": round(time.time(), 3), **values}
            try:
                if not self._is_at_its_path(self._file):
                    self._file.close()
                    self._file = self._path.open("a")
                    self._say(
                        f"{self._path}: was deleted or moved; records from step {step} on are in a"
                        " new file there"
                    )
                self._file.write(json.dumps(_finite(record)) + "\n")
                self._file.flush()
            except OSError as error:
                raise InputError(
                    f"{self._path}: cannot be written: {error}; free some space, or set output= to"
                    " another folder. The same command resumes the run from its last checkpoint"
                ) from error

    def _is_at_its_path(self, file: TextIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()


def truncate_metrics(path: Path, step: int) -> int:
    """Drop the records whose "step" is greater than `step`, and incomplete lines, in one step.

    A resumed run computes those records again. Records without a "step" stay. A missing file counts
    as an empty one.

    Returns:
        The number of lines dropped.

    Raises:
        OSError: the file cannot be rewritten.
    """
    if not path.exists():
        return 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    current = [line for line in lines if _is_current(line, step)]
    replace_text(path, "".join(f"{line}\n" for line in current))
    return len(lines) - len(current)


def _is_current(line: str, step: int) -> bool:
    try:
        record: Any = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and ("step" not in record or record["step"] <= step)
