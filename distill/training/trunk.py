"""The trunk of a run: its state where the cool-down of its learning rate begins.

With `schedule: {name: constant, cooldown: ...}` nothing before the cool-down depends on the budget,
so a run of a longer budget may start from the trunk of a shorter one instead of from step 0, and
ends with the weights that it would have alone. A run keeps its trunk in `trunk/`:

checkpoints/step-...    the checkpoint at that step
best/STUDENT/           the best weights up to it
metrics.jsonl           the records up to it
"""

import json
import os
import shutil
from pathlib import Path

from pydantic import ValidationError

from distill.checkpoint.layout import (
    METRICS_FILE,
    RECIPE_FILE,
    TRUNK_FILE,
    best_root,
    checkpoints_dir,
    trunk_dir,
)
from distill.checkpoint.store import (
    CheckpointError,
    TrainState,
    checkpoint_paths,
    load_newest,
    save,
)
from distill.data.locks import locked
from distill.files import atomic_directory, replace_text, write_error
from distill.recipe import DurationValue, Recipe, dump_recipe, recipe_fingerprint
from distill.recipe.text import TextError, parse
from distill.training.output_folder import refuse_foreign_output
from distill.training.plan import Plan


def trunk_fingerprint(recipe: Recipe) -> str:
    """Returns the fingerprint of a recipe without its budget and cool-downs.

    Two runs of one such fingerprint do the same steps up to the first cool-down of either.
    """
    students = {
        name: spec.model_copy(
            update={
                "schedule": spec.schedule.model_copy(
                    update={"cooldown": DurationValue(0, "iterations")}
                )
            }
        )
        for name, spec in recipe.students.items()
    }
    train = recipe.train.model_copy(update={"budget": None})
    return recipe_fingerprint(recipe.model_copy(update={"students": students, "train": train}))


def keep_trunk(output: Path, checkpoint: Path) -> None:
    """Keeps a checkpoint, with best weights and records up to it, as the trunk of a run. The main
    process alone calls this.

    Args:
        output: the folder of the run.
        checkpoint: the newest checkpoint, at the step where the first cool-down begins.

    Raises:
        WriteError: the folder cannot be written.
    """
    with atomic_directory(trunk_dir(output)) as folder:
        _copy_tree(checkpoint, checkpoints_dir(folder) / checkpoint.name)
        if best_root(output).is_dir():
            _copy_tree(best_root(output), best_root(folder))
        if (output / METRICS_FILE).is_file():
            shutil.copyfile(output / METRICS_FILE, folder / METRICS_FILE)


def start_from_trunk(plan: Plan, source: Path) -> str | None:
    """Makes the trunk of another run the first checkpoint of this one, unless it has one. Every
    process calls this; one of each machine does it.

    Args:
        source: the folder of the other run.

    Returns:
        What happened, in words, in the process that did it; None if this run has a checkpoint.

    Raises:
        InputError: the folder of the run cannot be written, or is of something else.
    """
    refuse_foreign_output(plan.recipe)
    output = plan.output
    try:
        output.mkdir(parents=True, exist_ok=True)
        with locked(output / ".tmp-trunk.lock", wait=True):
            if checkpoint_paths(checkpoints_dir(output)):
                return None
            if reason := _why_not(plan, source):
                return f"{reason}: starting at step 0"
            step = _install(plan, source)
    except OSError as error:
        raise write_error(output, error) from error
    return f"starting from step {step} of {source}"


def _why_not(plan: Plan, source: Path) -> str:
    """Returns why the run cannot start from a trunk; empty if it can."""
    try:
        checkpoint = load_newest(checkpoints_dir(trunk_dir(source)))
        recipe = Recipe.model_validate(parse(checkpoint.recipe_text))
    except (CheckpointError, ValidationError, TextError):
        return f"{source} keeps no trunk that can be read"
    if trunk_fingerprint(recipe) != trunk_fingerprint(plan.recipe):
        return f"the steps of {source} differ from those of this run"
    if plan.trunk_step is None or checkpoint.state.step > plan.trunk_step:
        return f"the trunk of {source}, {checkpoint.state.step} steps, is longer than that of this"
    return ""


def _install(plan: Plan, source: Path) -> int:
    """Copies a trunk into the folder of a run, the checkpoint last: without it nothing resumes.

    Returns:
        The step of the trunk.
    """
    output, trunk = plan.output, trunk_dir(source)
    checkpoint = load_newest(checkpoints_dir(trunk), verify=False)
    step, values = checkpoint.state.step, checkpoint.values
    origin = {
        "run": str(source),
        "step": step,
        "seconds": values["seconds"],
        "device_seconds": values["device_seconds"],
    }
    replace_text(output / TRUNK_FILE, json.dumps(origin, indent=1) + "\n")
    if (trunk / METRICS_FILE).is_file():
        shutil.copyfile(trunk / METRICS_FILE, output / METRICS_FILE)
    for student in plan.recipe.students:
        if (best_root(trunk) / student).is_dir():
            with atomic_directory(best_root(output) / student) as folder:
                _copy_tree(best_root(trunk) / student, folder)
    replace_text(output / RECIPE_FILE, dump_recipe(plan.recipe))
    save(
        checkpoints_dir(output),
        TrainState(step, checkpoint.state.images_seen),
        tensors={name: checkpoint.tensors(name) for name in checkpoint.tensor_names},
        # The other inputs are compared when the run resumes from this checkpoint.
        values={**values, "inputs": {**values["inputs"], "steps": plan.total_steps}},
        recipe_text=dump_recipe(plan.recipe),
        recipe_digest=recipe_fingerprint(plan.recipe),
        world_size=checkpoint.world_size,
    )
    return step


def _copy_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=_link_or_copy, dirs_exist_ok=True)


def _link_or_copy(source: str, target: str) -> None:
    """Links a file, since checkpoints and best weights are replaced and never changed."""
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
