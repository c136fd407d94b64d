"""A recipe for a folder: gathered, written with its reasons, and tried before it is kept."""

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

_LARGEST_SIZE = 224  # where neither teacher nor command line says one
_SIZE_STEP = 32


@dataclass(frozen=True)
class Asked:
    """What the command line says. None: the default."""

    student: str | None = None
    image_size: int | None = None
    epochs: int | None = None
    holdout: float = 0.2


@dataclass(frozen=True)
class Draft:
    """A recipe as text, and what to say of it."""

    name: str
    text: str
    defaults: tuple[str, ...]
    notes: tuple[str, ...]


def default_image_size(folder: FolderFacts, teacher: TeacherFacts | None) -> int:
    """What the teacher sees, or the size of the images in steps of 32, at most 224."""
    if teacher is not None:
        return teacher.view.image_size
    return min(_LARGEST_SIZE, max(_SIZE_STEP, _SIZE_STEP * round(folder.shorter_side / _SIZE_STEP)))


def draft_recipe(
    folder: FolderFacts, teacher: TeacherFacts | None, asked: Asked, *, command: str, file: Path
) -> Draft:
    """The recipe for a folder, a teacher and what was asked for.

    Args:
        command: what wrote it, for its first line.
        file: where it will lie.

    Raises:
        InputError: no such student, or one that does not take images of this size.
    """
    image_size = asked.image_size or default_image_size(folder, teacher)
    student = choose_student(
        asked.student,
        image_size=image_size,
        num_classes=folder.num_classes,
        teacher_parameters=teacher.parameters if teacher else None,
    )
    num_held = 0 if folder.eval else int(held_out(folder.source, asked.holdout).sum())
    num_images = folder.num_images - num_held
    advice = advise(
        num_images=num_images,
        image_size=image_size,
        has_teacher=teacher is not None,
        pretrained=student.pretrained,
        epochs=asked.epochs,
        has_gpu=torch.cuda.is_available(),
        has_bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
    )
    name = _free_name(file.stem)
    lines = [
        Line("name", name, f"the run lands in runs/{name}"),
        *_data(folder, teacher, asked, image_size, num_held),
        *_models(teacher, student),
        *(Line(key, value, advice.reasons.get(key, "")) for key, value in advice.values.items()),
    ]
    fewest, most = folder.images_a_class
    low, high = min(map(min, folder.sizes)), max(map(max, folder.sizes))
    head = [
        f"Written by: {command}",
        (
            f"From {folder.num_images:,} images in {folder.num_classes} classes ({fewest:,} to"
            f" {most:,} a class, {low} to {high} pixels)."
            if fewest < most
            else (
                f"From {folder.num_images:,} images in {folder.num_classes} classes ({fewest:,}"
                f" each, {low} to {high} pixels)."
            )
        ),
        f"Train:  distill train {shlex.quote(str(file))}",
        "Change: any value here; for one run also behind the command, as train.budget='10 epochs'",
    ]
    notes = [*folder.notes, *(f"cannot be read: {line}" for line in folder.unread[:3])]
    if teacher is None:
        notes.append("no teacher: the student learns from labels alone; --teacher names one")
    defaults = [
        *([] if teacher else ["no teacher"]),
        *([] if asked.student else [f"student {student.model}"]),
        *([] if asked.image_size else [f"image size {image_size}"]),
        *([] if asked.epochs else [f"{advice.values['train.budget']}"]),
        *([] if folder.eval else [f"{num_held} images held out for evaluation"]),
    ]
    return Draft(name, page(head, lines), tuple(defaults), tuple(notes))


def _data(
    folder: FolderFacts, teacher: TeacherFacts | None, asked: Asked, image_size: int, num_held: int
) -> list[Line]:
    lines = [
        Line("data.root", str(folder.root), "elsewhere on another machine: data.root=FOLDER"),
        Line("data.train", folder.train),
    ]
    if folder.eval is not None:
        lines.append(Line("data.eval", folder.eval, "never trained on"))
    else:
        why = f"{num_held} images, a fixed part of each class, which training never sees"
        lines.append(Line("data.eval", {"kind": "holdout", "fraction": asked.holdout}, why))
    if folder.unread:
        lines.append(Line("data.unreadable", "skip", f"{folder.unread[0]}"))
    if asked.image_size is not None:
        why = "--image-size"
    elif teacher is not None:
        why = "as the teacher sees (a smaller one is faster)"
    else:
        why = f"the images' shorter side is {folder.shorter_side} pixels in the middle"
    lines.append(Line("data.image_size", image_size, why))
    if teacher is not None:
        view = {
            key: getattr(teacher.view, key)
            for key in ("crop_fraction", "crop_mode", "interpolation")
        }
        lines.append(Line("data.eval_view", view, "the teacher's"))
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
        Line("students.student", {}, "one; others beside it learn from the same teacher forward"),
        Line(
            "student.model",
            student.model,
            f"{student.parameters / 1e6:.1f} M parameters; {student.why_model}",
        ),
        Line("student.weights", "pretrained" if student.pretrained else None, student.why_weights),
    ]


def _free_name(stem: str) -> str:
    """A name of a run that is not there yet."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "mine"
    number, free = 1, name
    while (Path("runs") / free).exists():
        number += 1
        free = f"{name}-{number}"
    return free


def write_draft(draft: Draft, file: Path, force: bool) -> None:
    """Try a recipe as `distill recipe check` and the start of a run do, and write it.

    Raises:
        InputError: the file is there and `force` is not set; what check or the start of a run find.
    """
    if file.is_dir():
        raise InputError(f"--output {file}: is a folder: name the file in it")
    if file.exists() and not force:
        raise InputError(
            f"{file}: is there already: name another with --output, or overwrite it with --force"
        )
    if not file.parent.is_dir():
        raise InputError(f"--output {file}: the folder {file.parent} does not exist")
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / file.name
        trial.write_text(draft.text, encoding="utf-8")
        recipe = load_recipe(trial)
    check_recipe(recipe)
    build_models(make_plan(recipe))
    replace_text(file, draft.text)
