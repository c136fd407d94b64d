"""Evaluation figures for a model card, from the file that `distill evaluate --json` writes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distill.errors import InputError, printable

_Percent = Annotated[float, Field(ge=0, le=100)]
_NotNegative = Annotated[float, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class _Model(_Part):
    model: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    image_size: Annotated[int, Field(ge=1)]
    crop_fraction: Annotated[float, Field(gt=0, le=1)]
    interpolation: str


class _Figures(_Part):
    top1: _Percent
    top1_error: _NotNegative | None = None
    top5: _Percent | None = None
    num_samples: Annotated[int, Field(ge=1)]
    num_skipped: Annotated[int, Field(ge=0)]
    loss: _NotNegative | None = None
    ece: _Share | None = None


class _Set(_Part):
    title: str
    num_classes: Annotated[int, Field(ge=2)]
    models: dict[str, _Figures]


class _File(_Part):
    format: Literal[1]
    models: Annotated[dict[str, _Model], Field(min_length=1)]
    sets: Annotated[dict[str, _Set], Field(min_length=1)]


@dataclass(frozen=True)
class Score:
    """The figures of the model on one set.

    Attributes:
        dataset: an id for the model-index, such as imagenet-1k.
        title: the set in words.
        top1, top1_error, top5: percent.
        loss: cross-entropy in nats.
        ece: expected calibration error, a fraction.
        view: how the model saw the images, in words; empty if not known.
    """

    dataset: str
    title: str
    num_samples: int
    top1: float
    top1_error: float | None = None
    top5: float | None = None
    loss: float | None = None
    ece: float | None = None
    view: str = ""


@dataclass(frozen=True)
class _Dataset:
    """A published set. An evaluation is of it only with its number of classes and of images."""

    name: str
    num_classes: int
    num_samples: tuple[int, ...]


_DATASETS = {
    "val": _Dataset("imagenet-1k", 1000, (50_000,)),
    "real": _Dataset("imagenet-real", 1000, (46_837,)),
    "v2": _Dataset("imagenet-v2", 1000, (10_000,)),
    "a": _Dataset("imagenet-a", 200, (7_500,)),
    "r": _Dataset("imagenet-r", 200, (30_000,)),
    "sketch": _Dataset("imagenet-sketch", 1000, (50_000, 50_889)),
}

OF_THE_RUN = "own-evaluation-images"
_KNOWN_NAMES = {OF_THE_RUN, *(known.name for known in _DATASETS.values())}


def read_scores(path: Path, sha256: str) -> list[Score]:
    """Return the figures of the weights with this SHA-256.

    Raises:
        InputError: the file is not one of `distill evaluate --json`, it is of other weights, or
            images were skipped.
    """
    file = _read(path)
    names = [name for name, model in file.models.items() if model.sha256 == sha256]
    if not names:
        known = ", ".join(
            f"{printable(name)} ({model.sha256[:12] if model.sha256 else 'no SHA-256'})"
            for name, model in file.models.items()
        )
        raise InputError(
            f"{path}: is an evaluation of other weights: it has {known}, and these are"
            f" {sha256[:12]}: evaluate the weights that you publish"
        )
    name = names[0]
    view = file.models[name]
    shown = f"{view.image_size} px, crop {view.crop_fraction:g}, {view.interpolation}"
    found = []
    for key, each in file.sets.items():
        if name not in each.models:
            continue
        figures = each.models[name]
        if figures.num_skipped:
            raise InputError(
                f"{path}: {figures.num_skipped:,} images of {printable(each.title)} were skipped,"
                " so its figures are of another set: evaluate again with all images"
            )
        values = figures.model_dump(exclude={"num_skipped"})
        dataset, title = _dataset(key, each, figures.num_samples)
        found.append(Score(dataset=dataset, title=title, view=shown, **values))
    if not found:
        raise InputError(f"{path}: has no figures of {printable(name)}: evaluate again")
    return found


def own_score(record: Mapping[str, Any]) -> Score | None:
    """Return the figures that a run recorded with its weights; None if it recorded none, or skipped
    images.
    """
    if record.get("top1") is None or record.get("num_skipped"):
        return None
    where = record.get("scored_on")
    return Score(
        dataset=OF_THE_RUN if where is None else f"own-{_slug(where)}",
        title="evaluation images of the run" if where is None else printable(where),
        num_samples=int(record["num_samples"]),
        top1=float(record["top1"]),
        top5=None if record.get("top5") is None else float(record["top5"]),
        loss=None if record.get("loss") is None else float(record["loss"]),
    )


def _dataset(key: str, each: _Set, num_samples: int) -> tuple[str, str]:
    """Return an id for the model-index, and the set in words.

    A leaderboard compares all figures under one id, so a part of a set, or a set of one's own in
    its place, has another id.
    """
    title, known = printable(each.title), _DATASETS.get(key)
    if known is None:
        name = _slug(each.title)
        if name not in _KNOWN_NAMES:
            return name, title
    elif each.num_classes == known.num_classes and num_samples in known.num_samples:
        return known.name, title
    else:
        name = key
    return f"own-{name}", f"{title}: {num_samples:,} images of {each.num_classes:,} classes"


def _slug(title: str) -> str:
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in title.lower())
    return "-".join(part for part in kept.split("-") if part) or "set"


def _read(path: Path) -> _File:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    try:
        return _File.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(printable(str(part)) for part in first["loc"])
        raise InputError(
            f"{path}: is not a file of `distill evaluate --json`: {where or 'the file'}:"
            f" {first['msg']}"
        ) from error
