"""Examines a teacher: its model, its weights, and its view of images."""

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

# For models with a fixed image size, which follows from the weights.
_USUAL_SIZE = 224


@dataclass(frozen=True)
class TeacherFacts:
    """A teacher as in a recipe, and its view of images.

    Attributes:
        spec: `teacher` of the recipe.
        parameters: number of parameters.
        view: how it preprocesses images.
        why_size: the source of its image size.
        classes: the assumption about its class order; empty if its classes are known.
        notes: what was adapted when its weights were loaded.
    """

    spec: dict[str, Any]
    parameters: int
    view: ModelView
    why_size: str
    classes: str
    notes: tuple[str, ...]


def is_bare_file(teacher: str) -> bool:
    """Whether a teacher is a file of weights without a config, so that its model and image size are
    unknown.
    """
    path = Path(teacher).expanduser()
    return path.is_file() and not is_timm_config(path.parent / CONFIG_FILE)


def examine_teacher(
    teacher: str,
    classes: Sequence[str],
    *,
    model: str | None,
    image_size: int | None,
    class_file: str | None,
) -> TeacherFacts:
    """Loads a teacher and compares its classes with those of the data.

    Args:
        teacher: a timm name, a file of weights, a run or an export.
        model: for a file of weights, the timm name of the model.
        image_size: the image size in training, in pixels; None: from its config.
        class_file: its class list, an absolute path or the name of a label set.

    Raises:
        InputError: there is no such model or file, its image size is unknown, or its classes are
            not those of the data.
    """
    path = Path(teacher).expanduser()
    spec: dict[str, Any] = {"weights": "pretrained"}
    if path.exists():
        # Links are not resolved: the cache of the Hub has no config.json next to the real file.
        spec["weights"] = os.path.abspath(path)
        if path.is_file():
            _refuse_unknown_size(path, model, image_size)
    else:
        _refuse_unknown_model(teacher)
        spec["model"] = teacher
    if model is not None:
        if not path.is_file():
            raise InputError(
                f"--teacher-model {model}: --teacher {teacher} contains the name of its model:"
                " remove this option"
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
    if not built.has_classes:
        raise InputError(
            f"--teacher {teacher}: has no classifier, and the recipe that init writes learns from"
            " logits: name a teacher with classes, or write a recipe with objective.hint {loss:"
            " feature} (docs/method.md, Teachers)"
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


def _refuse_unknown_size(path: Path, model: str | None, image_size: int | None) -> None:
    """Raises InputError if the model of a file of weights, or its image size, is unknown."""
    origin = origin_of_file(path, model, "--teacher-model")
    if origin.assumed and image_size is None and not takes_image_size(origin.name, {}):
        raise InputError(
            f"--teacher {path}: a file of weights does not contain its image size, and another"
            " size gives wrong outputs: give --teacher-image-size, the size in training in pixels"
        )


def _refuse_unknown_model(teacher: str) -> None:
    """Raises InputError for a name that is neither a path nor a model of timm."""
    try:
        config(teacher)
    except InputError as error:
        path = Path(teacher)
        others = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(
            f"--teacher {teacher}: no such file or folder{did_you_mean(path.name, others)}, and as"
            f" the name of a model: {error}"
        ) from error
