"""What `distill publish` takes from a run or an export: a model in a folder, and what is known of
it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.checkpoint.layout import (
    CURVES_FILE,
    METRICS_FILE,
    PAGE_FILE,
    PAGE_TEXT_FILE,
    RECIPE_FILE,
    REPORT_FILE,
    best_dir,
    checkpoints_dir,
    is_checkpoint,
)
from distill.checkpoint.store import load_newest
from distill.errors import InputError, printable
from distill.files import current_directory, sha256_of
from distill.models.export_format import (
    RECORD_FILE,
    WEIGHTS_FILE,
    WEIGHTS_SHA256,
    is_export,
    write_model,
)
from distill.models.hub.derived import recorded_teachers, teachers_of, teachers_of_checkpoint
from distill.models.hub.record import check_record, check_report
from distill.models.origin import CONFIG_FILE
from distill.recipe import Recipe, load_recipe
from distill.recipe.hub_names import is_hub_name, parse_hub_name
from distill.release.export import best_student
from distill.release.find import Found, find_models

RUN_FILES = (
    RECIPE_FILE,
    METRICS_FILE,
    REPORT_FILE,
    PAGE_FILE,
    PAGE_TEXT_FILE,
    CURVES_FILE,
)


@dataclass(frozen=True)
class Publishable:
    """A model that may be published.

    Attributes:
        folder: of config.json, model.safetensors and distill.json.
        found: the model, loaded from there.
        files: what is published of the run besides, by name; empty for an export.
        recipe, report: of the run.
        notes: a sentence for each file of the run that is not published.
    """

    folder: Path
    found: Found
    files: Mapping[str, Path] = field(default_factory=dict)
    recipe: Recipe | None = None
    report: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return dict(json.loads((self.folder / CONFIG_FILE).read_text(encoding="utf-8")))

    @property
    def teachers(self) -> list[Mapping[str, Any]]:
        """What is recorded of the weights of each teacher; empty if it learned from none."""
        return list(teachers_of(self.found.record, self.recipe, self.report).values())

    @property
    def student(self) -> str | None:
        """The name of the student in the recipe."""
        return str(self.found.record["student"]) if "student" in self.found.record else None

    def logits(self, net: torch.nn.Module | None = None) -> Tensor:
        """Return the logits [2, K] of the model, or of another one, for images that follow from a
        seed.
        """
        size = self.found.view.image_size
        images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            answer: Tensor = (net or self.found.net).eval()(images)
        return answer


def find_publishable(
    source: Path, *, student: str | None, weights: str, folder: Path
) -> Publishable:
    """Return the model to publish.

    Args:
        source: the folder of a finished run, or of an export.
        student: of a run; None for the best one.
        weights: of a run: "best", "raw" or an average.
        folder: an empty one, for weights that are not exported yet.

    Raises:
        InputError: there is no such model, the run is not finished, or the files of an export do
            not fit together.
    """
    if is_hub_name(str(source)):
        raise InputError(
            f"{parse_hub_name(str(source))}: is on the Hub already: name a run or an export"
        )
    if source.is_file():
        raise InputError(f"{source}: is a file, and what is published is a run or an export")
    if is_export(source):
        (found,) = _found(source, student, weights)
        return _checked(Publishable(source, found))
    if is_checkpoint(source):
        raise InputError(
            f"{source}: is a checkpoint: export it first (distill export {source} FOLDER), and"
            " publish the export"
        )
    if not (source / RECIPE_FILE).is_file():
        (found,) = _found(source, student, weights)  # says what it is not
    report = _read_report(source)
    recipe = load_recipe(source / RECIPE_FILE)
    student = student or best_student(source)
    (found,) = _found(source, student, weights)
    exported = current_directory(best_dir(source, student))
    if weights != "best" or exported is None:
        teachers = teachers_of(found.record, recipe, report)
        record = {**found.record, **recorded_teachers(teachers)}
        state = found.net.state_dict()
        write_model(folder, found.net, state, classes=found.classes, view=found.view, record=record)
        exported = folder
    files, notes = _run_files(source)
    report = {**report, "origins": _origins(source, recipe, report)}
    return _checked(Publishable(exported, found, files, recipe, report, notes))


def _run_files(run: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Return the files of a run that are published with its weights, and why others are not."""
    files = {name: run / name for name in RUN_FILES if (run / name).is_file()}
    notes = []
    finished = files[REPORT_FILE].stat().st_mtime_ns
    for name in (PAGE_FILE, PAGE_TEXT_FILE, CURVES_FILE):
        if name in files and files[name].stat().st_mtime_ns < finished:
            notes.append(
                f"{name} is left out: it is older than {REPORT_FILE}; `distill report {run}"
                " --no-images` writes it again"
            )
            del files[name]
    if PAGE_FILE in files and b"data:image" in files[PAGE_FILE].read_bytes():
        notes.append(
            f"{PAGE_FILE} is left out: it shows images of the evaluation set, which may be private;"
            f" `distill report {run} --no-images` writes it without, then publish again"
        )
        del files[PAGE_FILE]
    return files, tuple(notes)


def _found(source: Path, student: str | None, weights: str) -> list[Found]:
    return find_models(source, model=None, student=student, weights=weights, image_size=None)


def _read_report(run: Path) -> dict[str, Any]:
    """Return the report of a finished run.

    Raises:
        InputError: the run is not finished, or its report is damaged or empty.
    """
    file = run / REPORT_FILE
    if not file.is_file():
        raise InputError(
            f"{run}: this run is not finished (it has no {REPORT_FILE}): the same `distill train`"
            f" command finishes it; to publish the best weights that it has so far, publish an"
            f" export of them: distill export {run} FOLDER"
        )
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{file}: is not the report of a run ({type(error).__name__}): delete it, and run the"
            " same `distill train` command, which writes it again"
        ) from error
    check_report(report, file)
    if not any(each and each.get("best") for each in report["students"].values()):
        raise InputError(f"{file}: the run ended without weights to publish: no student was saved")
    return dict(report)


def _origins(run: Path, recipe: Recipe, report: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return where the weights of the teachers are from. A run of an earlier version recorded only
    their SHA-256.
    """
    if "origins" in report:
        return dict(report["origins"])
    try:
        values = load_newest(checkpoints_dir(run), verify=False).values
    except InputError:
        values = {}
    return teachers_of_checkpoint(recipe, values)


def _checked(model: Publishable) -> Publishable:
    """Check that the files of an export fit together: one may have been edited by hand.

    Raises:
        InputError: they do not.
    """
    folder, record = model.folder, model.found.record
    check_record(record, folder / RECORD_FILE)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder}: has no {name}, and models are published as safetensors: export again"
            )
    num_classes = int(model.found.net.num_classes)  # type: ignore[arg-type]
    names = model.found.classes
    if names and (len(names) != num_classes or len(set(names)) != num_classes):
        raise InputError(
            f"{folder / CONFIG_FILE}: label_names has {len(set(names))} different names for"
            f" {num_classes} classes: it was changed by hand; export again"
        )
    recorded = str(record.get("model", "")).partition(".")[0]
    architecture = str(model.config["architecture"])
    if recorded and ":" not in recorded and recorded != architecture:
        raise InputError(
            f"{folder / RECORD_FILE}: is the record of a {printable(recorded)}, and {CONFIG_FILE}"
            f" says {architecture}: one was changed by hand; export again"
        )
    if not torch.isfinite(model.logits()).all():
        raise InputError(f"{folder}: the logits of this model are not finite: it cannot be used")
    known = record.get(WEIGHTS_SHA256)
    if known is not None and known != sha256_of(folder / WEIGHTS_FILE):
        raise InputError(
            f"{folder / WEIGHTS_FILE}: these are not the weights of which {RECORD_FILE} tells"
            " (SHA-256), so its scores and origin are those of others: export again"
        )
    return model
