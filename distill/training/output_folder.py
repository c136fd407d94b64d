"""Whether a run may write in its folder: a new or empty one, or one that holds an earlier run.

A run replaces recipe, metrics and best weights there, and deletes old checkpoints. This module
imports no torch, so that a wrong folder is refused at once.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from distill.checkpoint.layout import (
    LOCK_FILE,
    MANIFEST_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    STATE_FILE,
    best_dir,
    checkpoints_dir,
    step_of,
)
from distill.errors import InputError
from distill.recipe import Recipe, schema
from distill.recipe.hub_names import is_hub_name
from distill.recipe.teachers import recipe_key

EXPORT_FILES = frozenset({"config.json", "distill.json", "model.safetensors"})
# What may be there before the run starts: a lock, an incomplete file of ours, the output of a job.
_HARMLESS = re.compile(r"\.lock|\.run_id|\.tmp-.*|.*\.(log|out|err)")
# A resolved recipe has all of these keys; one written by hand leaves some out.
_RESOLVED = frozenset(
    {"name", "resume", "data", "students", "train", "evaluate", "checkpoint", "log"}
)
_CHOOSE = "choose another folder with output="


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run: a resolved recipe, and another file that only a run writes."""
    traces = (
        folder / LOCK_FILE,
        folder / METRICS_FILE,
        *checkpoints_dir(folder).glob(f"step-*/{MANIFEST_FILE}"),
    )
    return any(trace.is_file() for trace in traces) and _is_resolved(folder / RECIPE_FILE)


def _is_resolved(file: Path) -> bool:
    try:
        tree: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(tree, dict) and tree.keys() >= _RESOLVED


def refuse_foreign_output(recipe: Recipe) -> None:
    """Check that the run will not overwrite or delete foreign files. Changes nothing.

    Raises:
        InputError: the folder, or a folder in it that the run would replace, is not one of a run,
            or it holds data or weights that the run reads.
    """
    output = Path(recipe.output_dir).expanduser()
    if output.is_symlink() and not output.exists():
        raise InputError(f"{output}: is a link to a folder that does not exist; {_CHOOSE}")
    if output.is_file():
        raise InputError(f"{output}: is a file; {_CHOOSE}")
    place = output.resolve()
    for what, protected in (
        ("your home folder", Path(os.path.expanduser("~"))),
        ("the root of the file system", Path("/")),
    ):
        if place == protected.resolve():
            raise InputError(f"{output}: is {what}, not the folder of a run; {_CHOOSE}")
    for key, path in _data_folders(recipe, schema.ImageFolderSpec):
        if place.is_relative_to(path):
            raise InputError(
                f"{output}: is inside {key} {path}, where each folder is a class of images, so"
                f" the folder of the run would become a class; {_CHOOSE}, or move the images into a"
                f" folder of their own and name it in {key}"
            )
    if not output.is_dir():
        return
    try:
        _refuse_foreign(output, recipe)
    except OSError as error:
        raise InputError(
            f"{output}: cannot be read: {error.strerror or error}; {_CHOOSE}"
        ) from error


def _refuse_foreign(output: Path, recipe: Recipe) -> None:
    entries = sorted(entry.name for entry in output.iterdir())
    foreign = [name for name in entries if not _HARMLESS.fullmatch(name)]
    if not foreign:
        return
    if not is_run(output):
        raise InputError(
            f"{output}: is not the folder of a run: it holds {_some(foreign)}, and a run would"
            f" overwrite or delete files there; give an empty folder, or {_CHOOSE}"
        )
    if recipe.resume == "never":  # the folder is moved, and nothing in it is replaced
        place = output.resolve()
        for key, path in (*_data_folders(recipe), *_weights(recipe)):
            if path.is_relative_to(place):
                raise InputError(
                    f"{output}: holds {key} {path}, and resume: never would move it away; {_CHOOSE}"
                )
        return
    for step in _entries(checkpoints_dir(output)):
        if step_of(step.name) is not None and not any(
            (step / file).is_file() for file in (MANIFEST_FILE, STATE_FILE)
        ):
            raise InputError(
                f"{step}: is no checkpoint of a run, which would delete it; move it away, or"
                f" {_CHOOSE}"
            )
    for student in recipe.students:
        best = best_dir(output, student)
        if other := [entry.name for entry in _entries(best) if entry.name not in EXPORT_FILES]:
            raise InputError(
                f"{best}: holds {_some(other)}, which the run would delete when it writes better"
                f" weights there; move it away, or {_CHOOSE}"
            )


def _entries(folder: Path) -> Iterator[Path]:
    if folder.exists() and not folder.is_dir():
        raise InputError(
            f"{folder}: is a file, and a run keeps a folder there; move it away, or {_CHOOSE}"
        )
    yield from sorted(folder.iterdir()) if folder.is_dir() else ()


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (
        f" and {len(names) - 3} more" if len(names) > 3 else ""
    )


def _data_folders(recipe: Recipe, *kinds: type) -> Iterator[tuple[str, Path]]:
    """The local folders that images are read from, with their keys; with `kinds`, only those of
    these sources.
    """
    root = Path(recipe.data.root).expanduser()
    sources = [
        (f"{prefix}data.train", recipe.at_stage(i).data.train)
        for i, prefix in enumerate(recipe.stage_keys)
    ]
    for key, source in (*sources, ("data.eval", recipe.data.eval)):
        if source is None or isinstance(source, schema.HoldOutSpec):  # a part of data.train
            continue
        if kinds and not isinstance(source, kinds):
            continue
        if source.path is not None and "://" not in source.path:
            yield from _folder(key, root / Path(source.path).expanduser())


def _weights(recipe: Recipe) -> Iterable[tuple[str, Path]]:
    for row, spec in recipe.teacher_rows.items():
        if spec.weights not in ("pretrained", "random") and not is_hub_name(spec.weights):
            yield f"{recipe_key(row)}.weights", Path(spec.weights).expanduser().resolve()


def _folder(key: str, path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_dir():
        yield f"{key}.path", path.resolve()
