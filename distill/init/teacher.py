"""What a teacher is: its model, its weights, and what it sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import InputError, nearest
from distill.models.build import config
from distill.models.teacher import build_teacher
from distill.recipe import schema

# Of models that take any size and whose weights say none; a file of weights needs --teacher-image-size here.
_USUAL_SIZE = 224


@dataclass(frozen=True)
class TeacherFacts:
    """A teacher as a recipe names it, and what its config says.

    Attributes:
        spec: the recipe's `teacher`.
        parameters: how many.
        image_size: pixels that it sees.
        crop_fraction, interpolation: of its evaluation view.
        why_size: where its size comes from.
        classes: how its classes were matched with those of the data; empty where it names them itself.
    """

    spec: dict[str, Any]
    parameters: int
    image_size: int
    crop_fraction: float
    interpolation: str
    why_size: str
    classes: str


def wants_model(teacher: str) -> bool:
    """Whether a teacher is a file of weights, which names neither its architecture nor its size."""
    return Path(teacher).expanduser().is_file()


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
        class_file: its class names, a name a line.

    Raises:
        InputError: no such model or file, what is missing to know what it sees, or other classes than the data's.
    """
    path = Path(teacher).expanduser()
    spec: dict[str, Any] = {"weights": "pretrained"}
    if path.exists():
        spec["weights"] = str(path.resolve())
        if path.is_file():
            if model is None:
                raise InputError(
                    f"--teacher {teacher}: a file of weights does not name its architecture: give --teacher-model "
                    "and its timm name"
                )
            if image_size is None:
                raise InputError(
                    f"--teacher {teacher}: a file of weights does not say how large its images were, and at another "
                    "size it answers wrongly: give --teacher-image-size and the pixels it was trained at"
                )
    else:
        _refuse_unknown(teacher)
        spec["model"] = teacher
    if model is not None:
        if not path.is_file():
            raise InputError(f"--teacher-model {model}: --teacher {teacher} names its own architecture: leave it out")
        spec["model"] = model
    if image_size is not None:
        spec["image_size"] = image_size
    if class_file is not None:
        spec["classes"] = str(Path(class_file).expanduser().resolve()) if Path(class_file).exists() else class_file
    built = build_teacher(
        schema.Teacher.model_validate(spec),
        classes=classes,
        root=Path(),
        device="cpu",
        data_image_size=image_size or _USUAL_SIZE,
    )
    view = built.view
    return TeacherFacts(
        spec={key: spec[key] for key in ("model", "weights", "image_size", "classes") if key in spec},
        parameters=sum(parameter.numel() for parameter in built.net.parameters()),
        image_size=view.image_size,
        crop_fraction=view.crop_fraction,
        interpolation=view.interpolation,
        why_size="--teacher-image-size" if image_size else "its config",
        classes=built.match.describe() if built.match and built.match.how in ("numbers", "order") else "",
    )


def _refuse_unknown(teacher: str) -> None:
    """Raises InputError for what is neither here nor a model of timm."""
    try:
        config(teacher)
    except InputError as error:
        place = Path(teacher)
        beside = [each.name for each in place.parent.iterdir()] if place.parent.is_dir() else []
        raise InputError(
            f"--teacher {teacher}: no such file or folder{nearest(place.name, beside)}, and as the name of a model: {error}"
        ) from error
