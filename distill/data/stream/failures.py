"""What the processes of a machine tell each other of a file that could not be made: why, how often
in a row, and in which run.
"""

import json
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from distill.errors import InputError

# A file that could not be made is left alone for so long by the whole run, and twice as long after
# each further failure.
_REST_S = 60.0
_LONGEST_REST_S = 600.0
# After which nobody wants to know any more.
_KEPT_S = 3600.0


class FailedElsewhereError(OSError):
    """Another process, or this one a while ago, tried to make the file, and failed. The message is
    what it said.
    """


def run_token() -> str:
    """What the processes of one run have in common, and no two runs: a new command tries anew what
    failed in the one before.

    Ranks find it in what their launcher tells them; a process that was started alone makes it up.
    Workers are handed it.
    """
    told = os.environ
    if (
        "TORCHELASTIC_RUN_ID" in told
    ):  # "none" unless the user gives one, so the launcher's process too
        return (
            f"torchrun {told['TORCHELASTIC_RUN_ID']} {told.get('TORCHELASTIC_RESTART_COUNT')}"
            f" {os.getppid()}"
        )
    if (
        told.get("SLURM_STEP_NUM_TASKS", "1") != "1"
    ):  # of one task it may be a shell, in which many commands are given
        return f"slurm {told.get('SLURM_JOB_ID')} {told.get('SLURM_STEP_ID')}"
    return uuid.uuid4().hex


def write_failure(place: Path, error: Exception, run: str) -> None:
    """Keep at `place` what was said; as one more in a row, if this run failed there before."""
    before = _read(place)
    row = 1 if before is None or before["run"] != run else before["row"] + 1
    said = {
        "time": time.time(),
        "run": run,
        "row": row,
        "input": isinstance(error, InputError),
        "message": str(error),
    }
    with suppress(OSError):
        place.write_text(json.dumps(said))


def raise_failure(place: Path, asked: float, run: str) -> None:
    """Raises what a maker said that failed after `asked`, in seconds of this machine's clock; or
    that is of this run and rests.
    """
    said = _read(place)
    if said is None:
        return
    rest_s = min(_LONGEST_REST_S, _REST_S * 2.0 ** min(said["row"] - 1, 10))
    rests = said["run"] == run and 0 <= time.time() - said["time"] < rest_s
    if said["time"] >= asked or rests:
        raise (
            InputError(said["message"]) if said["input"] else FailedElsewhereError(said["message"])
        )


def remove_old_failure(place: Path) -> None:
    """Removes what nobody wants to know any more."""
    with suppress(FileNotFoundError):
        if place.stat().st_mtime < time.time() - _KEPT_S:
            place.unlink()


def _read(place: Path) -> dict[str, Any] | None:
    """What was kept, or None where that is nothing of ours."""
    try:
        said = json.loads(place.read_text())
        return {
            "time": float(said["time"]),
            "run": str(said["run"]),
            "row": int(said["row"]),
            "input": bool(said["input"]),
            "message": str(said["message"]),
        }
    except (OSError, ValueError, LookupError, TypeError):
        return None
