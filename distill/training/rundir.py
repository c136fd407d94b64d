"""The folder of a run: what is in it, how a run begins in it, and where it goes on.

recipe.yaml     the resolved recipe
metrics.jsonl   one record an event
checkpoints/    step-00001234/ ...: everything needed to go on
best/STUDENT/   the best weights so far, in the form that timm loads
report.json     the result of a finished run
"""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from distill.checkpoint import Checkpoint, clean, latest, load, replace_text, truncate_jsonl
from distill.checkpoint.differences import moved_streams
from distill.errors import InputError
from distill.recipe import Recipe, dump_recipe, recipe_digest
from distill.training.inputs import refuse_other_inputs
from distill.training.output_folder import (
    LOCK_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    REPORT_FILE,
    best_dir,
    checkpoints_dir,
    refuse_foreign_output,
)

__all__ = [
    "METRICS_FILE",
    "RECIPE_FILE",
    "REPORT_FILE",
    "RunLock",
    "begin",
    "best_dir",
    "best_student",
    "checkpoints_dir",
    "newest_checkpoint",
    "reopen",
]


class RunLock:
    """This process's claim on a run's folder: two runs in one would delete each other's files.

    A POSIX record lock: it ends with the process, however that ends, and forked loader workers do
      not inherit it.
    """

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    def take(self, output: Path) -> None:
        """Claim the folder, and let go of the one before.

        Raises:
            InputError: another process writes here.
        """
        self.release()
        file = (output / LOCK_FILE).open("a+")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = file.read().strip() or "another process"
                file.close()
                raise InputError(
                    f"{output}: {holder} is writing here: wait for it to end, or choose another"
                    " folder with output="
                ) from error
            # A file system without locks: go on without.
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Give the folder up."""
        if self._file is not None:
            self._file.close()
            self._file = None


def begin(
    output: Path,
    recipe: Recipe,
    claim: RunLock,
    say: Callable[[str], None],
    inputs: dict[str, str | int],
) -> Path | None:
    """Make the folder ready and find the checkpoint to go on from. The main process alone calls
    this.

    `inputs`: what data, their order and teacher came to; nothing is touched where a checkpoint had
      others.

    Under `resume: never` an earlier run in the folder is moved aside, not deleted.

    Returns:
        The newest whole checkpoint, or None to start at step 0.

    Raises:
        InputError: the folder cannot be written, another process writes in it, or it holds a run of
            another recipe or of other data, or only damaged checkpoints.
    """
    refuse_foreign_output(recipe)  # again: the data may have taken minutes to read
    try:
        output.mkdir(parents=True, exist_ok=True)
        claim.take(output)
        if recipe.resume == "never" and (output / RECIPE_FILE).exists():
            place = output.resolve()  # a link stays, and what it names is moved
            aside = place.with_name(f"{place.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
            place.rename(aside)
            say(f"resume: never: the run that was in {output} is now in {aside}")
            place.mkdir()
            claim.take(output)
        checkpoint = latest(
            checkpoints_dir(output), recipe_digest(recipe), dump_recipe(recipe), report=say
        )
        if checkpoint:
            refuse_other_inputs(checkpoint.path, checkpoint.values["inputs"], inputs)
        if checkpoint and (moved := moved_streams(checkpoint.recipe_text, dump_recipe(recipe))):
            say(
                f"changed since the checkpoint: {', '.join(moved)}; shards of the same names,"
                " counts and checksums are taken for the same, and tar files whose checksums"
                " nobody says by names and counts alone"
            )
        clean(output / "best")
        truncate_jsonl(output / METRICS_FILE, checkpoint.state.step if checkpoint else 0)
        replace_text(output / RECIPE_FILE, dump_recipe(recipe))
    except OSError as error:
        reason = (
            "is a file" if output.is_file() else f"cannot be written: {error.strerror or error}"
        )
        raise InputError(f"{output}: {reason}; choose another folder with output=") from error
    return checkpoint.path if checkpoint else None


def best_student(output: Path) -> str | None:
    """The student that a finished run's report calls the best; None without a report.

    Raises:
        InputError: the report is damaged.
    """
    report = output / REPORT_FILE
    if not report.is_file():
        return None
    try:
        best: str | None = json.loads(report.read_text())["best"]
    except (OSError, ValueError, LookupError) as error:
        raise InputError(f"{report}: damaged ({error}): delete it, and name the student") from error
    return best


def newest_checkpoint(output: Path, verify: bool = True) -> Checkpoint:
    """The newest checkpoint of a run, whatever its recipe; `verify` reads all of it against its
    checksums.

    Raises:
        InputError: there is none, or it is damaged.
    """
    paths = sorted(
        checkpoints_dir(output).glob("step-[0-9]*"),
        key=lambda path: int(path.name.removeprefix("step-")),
    )
    if not paths:
        raise InputError(f"{output}: this run has no checkpoint")
    return load(paths[-1], verify=verify)


def reopen(path: Path) -> Checkpoint:
    """A checkpoint that `begin` has verified."""
    return load(path, verify=False)
