"""Resuming on a fresh machine from a checkpoint that a run published on the Hub."""

import shutil
from pathlib import Path

from distill.checkpoint.layout import (
    MANIFEST_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    RUN_ID_FILE,
    best_root,
    checkpoints_dir,
    step_of,
)
from distill.checkpoint.store import (
    DamagedError,
    checkpoint_paths,
    load,
    refuse_another_recipe,
)
from distill.data.locks import locked
from distill.errors import InputError
from distill.files import atomic_directory, write_error
from distill.models.hub.commit import Target, connect, look_at, without_progress_bars
from distill.models.hub.faults import read_fault
from distill.recipe import Recipe, dump_recipe, recipe_fingerprint
from distill.recipe.hub_names import HubModel, is_hub_name, parse_hub_name
from distill.recipe.load import fingerprint_today
from distill.training.output_folder import refuse_foreign_output

# Where a run's state is in its repository.
HUB_CHECKPOINTS = "run/checkpoints"
HUB_BEST = "run/best"
HUB_ID = "run/id"
_FOLDER = ".tmp-resume"


def resume_from_hub(recipe: Recipe) -> str | None:
    """Download the checkpoint that `resume` names into the folder of the run, unless one is there.
    Every process calls this; one of each machine downloads.

    Returns:
        What happened, in words, in the process that did it; None if there is nothing to say.

    Raises:
        InputError: the repository cannot be read, or has no checkpoint.
    """
    if not is_hub_name(recipe.resume):
        return None
    refuse_foreign_output(recipe)
    output = Path(recipe.output_dir).expanduser()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(output, error) from error
    with locked(output / ".tmp-resume.lock", wait=True):
        if checkpoint_paths(checkpoints_dir(output)):
            return None
        return _download(parse_hub_name(recipe.resume), recipe, output)


def _download(model: HubModel, recipe: Recipe, output: Path) -> str:
    from huggingface_hub import errors

    key = "resume"
    own = recipe.log.publish is not None and recipe.log.publish.repo == model.repo
    try:
        info = connect().model_info(model.repo, revision=model.revision)
        assert info.sha is not None
        commit = info.sha
        names = [each.rfilename for each in info.siblings or ()]
    except errors.RepositoryNotFoundError as error:
        if own and _is_absent(model):
            return f"{model} is not there yet: starting at step 0"
        raise read_fault(error, model, key) from error
    except Exception as error:  # of huggingface_hub and its HTTP library
        raise read_fault(error, model, key) from error
    folders = [name.split("/")[2:] for name in names if name.startswith(f"{HUB_CHECKPOINTS}/")]
    steps = {
        step: folder
        for folder, *rest in folders
        if rest == [MANIFEST_FILE] and (step := step_of(folder)) is not None
    }
    if not steps:
        if own and not any(step_of(folder) is not None for folder, *_ in folders):
            if {HUB_ID, RECIPE_FILE} <= {*names}:  # it was lost before its first checkpoint
                _install_id(model.at(commit), recipe, output)
            return f"{model} has no checkpoint yet: starting at step 0"
        raise InputError(
            f"{key}: {model}: holds no checkpoint of a run: a run publishes one with"
            " log.publish.checkpoint: true; to start at step 0 use resume=auto"
        )
    newest_first = [steps[step] for step in sorted(steps, reverse=True)]
    return _newest_intact(model.at(commit), names, newest_first, recipe, output)


def _newest_intact(
    model: HubModel, names: list[str], steps: list[str], recipe: Recipe, output: Path
) -> str:
    """Download the newest checkpoint whose checksums are right, and install it. Nothing is
    installed if it is of another recipe, or if all are damaged.
    """
    temporary = output / _FOLDER
    digest, text = recipe_fingerprint(recipe), dump_recipe(recipe)
    damages: list[str] = []
    try:
        for step in steps:
            place = f"{HUB_CHECKPOINTS}/{step}"
            shutil.rmtree(temporary, ignore_errors=True)
            _fetch(model, [name for name in names if name.startswith(f"{place}/")], temporary)
            try:
                checkpoint = load(temporary / place, verify=True)
            except DamagedError as damage:
                damages.append(str(damage).replace(f"{temporary}/", ""))
                continue
            refuse_another_recipe(checkpoint, digest, text, f"resume: {step} of {model}")
            _fetch(
                model,
                [
                    name
                    for name in names
                    if name.startswith(f"{HUB_BEST}/")
                    or name in (RECIPE_FILE, METRICS_FILE, HUB_ID)
                ],
                temporary,
            )
            _install(temporary, output, step)
            newer = "".join(f"; {damage}, so not from that one" for damage in damages)
            return f"from {step} of {model}{newer}"
    except OSError as error:
        raise write_error(output, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    lines = "\n".join(f"  {damage}" for damage in damages)
    raise InputError(
        f"resume: {model}: all checkpoints are damaged:\n{lines}\nTo resume from an earlier commit,"
        f" add it as in hf://{model.repo}@COMMIT; to start at step 0, use resume=auto and another"
        " log.publish.repo"
    )


def _install_id(model: HubModel, recipe: Recipe, output: Path) -> None:
    """Install the id of a run without a checkpoint, if it is of this recipe."""
    temporary = output / _FOLDER
    try:
        _fetch(model, [HUB_ID, RECIPE_FILE], temporary)
        text = (temporary / RECIPE_FILE).read_text(encoding="utf-8", errors="replace")
        if fingerprint_today(text) == recipe_fingerprint(recipe):
            (temporary / HUB_ID).replace(output / RUN_ID_FILE)
    except OSError as error:
        raise write_error(output, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_absent(model: HubModel) -> bool:
    """Return whether a repository does not exist. The Hub answers the same for a private one that
    the account may not see, so only an account that may write for the owner knows.

    Raises:
        InputError: there is no token, or its account may not write for the owner.
    """
    try:
        return not look_at(Target(model.repo)).exists
    except InputError as error:
        raise InputError(
            f"resume: {model}: is absent or private, which cannot be found out, and a start at"
            f" step 0 would repeat its steps: {error}. To start at step 0 all the same, use"
            " resume=auto"
        ) from error


def _fetch(model: HubModel, names: list[str], folder: Path) -> None:
    from huggingface_hub import hf_hub_download

    try:
        with without_progress_bars():
            for name in names:
                hf_hub_download(model.repo, name, revision=model.revision, local_dir=folder)
    except Exception as error:  # of huggingface_hub and its HTTP library
        raise read_fault(error, model, "resume") from error


def _install(source: Path, output: Path, step: str) -> None:
    """Move what was downloaded to its places, the checkpoint last: without it nothing resumes."""
    files = {RECIPE_FILE: RECIPE_FILE, METRICS_FILE: METRICS_FILE, HUB_ID: RUN_ID_FILE}
    for name, place in files.items():
        if (source / name).is_file():
            (source / name).replace(output / place)
    folders = {checkpoints_dir(output) / step: source / HUB_CHECKPOINTS / step}
    best = source / HUB_BEST
    for student in sorted(best.iterdir()) if best.is_dir() else ():
        folders[best_root(output) / student.name] = student
    for path, folder in reversed(folders.items()):
        with atomic_directory(path) as new:
            for file in folder.iterdir():
                file.replace(new / file.name)
