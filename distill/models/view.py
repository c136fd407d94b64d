"""The view of a model: image size, crop, interpolation, mean and std, and the source of each,
resolved as timm does it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from timm.data import resolve_data_config

from distill.errors import InputError
from distill.recipe.data import CropMode, Interpolation

# `describe` prints one source for all fields of a part.
_PARTS = (("image_size",), ("crop_fraction", "crop_mode", "interpolation"), ("mean",), ("std",))
_FIELDS = tuple(name for part in _PARTS for name in part)


@dataclass(frozen=True)
class Frame:
    """How an image of any size becomes a square of pixels. Models with the same frame can share
    images.

    Attributes:
        fill: the colour that crop_mode "border" pads with, in [0, 1]; None without padding.
    """

    image_size: int
    crop_fraction: float
    crop_mode: CropMode
    interpolation: Interpolation
    fill: tuple[float, float, float] | None


@dataclass(frozen=True)
class ModelView:
    """The view of a model, in the terms of `timm.data.create_transform`.

    Attributes:
        image_size: pixels of the square that the model gets.
        mean, std: of pixels in [0, 1], one value for each of three channels.
        crop_fraction: the share of the resized image that the crop keeps (timm: crop_pct).
        crop_mode: timm's "center", "squash" (aspect ratio is lost) or "border" (padded with the
            mean).
        interpolation: of the resize, through Pillow.
        sources: field -> the source of its value: a recipe's key, a file, or the name of a timm
            config.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_fraction: float
    crop_mode: CropMode
    interpolation: Interpolation
    sources: Mapping[str, str] = field(compare=False)

    @property
    def frame(self) -> Frame:
        """The part of the view that comes before the model's own mean and std."""
        fill = self.mean if self.crop_mode == "border" else None
        return Frame(self.image_size, self.crop_fraction, self.crop_mode, self.interpolation, fill)

    def replaced(self, source: str, **values: Any) -> "ModelView":
        """Return the view with other values, all from one source; None leaves a value as it is."""
        given = {name: value for name, value in values.items() if value is not None}
        return replace(self, **given, sources={**self.sources, **dict.fromkeys(given, source)})

    def describe(self) -> str:
        """Return one line for users: every value, each group followed by its source."""
        texts = {
            "image_size": f"{self.image_size}x{self.image_size} px",
            "crop_fraction": f"{self.crop_mode} crop {self.crop_fraction:g}",
            "interpolation": self.interpolation,
            "mean": f"mean {_numbers(self.mean)}",
            "std": f"std {_numbers(self.std)}",
        }
        groups: list[tuple[list[str], tuple[str, ...]]] = []
        for part in _PARTS:
            shown = [texts[name] for name in part if name in texts]
            sources = tuple(dict.fromkeys(self.sources[name] for name in part))
            if groups and groups[-1][1] == sources:
                groups[-1][0].extend(shown)
            else:
                groups.append((shown, sources))
        return "; ".join(f"{', '.join(shown)} ({', '.join(sources)})" for shown, sources in groups)

    @property
    def values(self) -> str:
        """The values without their sources, which a resumed run compares."""
        return ", ".join(f"{name} {getattr(self, name)}" for name in _FIELDS)

    def as_dict(self) -> dict[str, Any]:
        """Return values and sources as JSON takes them, for reports."""
        values = {name: getattr(self, name) for name in _FIELDS}
        shown = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }
        return {**shown, "sources": dict(self.sources)}


def view_of_config(
    config: Mapping[str, Any], source: str, *, use_test_size: bool = False
) -> ModelView:
    """Return the view of a timm pretrained config, with timm's defaults for missing values.

    Args:
        config: as `distill.models.build.config` returns it.
        source: the source of every value of the view.
        use_test_size: take `test_input_size` and `test_crop_pct` where the config has them, as
            timm's validate.py does unless it gets --use-train-size; a teacher sees the size that it
            was trained with, as in `timm.data.resolve_model_data_config`.

    Raises:
        InputError: images that are not square or not RGB, or a crop or interpolation that timm does
            not evaluate with.
    """
    resolved = resolve_data_config({}, pretrained_cfg=dict(config), use_test_size=use_test_size)
    try:
        channels, height, width = map(int, resolved["input_size"])
        crop_fraction = float(resolved["crop_pct"])
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{source}: input_size {resolved['input_size']} and crop_pct {resolved['crop_pct']}"
            " should be three numbers and one: correct the config"
        ) from error
    if height < 1 or width < 1 or not 0 < crop_fraction < math.inf:
        raise InputError(
            f"{source}: input_size {resolved['input_size']} and crop_pct {crop_fraction} should be"
            " positive: correct the config"
        )
    if channels != 3:
        raise InputError(
            f"{source}: wants images of {channels} channels, and images are read as RGB"
        )
    if height != width:
        raise InputError(f"{source}: wants {height}x{width} images, and recipes hold square ones")
    for key, known in (
        ("crop_mode", get_args(CropMode)),
        ("interpolation", get_args(Interpolation)),
    ):
        if resolved[key] not in known:
            raise InputError(
                f"{source}: {key} is {resolved[key]!r}, and an evaluation has {', '.join(known)}"
            )
    std = _triple(resolved["std"], f"{source}: std")
    if min(std) <= 0:
        raise InputError(f"{source}: std is {std}, and should be positive")
    return ModelView(
        image_size=int(height),
        mean=_triple(resolved["mean"], f"{source}: mean"),
        std=std,
        crop_fraction=crop_fraction,
        crop_mode=resolved["crop_mode"],
        interpolation=resolved["interpolation"],
        sources=dict.fromkeys(_FIELDS, source),
    )


def _triple(values: Any, what: str) -> tuple[float, float, float]:
    try:
        numbers = tuple(map(float, values if isinstance(values, list | tuple) else (values,)))
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} is {values!r}, and should be three numbers") from error
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{what} is {values!r}, and should be three finite numbers")
    # timm repeats one value for all channels.
    numbers = numbers * 3 if len(numbers) == 1 else numbers
    if len(numbers) != 3:
        raise InputError(f"{what} has {len(numbers)} values, and RGB images have three channels")
    return numbers[0], numbers[1], numbers[2]


def _numbers(values: tuple[float, ...]) -> str:
    return (
        " ".join(f"{value:.4g}" for value in dict.fromkeys(values))
        if len(set(values)) == 1
        else " ".join(f"{value:.4g}" for value in values)
    )
