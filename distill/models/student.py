"""The student of a recipe: its model with its first weights, and its view."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from distill import rng
from distill.errors import InputError
from distill.models.build import (
    checkpoint_activations,
    config,
    config_source,
    student_architecture,
    timm_name,
)
from distill.models.fitting import (
    apply_weights,
    fitted,
    head_classes,
    refuse_not_finite,
    with_head_of,
)
from distill.models.hub.download import in_cache, licence_in, pinned_commits
from distill.models.hub.licences import UNREADABLE
from distill.models.labels import match_classes
from distill.models.origin import RANDOM, Origin, origin_of_student
from distill.models.sizes import resampled_by_timm
from distill.models.view import ModelView, view_of_config
from distill.models.weights import load_state_dict
from distill.recipe import schema
from distill.recipe.hub_names import is_hub_name, parse_hub_name

# Of a head whose number of classes nothing reads.
_ANY_CLASSES = 10


def create_student(
    spec: schema.StudentSpec, *, classes: Sequence[str], image_size: int, seed: int, root: Path
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the student of a recipe, on the CPU, in train mode, and notes on adapted weights.
    Without classes it is a backbone without classifier.

    Its initial weights are a pure function of (seed, spec.seed) and the architecture.
    `spec.weights` is "pretrained" or a file below `root`; a file must fit the model, its head
    included, and be of these classes if a config in its folder names them. A file without a head
    leaves the model its own.
    """
    pretrained, notes = spec.weights == "pretrained", tuple[str, ...]()
    with rng.seeded(rng.hash64(seed, "init", spec.seed)):
        model = student_architecture(spec, len(classes), image_size, pretrained)
    origin = origin_of_student(spec, root)
    if origin.file is not None:
        state_dict, _ = load_state_dict(origin.file)
        state_dict, notes = with_head_of(model, state_dict)
        what = f"weights {origin.place} for {spec.model}"
        notes += apply_weights(model, state_dict, what)
        refuse_not_finite(model, model.state_dict(), what)
        if classes and (named := origin.classes) is not None:
            _refuse_other_classes(named, classes, f"weights {origin.place}")
    elif pretrained:
        notes = resampled_by_timm(origin, spec.model_args, image_size, "data.image_size")
    if spec.grad_checkpointing:
        checkpoint_activations(model, spec.model)
    return model, notes


def _refuse_other_classes(named: Sequence[str], classes: Sequence[str], who: str) -> None:
    """Raise InputError if the head of weights has other classes than the data, or in another
    order.
    """
    if not match_classes(named, len(named), classes, who=who).in_order:
        raise InputError(
            f"{who} have the data's classes in another order: give data.train.classes and"
            " data.eval.classes in theirs"
        )


def student_notes(
    spec: schema.StudentSpec, *, num_classes: int | None, image_size: int, root: Path
) -> tuple[str, ...]:
    """Return the notes of `create_student`, or raise its errors, without its memory; () if the
    weights are not here.

    Args:
        num_classes: of the data; None if unknown, which takes the number of the weights.
    """
    origin = origin_of_student(spec, root, may_download=False)
    if origin.file is None:
        pretrained = spec.weights == "pretrained"
        return (
            resampled_by_timm(origin, spec.model_args, image_size, "data.image_size")
            if pretrained
            else ()
        )
    if not origin.file.is_file():
        return ()
    state_dict, _ = load_state_dict(origin.file)
    with torch.device("meta"):
        if num_classes is None:
            num_classes = head_classes(origin.config, state_dict) or _ANY_CLASSES
        model = student_architecture(spec, num_classes, image_size, pretrained=False)
    state_dict, of_head = with_head_of(model, state_dict)
    what = f"weights {origin.place} for {spec.model}"
    found = fitted(model, state_dict, what)
    refuse_not_finite(model, found.state_dict, what)
    return of_head + found.notes


def first_weights(spec: schema.StudentSpec) -> dict[str, str]:
    """Return what a student began with, for the record of its export: its weights derive from
    these, and their licence may too.
    """
    if spec.weights is None:
        return began_with(RANDOM, None)
    if is_hub_name(spec.weights):
        return _of_hub(spec.weights)
    if spec.weights != "pretrained":
        return began_with(spec.weights, _licence_of_file(spec, Path(spec.weights).expanduser()))
    if ":" in spec.model:  # its config may be on the network, which a run does not use midway
        return began_with(f"pretrained {spec.model}", None)
    known = config(spec.model)
    return began_with(f"pretrained {timm_name(spec.model, known)}", known.get("license"))


def began_with(weights: str, licence: str | None) -> dict[str, str]:
    """Return what records say of first weights.

    Args:
        weights: where they are from.
        licence: None if nothing states it.
    """
    return {"began_with": weights, **({"began_with_license": licence} if licence else {})}


def _licence_of_file(spec: schema.StudentSpec, file: Path) -> str | None:
    """Return the licence that an export states with a file of weights; None if it states none. Of a
    file that is gone it is not known, and may limit the choice.
    """
    if not file.is_file():
        return UNREADABLE
    try:
        return origin_of_student(spec, Path()).licence
    except InputError:  # its config was changed since the run began
        return UNREADABLE


def _of_hub(weights: str) -> dict[str, str]:
    """Return the commit that a name of the Hub means for this run, and the licence of its card."""
    commit = pinned_commits().get(str(parse_hub_name(weights)))
    found = in_cache(weights, "weights")
    licence = licence_in(found.folder) if found is not None else None
    return began_with(str(parse_hub_name(weights).at(commit)) if commit else weights, licence)


def student_view(
    spec: schema.StudentSpec,
    root: Path,
    data: schema.DataSpec,
    key: str = "student",
    *,
    may_download: bool = True,
) -> ModelView:
    """Return the view of a recipe's student: the run's image size and evaluation crop, with its own
    mean and std.

    Args:
        key: of the student in the recipe, for sources.
        may_download: weights of the Hub that are not in the cache are downloaded; otherwise mean
            and std are timm's.

    Raises:
        InputError: no such model, or a config with its weights that names another one.
    """
    origin = origin_of_student(spec, root, may_download=may_download)
    view = view_of_config(origin.config, _config_source(origin))
    crop = data.eval_view.model_dump()
    view = view.replaced("data.image_size", image_size=data.image_size).replaced(
        "data.eval_view", **crop
    )
    return view.replaced(f"{key}.mean", mean=spec.mean).replaced(f"{key}.std", std=spec.std)


def _config_source(origin: Origin) -> str:
    return origin.source if origin.hub else config_source(origin.name, origin.config)
