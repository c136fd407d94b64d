"""The folder of a run: one process writes in it, and a run begins or resumes there."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from distill.checkpoint.differences import moved_streams
from distill.checkpoint.layout import (
    METRICS_FILE,
    RECIPE_FILE,
    REPORT_FILE,
    best_root,
    checkpoints_dir,
)
from distill.checkpoint.lock import FolderLock
from distill.checkpoint.store import latest
from distill.errors import InputError
from distill.files import clean, clean_files, replace_text, write_error
from distill.recipe import Recipe, dump_recipe, recipe_fingerprint
from distill.training.inputs import refuse_other_inputs
from distill.training.metrics import truncate_metrics
from distill.training.output_folder import refuse_foreign_output


def open_run_folder(
    output: Path,
    recipe: Recipe,
    run_lock: FolderLock,
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
