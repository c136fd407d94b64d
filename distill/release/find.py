"""Models with their weights, found in a run, a checkpoint, an export or a file of weights."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from distill.checkpoint.layout import RECIPE_FILE, best_dir, checkpoints_dir, is_checkpoint
from distill.checkpoint.store import Checkpoint, load, load_newest
from distill.data.label_sets import named_list, space_of_size
from distill.errors import InputError, did_you_mean
from distill.files import current_directory
from distill.models.build import config, create, timm_name
from distill.models.export_format import RAW, RAW_BEFORE, WEIGHTS_FILE, is_export, read_record
from distill.models.fitting import apply_weights, fitted, head_classes
from distill.models.hub.derived import derived_from_all, recorded_teachers, teachers_of_checkpoint
from distill.models.hub.download import fetch
from distill.models.origin import Origin, origin_of_file, origin_of_folder, origin_of_snapshot
from distill.models.pixels import Pixels
from distill.models.plausible import Promise, read_promise
from distill.models.sizes import (
    GivenSize,
    refuse_other_head,
    refuse_unsaid_size,
    resampled_by_timm,
    sized_view,
)
from distill.models.student import began_with, first_weights, student_view
from distill.models.view import ModelView
from distill.models.weights import load_state_dict
from distill.recipe import Recipe, load_recipe
from distill.recipe.hub_names import HubModel, is_hub_name, parse_hub_name
from distill.training.run_state import RunState


@dataclass
class Found:
    """A model with its weights, on the CPU.

    Attributes:
        view: what it sees.
        classes: in the order of the logits; empty if no record names them.
        record: run, student and scores of the weights, as far as known.
        notes: what was adapted when the weights were loaded, a sentence each.
        promise: the accuracy that a record of the weights promises.
        file: the file of the weights; None for those of a checkpoint or of timm.
    """

    name: str
    net: nn.Module
    view: ModelView
    classes: tuple[str, ...]
    record: dict[str, Any]
    notes: tuple[str, ...] = ()
    promise: Promise | None = None
    file: Path | None = None

    @property
    def has_classes(self) -> bool:
        """Whether it has a classifier."""
        return int(self.net.num_classes) > 0  # type: ignore[arg-type]

    @property
    def pixels(self) -> Pixels:
        """The normalisation that the model expects."""
        return Pixels(self.view.mean, self.view.std)

    @property
    def size_warning(self) -> str | None:
        """A warning if the image size of the weights is assumed."""
        if not self.view.sources["image_size"].startswith("assumed"):
            return None
        return (
            f"{self.name}: its file does not say on which image size it was trained;"
            f" {self.view.image_size} px is timm's size of the model: give --image-size if it is"
            " another"
        )


def find_models(
    path: Path,
    *,
    model: str | None,
    student: str | None,
    weights: str,
    image_size: int | None,
    use_test_size: bool = False,
) -> list[Found]:
    """Load the models at a path: of a run, a checkpoint, an export, a file of weights, a model of
    the Hub (hf://OWNER/NAME[@REVISION], where pathlib may have joined the slashes), or the model
    that timm knows by that name, with its pretrained weights.

    Args:
        model: timm name, for a file of weights.
        student: one of a run; None for all that have such weights.
        weights: of a run: "best", or "raw" or an average such as "ema-0.999" of the newest
            checkpoint.
        image_size: None for the model's own.
        use_test_size: take the test size of a config that has one, as `view_of_config` says.

    Raises:
        InputError: there is none, or it lacks what the arguments name.
    """
    if is_hub_name(str(path)):
        return [_from_hub(str(path), model, student, weights, image_size, use_test_size)]
    if path.is_file():
        _refuse_choice(path, student, weights)
        return [_from_file(path, model, image_size, use_test_size)]
    if not path.is_dir():
        if not timm.is_model(str(path).partition(".")[0]):
            raise InputError(
                f"{path}: there is no such run, checkpoint, export or file, and timm has no model"
                " of this name"
            )
        _refuse_choice(path, student, weights)
        return [_from_timm(str(path), image_size, use_test_size)]
    if model is not None:
        raise InputError(
            f"--model names the architecture of a file of weights; {path} is a folder, which names"
            " its own"
        )
    if is_export(path):
        _refuse_choice(path, student, weights)
        return [_from_export(path, path.name, image_size, use_test_size)]
    if not (path / RECIPE_FILE).is_file():
        raise InputError(
            f"{path}: neither a run (recipe.yaml), a checkpoint (manifest.json) nor an export"
            f" (config.json and {WEIGHTS_FILE})"
        )
    recipe = load_recipe(path / RECIPE_FILE)
    if student is not None and student not in recipe.students:
        raise InputError(
            f"{path}: no student {student!r}{did_you_mean(student, recipe.students)}; it has"
            f" {', '.join(recipe.students)}"
        )
    weights = RAW if weights == RAW_BEFORE else weights
    names = [student] if student else list(recipe.students)
    if is_checkpoint(path):
        return _from_checkpoint(
            load(path), recipe, names, RAW if weights == "best" else weights, image_size
        )
    if weights != "best":
        return _from_checkpoint(
            load_newest(checkpoints_dir(path)), recipe, names, weights, image_size
        )
    folders = {name: current_directory(best_dir(path, name)) for name in names}
    found = [
        _from_export(folder, name, image_size)
        for name, folder in folders.items()
        if folder is not None
    ]
    if not found:
        raise InputError(
            f"{path}: nothing was evaluated here yet, so there are no best weights; --weights raw"
            " takes those of its newest checkpoint"
        )
    return found


def find_model(
    path: str,
    option: str,
    *,
    model: str | None,
    student: str | None = None,
    weights: str = "best",
    image_size: int | None = None,
    use_test_size: bool = True,
    student_option: str | None = None,
) -> Found:
    """Load the only model at a path, as `find_models`.

    Args:
        option: what names the path, for messages.
        student_option: the option that gives `student`, if there is one.

    Raises:
        InputError: there is none, or there are several.
    """
    found = find_models(
        Path(path),
        model=model,
        student=student,
        weights=weights,
        image_size=image_size,
        use_test_size=use_test_size,
    )
    if len(found) != 1:
        names = ", ".join(each.name for each in found)
        advice = f"name one of its folders {path}/best/STUDENT"
        if student_option is not None:
            advice = f"choose one with {student_option}"
        raise InputError(f"{option} {path}: a run of several students ({names}): {advice}")
    return found[0]


def which_weights(found: Found) -> str:
    """Which weights of a run these are, in words; of other weights what their record says."""
    if "step" not in found.record:
        return str(found.record.get("weights", ""))
    kind, step = found.record["weights"], found.record["step"]
    # Only the best weights record how they were chosen; earlier versions recorded the top-1 alone.
    best = "metric" in found.record or found.record.get("top1") is not None
    return f"best weights ({kind}, step {step})" if best else f"{kind} weights of step {step}"


def _from_hub(
    name: str,
    model: str | None,
    student: str | None,
    weights: str,
    image_size: int | None,
    use_test_size: bool,
) -> Found:
    hub_model = parse_hub_name(name)
    _refuse_choice(hub_model, student, weights)
    if model is not None:
        raise InputError(f"--model: {hub_model} names its own architecture: leave it out")
    origin = origin_of_snapshot(fetch(str(hub_model), "model", again=True), None, "--model")
    assert origin.hub is not None
    found = _loaded(origin, hub_model.repo.split("/")[1], image_size, use_test_size, origin.hub)
    derived = derived_from_all([began_with(str(origin.hub), origin.licence), found.record])
    own = {key: value for key, value in found.record.items() if key != "began_with_license"}
    return replace(found, record={**own, "hub": str(origin.hub), **derived})


def _refuse_choice(path: Path | HubModel, student: str | None, weights: str) -> None:
    for option, given in (
        ("--student", student),
        ("--weights", weights if weights != "best" else None),
    ):
        if given is not None:
            raise InputError(
                f"{option} {given} picks among what a run holds, and {path} is one model: leave"
                " it out"
            )


def _from_export(
    folder: Path, name: str, image_size: int | None, use_test_size: bool = False
) -> Found:
    origin = origin_of_folder(folder, None, "--model")
    return _loaded(origin, name, image_size, use_test_size, folder)


def _from_file(path: Path, model: str | None, image_size: int | None, use_test_size: bool) -> Found:
    origin = origin_of_file(path, model, "--model")
    return _loaded(origin, path.stem, image_size, use_test_size, path)


def _from_timm(name: str, image_size: int | None, use_test_size: bool) -> Found:
    origin = Origin(name, config(name), None, assumed=False)
    view = _view(origin, image_size, use_test_size, None)
    notes = () if image_size is None else resampled_by_timm(origin, {}, image_size, "--image-size")
    net = create(name, num_classes=None, pretrained=True, image_size=view.image_size)
    num_classes = int(origin.config["num_classes"])
    space = space_of_size(num_classes)
    return Found(
        name=name,
        net=net,
        view=view,
        classes=origin.classes or named_list(space or "") or (),
        record={
            "model": name,
            "weights": "pretrained",
            **began_with(f"pretrained {timm_name(name, origin.config)}", origin.licence),
        },
        notes=notes,
    )


def _view(
    origin: Origin,
    image_size: int | None,
    use_test_size: bool,
    state_dict: Mapping[str, Tensor] | None,
) -> ModelView:
    given = None if image_size is None else GivenSize(image_size, "--image-size")
    return sized_view(
        origin,
        {},
        given=given,
        of_data=None,
        option="--image-size",
        state_dict=state_dict,
        use_test_size=use_test_size,
    )


def _loaded(
    origin: Origin, name: str, image_size: int | None, use_test_size: bool, what: Path | HubModel
) -> Found:
    assert origin.file is not None
    state_dict, note = load_state_dict(origin.file)
    view = _view(origin, image_size, use_test_size, state_dict)
    num_classes = head_classes(origin.config, state_dict)
    refuse_other_head(origin, num_classes)
    net = create(origin.name, num_classes=num_classes, image_size=view.image_size)
    found = fitted(net, state_dict, f"{what} for {origin.name}" if origin.assumed else origin.place)
    refuse_unsaid_size(origin, found, view, "--image-size")
    net.load_state_dict(found.state_dict)
    record = {} if origin.assumed else read_record(origin.file.parent)
    promise = read_promise(origin.file)
    return Found(
        name=name,
        net=net,
        view=view,
        classes=origin.classes or (),
        record=record
        or {
            "model": origin.name if origin.assumed else origin.config["architecture"],
            "weights": note,
        },
        notes=found.notes,
        promise=promise if image_size is None else None,
        file=origin.file,
    )


def _from_checkpoint(
    checkpoint: Checkpoint,
    recipe: Recipe,
    names: Iterable[str],
    weights: str,
    image_size: int | None,
) -> list[Found]:
    of_run = tuple(RunState.from_dict(checkpoint.values).classes)
    teachers = teachers_of_checkpoint(recipe, checkpoint.values)
    size = image_size or recipe.data.image_size
    found = []
    for name in names:
        spec = recipe.students[name]
        classes = () if recipe.trains_backbone(name) else of_run
        stems = [
            stem.removeprefix(f"{name}.")
            for stem in checkpoint.tensor_names
            if stem == f"{name}.model" or stem.startswith(f"{name}.ema-")
        ]
        if not stems:
            continue  # it had stopped, so the checkpoint holds no weights of it
        which = "model" if weights == RAW else weights
        if which not in stems:
            known = ["best", *(RAW if stem == "model" else stem for stem in stems)]
            raise InputError(
                f"{checkpoint.path}: no weights {weights!r} of {name}"
                f"{did_you_mean(weights, known)}; there are {', '.join(known)}"
            )
        net = create(
            spec.model, num_classes=len(classes), image_size=size, model_args=spec.model_args
        )
        tensors = {
            k: v
            for k, v in checkpoint.tensors(f"{name}.{which}").items()
            if not k.startswith("ema/")
        }
        apply_weights(net, tensors, f"{checkpoint.path}/{name}.{which}")
        found.append(
            Found(
                name=name,
                net=net,
                view=_view_of_run(checkpoint, recipe, name).replaced(
                    "--image-size", image_size=image_size
                ),
                classes=classes,
                record={
                    "run": recipe.name,
                    "student": name,
                    "model": spec.model,
                    **first_weights(spec),
                    **recorded_teachers({row: teachers[row] for row in recipe.teachers_of(name)}),
                    "weights": weights,
                    "step": checkpoint.state.step,
                },
            )
        )
    if not found:
        raise InputError(
            f"{checkpoint.path}: {', '.join(names)} had stopped before, on a loss that was not"
            " finite"
        )
    return found


def _view_of_run(checkpoint: Checkpoint, recipe: Recipe, name: str) -> ModelView:
    """What a student of a run sees, as its checkpoint records it: the weights that it began with
    may be gone.
    """
    spec = recipe.students[name].model_copy(update={"weights": None})
    view = student_view(spec, Path(), recipe.data, f"students.{name}")
    views = RunState.from_dict(checkpoint.values).views
    # Students of earlier versions always saw timm's mean and std, or the recipe's.
    if views is None:
        return view
    recorded = views[name]
    source = f"recorded in {checkpoint.path}"
    return view.replaced(source, mean=tuple(recorded["mean"]), std=tuple(recorded["std"]))
