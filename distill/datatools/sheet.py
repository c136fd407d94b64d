"""A picture of images as a student sees them in training, and as its teacher sees them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from distill.data.augment import sample_key
from distill.data.decode import UnreadableImageError, read_decoded
from distill.data.label_sets import words_of
from distill.data.pipelines import train_view
from distill.data.records import Source
from distill.datatools.named import in_stage
from distill.errors import InputError, printable
from distill.models.origin import teacher_known_here
from distill.models.pixels import Pixels
from distill.models.sizes import teacher_view as resolved_view
from distill.recipe import Recipe, schema
from distill.recipe.load import read_tree, recipes_dir
from distill.rng import seeded

PAIRS_IN_A_ROW = 4
ROWS = 6
_MARGIN = 8
_LABEL = 16
_FONT = 12
# Smaller images are enlarged by a whole factor.
_LEAST = 112


@dataclass(frozen=True)
class View:
    """How images are shown. `augment_of`: whose augmentation it is. `teacher_of`: where the
    teacher's size comes from.

    `interpolation`: from the student's size to the teacher's.
    """

    augment: schema.AugmentSpec
    image_size: int
    teacher_size: int
    augment_of: str
    teacher_of: str
    interpolation: str = "bicubic"
    pipeline: schema.Pipeline = "reference"


def view_of(
    recipe: Recipe | None, name: str, teacher_size: int | None = None, stage: str | None = None
) -> View:
    """The view of a recipe's training data; without one that of strategy A2.

    Args:
        name: the recipe's, for people.
        teacher_size: pixels, in place of what the recipe says.
        stage: of a recipe in stages; the first if None.

    Raises:
        InputError: it has no such stage.
    """
    if recipe is None:
        data = read_tree(recipes_dir() / "strategies" / "a2.yaml")["data"]
        size = int(data["image_size"])
        of = "--teacher-size" if teacher_size else "as the student's; --teacher-size says otherwise"
        return View(
            schema.AugmentSpec(**data["augment"]), size, teacher_size or size, "strategy A2", of
        )
    if stage is None and recipe.stages:
        stage = recipe.stages[0].name
    if stage is not None:
        recipe, name = in_stage(recipe, stage, f"--stage {stage}"), f"{name}, stage {stage}"
    size, of, interpolation = _teacher_size(recipe)
    if teacher_size is not None:
        size, of = teacher_size, "--teacher-size"
    data = recipe.data
    return View(data.augment, data.image_size, size, name, of, interpolation, data.pipeline)


def _teacher_size(recipe: Recipe) -> tuple[int, str, str]:
    """The size and interpolation of a recipe's teacher, of several the first, as a run resolves
    them, and where they come from.
    """
    spec, size = next(iter(recipe.teacher_rows.values()), None), recipe.data.image_size
    if spec is None:
        return size, "as the student's: no teacher", "bicubic"
    try:
        origin = teacher_known_here(spec, Path())
        view = None if origin is None else resolved_view(spec, origin, size)
    except InputError:  # distill.training.check says it
        view = None
    if view is None:
        return size, f"as the student's: {spec.model or spec.weights} is not here to say", "bicubic"
    return view.image_size, view.sources["image_size"], view.interpolation


def student_view(source: Source, index: int, view: View, seed: int) -> np.ndarray:
    """uint8 [S, S, 3]: the image as the first epoch of a run with this seed shows it, before
    mixing.

    Raises:
        UnreadableImageError: it cannot be read.
    """
    transform = train_view(view.pipeline, view.image_size, view.augment)
    with seeded(sample_key(seed, 0, index, 0)):
        return np.array(transform(read_decoded(source, index, transform.decode)))


def teacher_view(pixels: np.ndarray, size: int, interpolation: str = "bicubic") -> np.ndarray:
    """uint8 [size, size, 3]: the student's view [S, S, 3] as the teacher resizes it, without its
    mean and std.
    """
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    resized = Pixels((0.0,) * 3, (1.0,) * 3, size, interpolation)(images)[0].permute(1, 2, 0)
    return np.asarray((resized * 255).round().clamp(0, 255).byte().numpy())


def draw_sheet(
    source: Source, indices: Sequence[int], view: View, seed: int, title: str
) -> Image.Image:
    """At most 24 pairs, the student's view left and the teacher's right, under a line that explains
    them.

    Args:
        indices: of the images; unreadable ones are skipped.
    """
    pairs: list[tuple[int, np.ndarray, np.ndarray]] = []
    for index in indices:
        try:
            student = student_view(source, index, view, seed)
        except UnreadableImageError:
            continue
        pairs.append((index, student, teacher_view(student, view.teacher_size, view.interpolation)))
        if len(pairs) == PAIRS_IN_A_ROW * ROWS:
            break
    times = -(-_LEAST // min(view.image_size, view.teacher_size))
    left, right = view.image_size * times, view.teacher_size * times
    width, height = left + right + 3 * _MARGIN, max(left, right) + _LABEL + _MARGIN
    num_rows = max(1, -(-len(pairs) // PAIRS_IN_A_ROW))
    top = 2 * _LABEL + _MARGIN
    sheet = Image.new("RGB", (width * PAIRS_IN_A_ROW + _MARGIN, top + height * num_rows), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT)
    draw.text((_MARGIN, 4), printable(title), "black", font)
    columns = (
        f"in each pair: left the student, {view.image_size} px; right the teacher,"
        f" {view.teacher_size} px ({view.teacher_of})"
    )
    draw.text(
        (_MARGIN, 4 + _LABEL),
        printable(f"augmentation of {view.augment_of}; {columns}"),
        "black",
        font,
    )
    for i, (index, student, teacher) in enumerate(pairs):
        row, column = divmod(i, PAIRS_IN_A_ROW)
        x, y = _MARGIN + column * width, top + row * height
        draw.text(
            (x, y),
            _fitting(_label(source, index), draw, font, left + right + _MARGIN),
            "black",
            font,
        )
        sheet.paste(_larger(student, times), (x, y + _LABEL))
        sheet.paste(_larger(teacher, times), (x + left + _MARGIN, y + _LABEL))
    return sheet


def _larger(pixels: np.ndarray, times: int) -> Image.Image:
    image = Image.fromarray(pixels)
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _label(source: Source, index: int) -> str:
    if not source.classes:
        return f"{index}"
    name = source.classes[int(source.labels[np.array([index])][0])]
    return f"{index}: {printable(words_of(name))}"


def _fitting(
    text: str,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    width: int,
) -> str:
    """Cut a text to `width` pixels."""
    text = text[:width]  # no letter is narrower than a pixel, and a name may have a million
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(f"{text}...", font) > width:
        text = text[:-1]
    return f"{text}..."
