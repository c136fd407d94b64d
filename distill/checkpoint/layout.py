"""The folder of a run. This module imports no torch.

recipe.yaml     the resolved recipe
metrics.jsonl   one record an event
checkpoints/    step-00001234/ ...: everything that a resume needs
best/STUDENT/   the best weights so far, in the form that timm loads
report.json     the result of a finished run
trunk/          the state where the first cool-down began, for runs of a longer budget
trunk.json      the run that this one continues the trunk of
.run_id         the id of the run in the repository that it publishes to
report.html, report.md, curves.png    what `distill report` writes
.lock           held by the process that writes here
"""

import json
import re
from pathlib import Path

from distill.errors import InputError

RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.jsonl"
REPORT_FILE = "report.json"
PAGE_FILE, PAGE_TEXT_FILE, CURVES_FILE = "report.html", "report.md", "curves.png"
LOCK_FILE = ".lock"
RUN_ID_FILE = ".run_id"
TRUNK_FILE = "trunk.json"
# In the folder of a checkpoint, with recipe.yaml and the tensors.
MANIFEST_FILE = "manifest.json"
STATE_FILE = "state.json"

_STEP = re.compile(r"step-(\d{8,})")


def best_root(output: Path) -> Path:
    """The folder of the best weights of all students."""
    return output / "best"


def best_dir(output: Path, student: str) -> Path:
    """The folder of a student's best weights."""
    return best_root(output) / student


def reported_best(output: Path) -> str | None:
    """The best student of a finished run, as its report says; None without a report, and for a run
    that has no best student.

    Raises:
        InputError: the report is damaged.
    """
    report = output / REPORT_FILE
    if not report.is_file():
        return None
    try:
        best = json.loads(report.read_text(encoding="utf-8"))["best"]
        if best is not None and not isinstance(best, str):
            raise ValueError(f"best is {best!r}")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{report}: damaged ({error}): name the student") from error
    return best


def checkpoints_dir(output: Path) -> Path:
    """The folder of a run's checkpoints."""
    return output / "checkpoints"


def trunk_dir(output: Path) -> Path:
    """The folder of a run's trunk."""
    return output / "trunk"


def checkpoint_name(step: int) -> str:
    """The name of the folder of a checkpoint."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step in the name of a checkpoint; None if the name is not one of a checkpoint."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint."""
    return (folder / MANIFEST_FILE).is_file()
