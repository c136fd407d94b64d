"""Whether a run may write in its folder: a new or empty one, or one that holds a run of ours.

A run replaces its recipe, its metrics and its best weights there, and deletes old checkpoints. This
module imports no torch, so that a wrong folder is refused at once.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from distill.errors import InputError
from distill.recipe import Recipe, schema

RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.jsonl"
REPORT_FILE = "report.json"
LOCK_FILE = ".lock"
EXPORT_FILES = frozenset({"config.json", "distill.json", "model.safetensors"})
# What may lie there before the run starts: a lock, a half-written file of ours, the output of a
# job.
_BEFORE = re.compile(r"\.lock|\.tmp-.*|.*\.(log|out|err)")
_STEP = re.compile(r"step-\d{8,}")
# A resolved recipe has all of these, which what a user writes by hand leaves out.
_RESOLVED = frozenset(
    {"name", "resume", "data", "students", "train", "evaluate", "checkpoint", "log"}
)
_CHOOSE = "choose another folder with output="


def checkpoints_dir(output: Path) -> Path:
    """Where checkpoints lie in a run's folder."""
    return output / "checkpoints"


def best_dir(output: Path, student: str) -> Path:
    """Where a student's best weights lie in a run's folder."""
    return output / "best" / student


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run: its resolved recipe, and something else that only a
    run leaves.
    """
    traces = (
        folder / LOCK_FILE,
        folder / METRICS_FILE,
        *checkpoints_dir(folder).glob("step-*/manifest.json"),
    )
    return any(trace.is_file() for trace in traces) and _resolved(folder / RECIPE_FILE)


def _resolved(file: Path) -> bool:
    try:
        tree: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(tree, dict) and tree.keys() >= _RESOLVED


def refuse_foreign_output(recipe: Recipe) -> None:
    """Refuse a folder where the run would overwrite or delete files of others. Changes nothing.

    Raises:
        InputError: the folder, or a folder in it that the run would replace, is not that of a run,
            or it holds what the run reads.
    """
    output = Path(recipe.output_dir).expanduser()
    if output.is_symlink() and not output.exists():
        raise InputError(f"{output}: is a link to a place that does not exist; {_CHOOSE}")
    if output.is_file():
        raise InputError(f"{output}: is a file; {_CHOOSE}")
    place = output.resolve()
    for what, kept in (
        ("your home folder", Path(os.path.expanduser("~"))),
        ("the root of the file system", Path("/")),
    ):
        if place == kept.resolve():
            raise InputError(f"{output}: is {what}, not the folder of a run; {_CHOOSE}")
    for key, path in _data_folders(recipe, schema.ImageFolderSpec):
        if place.is_relative_to(path):
            raise InputError(
                f"{output}: lies in {key} {path}, where each folder is a class of images, so that"
                f" of the run would be one too; {_CHOOSE}, or move the images into a folder of"
                f" their own and name it in {key}"
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
    foreign = [name for name in entries if not _BEFORE.fullmatch(name)]
    if not foreign:
        return
    if not is_run(output):
        raise InputError(
            f"{output}: is not the folder of a run: it holds {_some(foreign)}, and a run would"
            f" overwrite or delete files there; give an empty folder, or {_CHOOSE}"
        )
    if recipe.resume == "never":  # the whole folder is moved aside, and nothing in it is replaced
        place = output.resolve()
        for key, path in (*_data_folders(recipe), *_weights(recipe)):
            if path.is_relative_to(place):
                raise InputError(
                    f"{output}: holds {key} {path}, and resume: never would move it away; {_CHOOSE}"
                )
        return
    for step in _entries(checkpoints_dir(output)):
        if _STEP.fullmatch(step.name) and not any(
            (step / f).is_file() for f in ("manifest.json", "state.json")
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
    """The local folders that images are read from, with their keys; `kinds` of sources alone where
    there are any.
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
    if recipe.teacher is not None and recipe.teacher.weights not in ("pretrained", "random"):
        yield "teacher.weights", Path(recipe.teacher.weights).expanduser().resolve()


def _folder(key: str, path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_dir():
        yield f"{key}.path", path.resolve()
