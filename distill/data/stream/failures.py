"""Files that record why another file could not be made, how often in a row and in which run, for
the other processes of the machine.
"""

import json
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from distill.errors import InputError

# A run does not try to make a file again for this long, and twice as long after each further
# failure.
_RETRY_AFTER_S = 60.0
_MAX_RETRY_AFTER_S = 600.0
# Older records are removed.
_REMOVE_AFTER_S = 3600.0


class FailedElsewhereError(OSError):
    """Another process, or this one a while ago, failed to make the file. The message is that of the
    failure.
    """


def run_token() -> str:
    """A token that the processes of one run share and no two runs: a new command tries again what
    failed in the one before.

    Ranks derive it from their launcher's environment variables; a process that was started alone
    draws a random one. Workers receive it from their process.
    """
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if run_id is not None:  # "none" unless the user gives one, so the launcher's process id too
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT")
        return f"torchrun {run_id} {restarts} {os.getppid()}"
    # A step of one task may be a shell in which many commands are given.
    if os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return f"slurm {os.environ.get('SLURM_JOB_ID')} {os.environ.get('SLURM_STEP_ID')}"
    return uuid.uuid4().hex


def write_failure(place: Path, error: Exception, run: str) -> None:
    """Record a failure at `place`, counting those of this run in a row."""
    before = _read(place)
    row = 1 if before is None or before["run"] != run else before["row"] + 1
    record = {
        "time": time.time(),
        "run": run,
        "row": row,
        "input": isinstance(error, InputError),
        "message": str(error),
    }
    with suppress(OSError):
        place.write_text(json.dumps(record))


def raise_failure(place: Path, since: float, run: str) -> None:
    """Raise the recorded failure if it happened after `since` (seconds of this machine's clock), or
    if it is of this run and too recent to try again.
    """
    record = _read(place)
    if record is None:
        return
    wait_s = min(_MAX_RETRY_AFTER_S, _RETRY_AFTER_S * 2.0 ** min(record["row"] - 1, 10))
    is_recent = record["run"] == run and 0 <= time.time() - record["time"] < wait_s
    if record["time"] >= since or is_recent:
        raise (
            InputError(record["message"])
            if record["input"]
            else FailedElsewhereError(record["message"])
        )


def remove_old_failure(place: Path) -> None:
    """Remove a record that is too old to matter."""
    with suppress(FileNotFoundError):
        if place.stat().st_mtime < time.time() - _REMOVE_AFTER_S:
            place.unlink()


def _read(place: Path) -> dict[str, Any] | None:
    """The record, or None if it cannot be read."""
    try:
        record = json.loads(place.read_text())
        return {
            "time": float(record["time"]),
            "run": str(record["run"]),
            "row": int(record["row"]),
            "input": bool(record["input"]),
            "message": str(record["message"]),
        }
    except (OSError, ValueError, LookupError, TypeError):
        return None
