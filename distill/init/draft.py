"""Writes a recipe for a folder, with reasons, after a trial of the recipe."""

import re
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from distill.data.holdout import held_out
from distill.errors import InputError
from distill.files import replace_text
from distill.init.advice import advise
from distill.init.folder import FolderFacts
from distill.init.page import Line, page
from distill.init.student import StudentFacts, choose_student
from distill.init.teacher import TeacherFacts
from distill.recipe import load_recipe
from distill.training.build import build_models
from distill.training.check import check_recipe
from distill.training.plan import make_plan

_LARGEST_SIZE = 224  # if neither the teacher nor the command line sets it
_SIZE_STEP = 32


@dataclass(frozen=True)
class Choices:
    """The options of the command line; None: the default."""

    student: str | None = None
    image_size: int | None = None
    epochs: int | None = None
    holdout: float = 0.2


@dataclass(frozen=True)
class Draft:
    """A recipe as text, with the defaults that were used and notes for the user."""

    name: str
    text: str
    defaults: tuple[str, ...]
    notes: tuple[str, ...]


def default_image_size(folder: FolderFacts, teacher: TeacherFacts | None) -> int:
    """The image size of the teacher, or of the images in steps of 32 pixels, at most 224."""
    if teacher is not None:
        return teacher.view.image_size
    return min(_LARGEST_SIZE, max(_SIZE_STEP, _SIZE_STEP * round(folder.shorter_side / _SIZE_STEP)))


def draft_recipe(
    folder: FolderFacts, teacher: TeacherFacts | None, choices: Choices, *, command: str, file: Path
) -> Draft:
    """Writes a recipe for a folder and a teacher as text.

    Args:
        command: the command line, for the first line of the recipe.
        file: the path of the recipe.

    Raises:
        InputError: there is no such student, or it does not accept images of this size.
    """
    image_size = choices.image_size or default_image_size(folder, teacher)
    student = choose_student(
        choices.student,
        image_size=image_size,
        num_classes=folder.num_classes,
        teacher_parameters=teacher.parameters if teacher else None,
    )
    num_held = 0 if folder.eval else int(held_out(folder.source, choices.holdout).sum())
    num_images = folder.num_images - num_held
    advice = advise(
        num_images=num_images,
        image_size=image_size,
        has_teacher=teacher is not None,
        pretrained=student.pretrained,
        epochs=choices.epochs,
        has_gpu=torch.cuda.is_available(),
        has_bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
    )
    name = _free_name(file.stem)
    lines = [
        Line("name", name, f"the run is saved in runs/{name}"),
        *_data(folder, teacher, choices, image_size, num_held),
        *_models(teacher, student),
        *(Line(key, value, advice.reasons.get(key, "")) for key, value in advice.values.items()),
    ]
    fewest, most = folder.images_per_class
    low, high = min(map(min, folder.sizes)), max(map(max, folder.sizes))
    head = [
        f"Written by: {command}",
        (
            f"From {folder.num_images:,} images in {folder.num_classes} classes ({fewest:,} to"
            f" {most:,} per class, {low} to {high} pixels)."
            if fewest < most
            else (
                f"From {folder.num_images:,} images in {folder.num_classes} classes ({fewest:,}"
                f" each, {low} to {high} pixels)."
            )
        ),
        f"Train:  distill train {shlex.quote(str(file))}",
        "Change: any value here, or for one run on the command line: train.budget='10 epochs'",
    ]
    notes = [*folder.notes, *(f"cannot be read: {line}" for line in folder.unread[:3])]
    if teacher is None:
        notes.append("no teacher: the student learns only from labels; set one with --teacher")
    defaults = [
        *([] if teacher else ["no teacher"]),
        *([] if choices.student else [f"student {student.model}"]),
        *([] if choices.image_size else [f"image size {image_size}"]),
        *([] if choices.epochs else [f"{advice.values['train.budget']}"]),
        *([] if folder.eval else [f"{num_held} images held out for evaluation"]),
    ]
    return Draft(name, page(head, lines), tuple(defaults), tuple(notes))


def _data(
    folder: FolderFacts,
    teacher: TeacherFacts | None,
    choices: Choices,
    image_size: int,
    num_held: int,
) -> list[Line]:
    lines = [
        Line("data.root", str(folder.root), "on another machine use data.root=FOLDER"),
        Line("data.train", folder.train),
    ]
    if folder.eval is not None:
        lines.append(Line("data.eval", folder.eval, "not used for training"))
    else:
        why = f"{num_held} images, a fixed part of each class, not used for training"
        lines.append(Line("data.eval", {"kind": "holdout", "fraction": choices.holdout}, why))
    if folder.unread:
        lines.append(Line("data.unreadable", "skip", f"{folder.unread[0]}"))
    if choices.image_size is not None:
        why = "--image-size"
    elif teacher is not None:
        why = "that of the teacher (a smaller one is faster)"
    else:
        why = f"the median of the images' shorter side is {folder.shorter_side} pixels"
    lines.append(Line("data.image_size", image_size, why))
    if teacher is not None:
        view = {
            key: getattr(teacher.view, key)
            for key in ("crop_fraction", "crop_mode", "interpolation")
        }
        lines.append(Line("data.eval_view", view, "that of the teacher"))
    return lines


def _models(teacher: TeacherFacts | None, student: StudentFacts) -> list[Line]:
    lines = []
    if teacher is not None:
        whys = {"image_size": teacher.why_size, "weights": teacher.classes}
        lines = [
            Line(f"teacher.{key}", value, whys.get(key, "")) for key, value in teacher.spec.items()
        ]
    return [
        *lines,
        Line("students.student", {}, "others that you add learn from the same teacher forward"),
        Line(
            "student.model",
            student.model,
            f"{student.parameters / 1e6:.1f} M parameters; {student.why_model}",
        ),
        Line("student.weights", "pretrained" if student.pretrained else None, student.why_weights),
    ]


def _free_name(stem: str) -> str:
    """A name for which no run exists."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "mine"
    number, free = 1, name
    while (Path("runs") / free).exists():
        number += 1
        free = f"{name}-{number}"
    return free


def write_draft(draft: Draft, file: Path, force: bool) -> None:
    """Tries a recipe like `distill recipe check` and the start of a run, and writes it.

    Raises:
        InputError: the file exists and `force` is not set, or the trial fails.
    """
    if file.is_dir():
        raise InputError(f"--output {file}: is a folder: give the path of a file")
    if file.exists() and not force:
        raise InputError(
            f"{file}: exists already: use another name with --output, or overwrite it with --force"
        )
    if not file.parent.is_dir():
        raise InputError(f"--output {file}: the folder {file.parent} does not exist")
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / file.name
        trial.write_text(draft.text, encoding="utf-8")
        recipe = load_recipe(trial)
    check_recipe(recipe)
    build_models(make_plan(recipe))
    try:
        replace_text(file, draft.text)
    except OSError as error:
        raise InputError(f"--output {file}: cannot be written: {error.strerror}") from error
