"""What a teacher is: its model, its weights, and what it sees."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import InputError, did_you_mean
from distill.models.build import config, is_timm_config, takes_image_size
from distill.models.origin import CONFIG_FILE, origin_of_file
from distill.models.teacher import build_teacher
from distill.models.view import ModelView
from distill.recipe import schema

# What a model is tried at that is built for one size: its weights say which.
_USUAL_SIZE = 224


@dataclass(frozen=True)
class TeacherFacts:
    """A teacher as a recipe names it, and what it sees.

    Attributes:
        spec: the recipe's `teacher`.
        parameters: how many.
        view: what it sees.
        why_size: where its size comes from.
        classes: what its class order rests on; empty where it names its classes.
        notes: what was adapted when its weights were loaded.
    """

    spec: dict[str, Any]
    parameters: int
    view: ModelView
    why_size: str
    classes: str
    notes: tuple[str, ...]


def says_nothing(teacher: str) -> bool:
    """Whether a teacher is a file of weights without a config beside it, so that model and size
    must be asked for.
    """
    path = Path(teacher).expanduser()
    return path.is_file() and not is_timm_config(path.parent / CONFIG_FILE)


def look_at_teacher(
    teacher: str,
    classes: Sequence[str],
    *,
    model: str | None,
    image_size: int | None,
    class_file: str | None,
) -> TeacherFacts:
    """Load a teacher and hold it against the classes of the data.

    Args:
        teacher: a timm name, a file of weights, a run or an export.
        model: timm name of the architecture, for a file of weights.
        image_size: pixels that it was trained at; None: as its config says.
        class_file: its class list, an absolute path or the name of a label set.

    Raises:
        InputError: no such model or file, what is missing to know what it sees, or other classes
            than the data's.
    """
    path = Path(teacher).expanduser()
    spec: dict[str, Any] = {"weights": "pretrained"}
    if path.exists():
        # Not resolved: behind a link, as in the cache of the Hub, no config.json lies beside the
        # file.
        spec["weights"] = os.path.abspath(path)
        if path.is_file():
            _refuse_unsaid_size(path, model, image_size)
    else:
        _refuse_unknown(teacher)
        spec["model"] = teacher
    if model is not None:
        if not path.is_file():
            raise InputError(
                f"--teacher-model {model}: --teacher {teacher} names its own architecture: leave"
                " it out"
            )
        spec["model"] = model
    if image_size is not None:
        spec["image_size"] = image_size
    if class_file is not None:
        spec["classes"] = class_file
    built = build_teacher(
        schema.TeacherSpec.model_validate(spec),
        classes=classes,
        root=Path(),
        device="cpu",
        data_image_size=_USUAL_SIZE,
    )
    assumed = built.match is not None and built.match.how in ("numbers", "order")
    return TeacherFacts(
        spec={
            key: spec[key] for key in ("model", "weights", "image_size", "classes") if key in spec
        },
        parameters=sum(parameter.numel() for parameter in built.net.parameters()),
        view=built.view,
        why_size="--teacher-image-size" if image_size else built.view.sources["image_size"],
        classes=built.match.describe() if built.match and assumed else "",
        notes=built.notes,
    )


def _refuse_unsaid_size(path: Path, model: str | None, image_size: int | None) -> None:
    """Raises InputError where nothing says the architecture of weights, or the size of images they
    were trained at.
    """
    origin = origin_of_file(path, model, "--teacher-model")
    if origin.assumed and image_size is None and not takes_image_size(origin.name, {}):
        raise InputError(
            f"--teacher {path}: a file of weights does not say how large its images were, and at"
            " another size it answers wrongly: give --teacher-image-size and the pixels it was"
            " trained at"
        )


def _refuse_unknown(teacher: str) -> None:
    """Raises InputError for what is neither here nor a model of timm."""
    try:
        config(teacher)
    except InputError as error:
        place = Path(teacher)
        beside = [each.name for each in place.parent.iterdir()] if place.parent.is_dir() else []
        raise InputError(
            f"--teacher {teacher}: no such file or folder{did_you_mean(place.name, beside)}, and as the"
            f" name of a model: {error}"
        ) from error
