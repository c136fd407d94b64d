"""The folder of a run: one process writes in it, and a run begins or resumes there."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from distill.checkpoint.differences import moved_streams
from distill.checkpoint.layout import (
    LOCK_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    REPORT_FILE,
    best_root,
    checkpoints_dir,
)
from distill.checkpoint.store import latest
from distill.errors import InputError
from distill.files import clean, clean_files, replace_text, write_error
from distill.recipe import Recipe, dump_recipe, recipe_fingerprint
from distill.training.inputs import refuse_other_inputs
from distill.training.metrics import truncate_metrics
from distill.training.output_folder import refuse_foreign_output


class RunLock:
    """The lock on a run's folder: two runs in one folder would delete each other's files.

    A POSIX record lock: it ends with the process, however that ends, and forked loader workers do
    not inherit it.
    """

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    def acquire(self, output: Path, key: str = "output") -> None:
        """Lock the folder, and release the one locked before.

        Args:
            key: of the recipe that names the folder.

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
                    f" folder with {key}="
                ) from error
            # A file system without locks: continue without one.
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Unlock the folder."""
        if self._file is not None:
            self._file.close()
            self._file = None


def open_run_folder(
    output: Path,
    recipe: Recipe,
    run_lock: RunLock,
    say: Callable[[str], None],
    inputs: dict[str, str | int],
) -> Path | None:
    """Lock and prepare the folder, and find the checkpoint to resume from. The main process alone
    calls this.

    Under `resume: never` an earlier run in the folder is moved to another folder, not deleted.
    A report.json that does not end at the step of the checkpoint is deleted.

    Args:
        inputs: what data, their order and teacher are. If the checkpoint had others, this raises
            before it changes anything.

    Returns:
        The newest intact checkpoint, or None to start at step 0.

    Raises:
        InputError: the folder cannot be written, another process writes in it, or it holds a run of
            another recipe or of other data, or only damaged checkpoints.
    """
    refuse_foreign_output(recipe)  # again: the data may have taken minutes to read
    try:
        output.mkdir(parents=True, exist_ok=True)
        run_lock.acquire(output)
        if recipe.resume == "never" and (output / RECIPE_FILE).exists():
            folder = output.resolve()  # a link stays, and the folder it names is moved
            moved_to = folder.with_name(f"{folder.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
            folder.rename(moved_to)
            say(f"resume: never: the run that was in {output} is now in {moved_to}")
            folder.mkdir()
            run_lock.acquire(output)
        checkpoint = latest(
            checkpoints_dir(output), recipe_fingerprint(recipe), dump_recipe(recipe), report=say
        )
        if checkpoint:
            refuse_other_inputs(checkpoint.path, checkpoint.values["inputs"], inputs)
        if checkpoint and (moved := moved_streams(checkpoint.recipe_text, dump_recipe(recipe))):
            say(
                f"changed since the checkpoint: {', '.join(moved)}; shards with the same names,"
                " counts and checksums are taken as the same, and tar files without known checksums"
                " by names and counts alone"
            )
        clean(best_root(output))
        clean_files(output, (RECIPE_FILE, METRICS_FILE, REPORT_FILE))
        step = checkpoint.state.step if checkpoint else 0
        _remove_old_report(output / REPORT_FILE, step)
        truncate_metrics(output / METRICS_FILE, step)
        replace_text(output / RECIPE_FILE, dump_recipe(recipe))
    except OSError as error:
        if output.is_file():
            raise InputError(f"{output}: is a file; choose another folder with output=") from error
        raise write_error(output, error) from error
    return checkpoint.path if checkpoint else None


def _remove_old_report(file: Path, step: int) -> None:
    """Delete a report of other steps than those of the checkpoint: of an earlier run in the folder,
    or of steps that are trained again. It would present a run that is training as finished.
    """
    try:
        report = json.loads(file.read_bytes())
    except FileNotFoundError:
        return
    except (ValueError, RecursionError):
        report = None
    if not isinstance(report, dict) or report.get("steps") != step:
        file.unlink()
