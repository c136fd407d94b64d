"""The two pipelines from a record to a training view: `reference` is timm's own transforms on
Pillow images, `fast` makes the same random decisions with faster libraries.
"""

import importlib.util
from collections.abc import Callable
from importlib import metadata
from typing import Any, Protocol

import numpy as np

from distill.data.augment import TrainTransform
from distill.errors import InputError
from distill.recipe.data import AugmentSpec, Pipeline

_PACKAGES = {"cv2": "opencv-python-headless", "simplejpeg": "simplejpeg"}


class TrainView(Protocol):
    """Record -> `decode` -> an image, for as many views as wanted -> `__call__` -> uint8
    [image_size, image_size, 3]. The call draws from the global generators.
    """

    image_size: int

    @property
    def decode(self) -> Callable[[bytes | np.ndarray], Any]: ...

    def __call__(self, image: Any, /) -> np.ndarray: ...


def train_view(pipeline: Pipeline, image_size: int, augment: AugmentSpec) -> TrainView:
    """The training view of a recipe's `data` section.

    Raises:
        InputError: an unknown policy, or a package of the fast pipeline is missing.
    """
    settings = augment.model_dump(exclude={"repeats"})
    if pipeline == "reference":
        return TrainTransform(image_size=image_size, **settings)
    missing = [name for module, name in _PACKAGES.items() if not importlib.util.find_spec(module)]
    if missing:
        raise InputError(
            f"data.pipeline: fast needs the package {' and '.join(missing)}: pip install"
            " 'vanillakd[fast]', or set data.pipeline: reference"
        )
    from distill.data.fast.view import FastTransform

    return FastTransform(image_size=image_size, **settings)


def pipeline_versions(pipeline: Pipeline) -> dict[str, str]:
    """The versions of the packages that make a pipeline's pixels beside those of `reference`."""
    if pipeline == "reference":
        return {}
    import cv2  # one of several packages: opencv-python, with or without -headless or -contrib

    return {"opencv": cv2.__version__, "simplejpeg": metadata.version("simplejpeg")}
