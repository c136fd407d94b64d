"""Models with their weights, out of whatever a path holds: a run, a checkpoint, an export, a file of weights."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from distill.build import student_pixels
from distill.checkpoint import Checkpoint, current_directory, load
from distill.errors import InputError, nearest
from distill.export import WEIGHTS_FILE, class_names, is_export, read_record
from distill.models.build import config, create
from distill.models.pixels import Pixels, pixel_config
from distill.models.weights import apply_weights, head_classes, load_state_dict
from distill.recipe import Recipe, load_recipe, schema
from distill.rundir import RECIPE_FILE, best_dir, newest_checkpoint


@dataclass
class Found:
    """A model with its weights, on the CPU. `classes` is empty where nobody recorded them."""

    name: str
    net: nn.Module
    pixels: Pixels
    image_size: int
    eval_view: schema.EvalView
    classes: tuple[str, ...]
    record: dict[str, Any]


def find_models(
    path: Path, *, model: str | None, student: str | None, weights: str, image_size: int | None
) -> list[Found]:
    """The models that a path holds: those of a run or a checkpoint, an export, or a file of weights.

    Args:
        model: timm name, for a file of weights.
        student: one of a run; None for all that have such weights.
        weights: of a run: "best", "last", or an average such as "ema-0.999".
        image_size: None for the model's own.

    Raises:
        InputError: nothing of the kind is there, or what is asked for is not in it.
    """
    if path.is_file():
        _refuse_choice(path, student, weights)
        return [_from_file(path, model, image_size)]
    if not path.is_dir():
        raise InputError(f"{path}: there is no such run, checkpoint, export or file")
    if model is not None:
        raise InputError(
            f"--model names the architecture of a file of weights; {path} is a folder, which names its own"
        )
    if is_export(path):
        _refuse_choice(path, student, weights)
        return [_from_export(path, path.name, image_size)]
    if not (path / RECIPE_FILE).is_file():
        raise InputError(
            f"{path}: neither a run (recipe.yaml), a checkpoint (manifest.json) nor an export (config.json and {WEIGHTS_FILE})"
        )
    recipe = load_recipe(path / RECIPE_FILE)
    if student is not None and student not in recipe.students:
        raise InputError(
            f"{path}: no student {student!r}{nearest(student, recipe.students)}; it has {', '.join(recipe.students)}"
        )
    names = [student] if student else list(recipe.students)
    if is_checkpoint(path):
        return _from_checkpoint(load(path), recipe, names, "last" if weights == "best" else weights, image_size)
    if weights != "best":
        return _from_checkpoint(newest_checkpoint(path), recipe, names, weights, image_size)
    folders = {name: current_directory(best_dir(path, name)) for name in names}
    found = [_from_export(folder, name, image_size) for name, folder in folders.items() if folder is not None]
    if not found:
        raise InputError(
            f"{path}: nothing was judged here yet, so there are no best weights; --weights last takes its newest checkpoint"
        )
    return found


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint of a run."""
    return (path / "manifest.json").is_file()


def _refuse_choice(path: Path, student: str | None, weights: str) -> None:
    for option, given in (("--student", student), ("--weights", weights if weights != "best" else None)):
        if given is not None:
            raise InputError(f"{option} {given} picks among what a run holds, and {path} is one model: leave it out")


def _from_export(folder: Path, name: str, image_size: int | None) -> Found:
    known = config(f"local-dir:{folder}")
    net = create(f"local-dir:{folder}", num_classes=None, image_size=image_size)
    state_dict, _ = load_state_dict(folder / WEIGHTS_FILE)
    apply_weights(net, state_dict, f"{folder / WEIGHTS_FILE}")
    return Found(
        name=name,
        net=net,
        pixels=Pixels(known["mean"], known["std"]),
        image_size=image_size or int(known["input_size"][-1]),
        eval_view=_view(known),
        classes=class_names(folder),
        record=read_record(folder),
    )


def _from_file(path: Path, model: str | None, image_size: int | None) -> Found:
    if model is None:
        raise InputError(f"{path}: a file of weights does not name its architecture: give --model and a timm name")
    known = config(model)
    state_dict, note = load_state_dict(path)
    net = create(model, num_classes=head_classes(known, state_dict), image_size=image_size)
    apply_weights(net, state_dict, f"{path} for {model}")
    wants = pixel_config(net)
    return Found(
        name=path.stem,
        net=net,
        pixels=Pixels(wants.mean, wants.std),
        image_size=image_size or wants.image_size,
        eval_view=_view(known),
        classes=(),
        record={"model": model, "weights": note},
    )


def _from_checkpoint(
    checkpoint: Checkpoint, recipe: Recipe, names: Iterable[str], weights: str, image_size: int | None
) -> list[Found]:
    classes = tuple(checkpoint.values["classes"])
    size = image_size or recipe.data.image_size
    found = []
    for name in names:
        spec = recipe.students[name]
        held = [
            stem.removeprefix(f"{name}.")
            for stem in checkpoint.tensor_names
            if stem == f"{name}.model" or stem.startswith(f"{name}.ema-")
        ]
        if not held:
            continue  # it had stopped: a checkpoint keeps only its record
        which = "model" if weights == "last" else weights
        if which not in held:
            known = ["best", *("last" if stem == "model" else stem for stem in held)]
            raise InputError(
                f"{checkpoint.path}: no weights {weights!r} of {name}{nearest(weights, known)}; there are {', '.join(known)}"
            )
        net = create(spec.model, num_classes=len(classes), image_size=size, model_args=spec.model_args)
        tensors = {k: v for k, v in checkpoint.tensors(f"{name}.{which}").items() if not k.startswith("ema/")}
        apply_weights(net, tensors, f"{checkpoint.path}/{name}.{which}")
        found.append(
            Found(
                name=name,
                net=net,
                pixels=student_pixels(net, spec),
                image_size=size,
                eval_view=recipe.data.eval_view,
                classes=classes,
                record={
                    "run": recipe.name,
                    "student": name,
                    "model": spec.model,
                    "weights": weights,
                    "step": checkpoint.state.step,
                },
            )
        )
    if not found:
        raise InputError(f"{checkpoint.path}: {', '.join(names)} had stopped before, on a loss that was not finite")
    return found


def _view(known: dict[str, Any]) -> schema.EvalView:
    bilinear = known.get("interpolation") == "bilinear"
    return schema.EvalView(
        crop_fraction=float(known.get("crop_pct") or 0.875), interpolation="bilinear" if bilinear else "bicubic"
    )
