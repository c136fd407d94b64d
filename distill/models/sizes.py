"""The image size that weights were trained on, from the weights or from the user; never a silent
default.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.errors import InputError
from distill.models.build import create, takes_image_size
from distill.models.fitting import Fitted, fitted, head_classes, resampled, size_in
from distill.models.origin import Origin
from distill.models.pixels import device_mode
from distill.models.view import ModelView, view_of_config
from distill.models.weights import load_state_dict
from distill.recipe import schema


@dataclass(frozen=True)
class GivenSize:
    """A size in pixels, and the key or option that gives it."""

    image_size: int
    source: str


def teacher_view(
    spec: schema.TeacherSpec,
    origin: Origin,
    data_image_size: int,
    state_dict: Mapping[str, Tensor] | None = None,
) -> ModelView:
    """Return the view of a recipe's teacher, with the source of each value.

    Args:
        origin: its model and weights.
        data_image_size: the recipe's data.image_size.
        state_dict: the weights, if they have been read.

    Raises:
        InputError: nothing gives the size that the weights were trained on, or two keys give
            different ones.
    """
    view = sized_view(
        origin,
        spec.model_args,
        given=given_size(spec),
        of_data=GivenSize(data_image_size, "data.image_size"),
        option="teacher.image_size",
        state_dict=state_dict,
    )
    return view.replaced("teacher.mean", mean=spec.mean).replaced("teacher.std", std=spec.std)


def resampled_by_timm(
    origin: Origin, model_args: Mapping[str, Any], image_size: int, source: str
) -> tuple[str, ...]:
    """Return notes on what timm resamples when it loads its pretrained weights at another image
    size.

    Args:
        source: the key that gives `image_size`.
    """
    usual = view_of_config(origin.config, origin.source).image_size
    if usual == image_size or not takes_image_size(origin.name, model_args):
        return ()
    with torch.device("meta"):
        before, after = (
            create(
                origin.name, num_classes=None, image_size=size, model_args=model_args
            ).state_dict()
            for size in (usual, image_size)
        )
    return tuple(f"{note} ({source})" for note in resampled(before, after, origin.name))


def resized_on_device(view: ModelView, data_image_size: int) -> tuple[str, ...]:
    """Return a note if training resizes a run's images for the teacher in another way than its
    view.
    """
    mode = device_mode(view.interpolation)
    if view.image_size == data_image_size or view.interpolation == mode:
        return ()
    return (
        (
            f"its own evaluation resizes with {view.interpolation}; in training and for agreement"
            f" with it, the run's images of {data_image_size} px become {view.image_size} px on the"
            f" device, which has no {view.interpolation}: {mode} there"
        ),
    )


def refuse_unsaid_size(origin: Origin, found: Fitted, view: ModelView, option: str) -> None:
    """Raise InputError if weights do not have the size of their config, and the user gives none."""
    if found.adapted and view.sources["image_size"] == origin.source:
        raise InputError(
            f"{origin.file}: config.json says {view.image_size} px, the weights do not fit it"
            f" unchanged ({'; '.join(found.adapted)}): give {option}, or correct config.json"
        )


def refuse_other_head(origin: Origin, num_classes: int) -> None:
    """Raise InputError if weights have another number of classes than their config."""
    stated = int(origin.config["num_classes"])
    if not origin.assumed and stated != num_classes:
        raise InputError(
            f"{origin.file}: its head has {num_classes} classes, the config.json in its folder says"
            f" {stated}"
        )


def given_size(spec: schema.TeacherSpec) -> GivenSize | None:
    """Return the image size that a recipe gives its teacher, in one of two keys; None for none.

    Raises:
        InputError: the keys contradict each other, or the size is not square.
    """
    built_for = spec.model_args.get("img_size")
    if built_for is None:
        return None if spec.image_size is None else GivenSize(spec.image_size, "teacher.image_size")
    sides = {built_for} if isinstance(built_for, int) else set(built_for)
    if len(sides) != 1:
        raise InputError(f"teacher.model_args.img_size {built_for}: recipes hold square images")
    side: int = sides.pop()
    if spec.image_size not in (None, side):
        raise InputError(
            f"teacher.image_size {spec.image_size} and teacher.model_args.img_size {side}"
            " contradict each other: leave one out"
        )
    return GivenSize(side, "teacher.model_args.img_size")


def sized_view(
    origin: Origin,
    model_args: Mapping[str, Any],
    *,
    given: GivenSize | None,
    of_data: GivenSize | None,
    option: str,
    state_dict: Mapping[str, Tensor] | None = None,
    use_test_size: bool = False,
) -> ModelView:
    """Return the view of a model: its config's, in the given size or the one that its weights were
    trained on.

    The weights' own config has the size. Without one, a model that takes any size sees `of_data`,
    and a model built for one size sees the one at which its weights fit unchanged.

    Args:
        given: the size that the user gives for this model.
        of_data: the size of the run's images; None outside a run, which leaves timm's config as the
            assumption.
        option: the key or option that would give the size, for messages.
        state_dict: the weights; None reads them from the origin's file if needed.
        use_test_size: as in `view_of_config`, for a config that is the weights' own.
    """
    view = view_of_config(
        origin.config, origin.source, use_test_size=use_test_size and not origin.assumed
    )
    if given is not None:
        return view.replaced(given.source, image_size=given.image_size)
    if not origin.assumed:
        return view
    if not takes_image_size(origin.name, model_args):
        return view.replaced(of_data.source, image_size=of_data.image_size) if of_data else view
    if origin.file is None:  # random weights are those of the size it is built for
        return view
    if state_dict is None:
        state_dict, _ = load_state_dict(origin.file)
    found = _size_that_fits(origin, model_args, state_dict, view.image_size, of_data, option)
    return view.replaced(found.source, image_size=found.image_size)


def _size_that_fits(
    origin: Origin,
    model_args: Mapping[str, Any],
    state_dict: Mapping[str, Tensor],
    usual: int,
    of_data: GivenSize | None,
    option: str,
) -> GivenSize:
    """Return the size at which the weights fit the model without resampling; of several the data's.

    Raises:
        InputError: neither the data's size fits, nor the one of the shapes, nor the one that timm
            builds the model for.
    """

    def adapted(size: int) -> bool:
        with torch.device("meta"):
            classes = head_classes(origin.config, state_dict)
            net = create(origin.name, num_classes=classes, image_size=size, model_args=model_args)
        return bool(fitted(net, state_dict, f"{origin.file} for {origin.name}").adapted)

    if of_data is not None and not _fails(adapted, of_data.image_size):
        return of_data
    own = size_in(state_dict)
    for size in (own, usual):
        if size is not None and not _fails(adapted, size):
            return GivenSize(size, f"the shapes in {origin.file}")
    adapted(own or usual)  # raises a clearer error if the weights are of another model
    raise InputError(
        f"{origin.file}: not weights of {origin.name} at {usual} px, and their shapes do not say"
        f" the size: name the model of these weights, or give {option}"
    )


def _fails(adapted: Callable[[int], bool], size: int) -> bool:
    try:
        return adapted(size)
    except InputError:
        return True
