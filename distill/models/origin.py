"""Where a model's weights are, and the timm config that names the model and its view of images.

A config.json in the folder of a file of weights is the config of that file. Without one, timm's
config of the name that the user gives is an assumption, and is printed as one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill.checkpoint.layout import REPORT_FILE, best_root, reported_best
from distill.errors import InputError, did_you_mean
from distill.models.build import config, config_source, is_timm_config
from distill.models.hub import download
from distill.models.hub.download import Snapshot
from distill.recipe import schema
from distill.recipe.hub_names import HubModel, is_hub_name

CONFIG_FILE = download.CONFIG_FILE
WEIGHTS_FILES = download.WEIGHTS_FILES
RANDOM = "random weights"
"""What records say of weights that are from nowhere."""


@dataclass(frozen=True)
class Origin:
    """A model and its weights.

    Attributes:
        name: what `create` builds: a timm name, or "local-dir:FOLDER".
        config: its timm config.
        file: of the weights; None for timm's own weights or random ones.
        assumed: the config is timm's for the name, and the weights may have been trained in another
            way.
        hub: the model of the Hub that the file was downloaded from, at its commit.
    """

    name: str
    config: Mapping[str, Any]
    file: Path | None
    assumed: bool
    hub: HubModel | None = None

    @property
    def place(self) -> str:
        """Where the weights are, for messages: their file, or their name on the Hub."""
        return str(self.hub or self.file)

    @property
    def licence(self) -> str | None:
        """The licence that the card or the config states with the weights, if any; of an export,
        that of its own teacher, which may bind what is distilled from it.
        """
        if self.hub is not None:
            assert self.file is not None
            return download.licence_in(self.file.parent)
        if self.assumed:
            return None
        found = self.config.get("license")
        if isinstance(found, str):
            return found
        return None if self.file is None else download.recorded_licence(self.file.parent)

    @property
    def source(self) -> str:
        """Where the config is from, for messages."""
        if self.hub is not None:
            return f"{CONFIG_FILE} of {self.hub}"
        return f"{'assumed from ' if self.assumed else ''}{config_source(self.name, self.config)}"

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in the order of the logits, if the config has them.

        Raises:
            InputError: they are something else than names.
        """
        names = self.config.get("label_names")
        if not names or self.assumed:
            return None
        try:
            if isinstance(names, Mapping):  # timm allows {"0": "name", ...}
                names = [names[key] for key in sorted(names, key=int)]
        except ValueError:
            names = None
        if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
            raise InputError(f"{self.source}: label_names should be a list of names: correct it")
        return tuple(names)


def origin_of_teacher(spec: schema.TeacherSpec, root: Path, *, may_download: bool = True) -> Origin:
    """Find the weights of a recipe's teacher.

    Args:
        may_download: weights of the Hub that are not in the cache are downloaded.

    Raises:
        InputError: no such model or weights, or their config names another model than the recipe.
    """
    if spec.weights in ("pretrained", "random"):
        assert spec.model is not None, "the schema refuses this"
        _refuse_student(spec, f"weights: {spec.weights}")
        return Origin(spec.model, config(spec.model), None, assumed=spec.weights == "random")
    if is_hub_name(spec.weights):
        _refuse_student(spec, spec.weights)
        snapshot = _snapshot(spec.weights, "teacher.weights", may_download)
        return origin_of_snapshot(snapshot, spec.model, "teacher.model")
    path = root / Path(spec.weights).expanduser()
    if path.is_file():
        _refuse_student(spec, str(path))
        return origin_of_file(path, spec.model, "teacher.model")
    if not path.is_dir():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(
            f"teacher.weights: {path} does not exist{did_you_mean(path.name, siblings)}"
        )
    if (path / CONFIG_FILE).is_file():
        if spec.student != path.name:
            _refuse_student(spec, str(path))
    else:
        path = _of_run(path, spec.student)
    return origin_of_folder(path, spec.model, "teacher.model")


def teacher_known_here(spec: schema.TeacherSpec, root: Path) -> Origin | None:
    """Return a recipe's teacher: with its weights if they are here, else its timm name alone; None
    if neither is known.
    """
    try:
        return origin_of_teacher(spec, root, may_download=False)
    except InputError:  # distill.training.check reports it
        return (
            None
            if spec.model is None
            else Origin(spec.model, config(spec.model), None, assumed=True)
        )


def origin_of_student(spec: schema.StudentSpec, root: Path, *, may_download: bool = True) -> Origin:
    """Find what a recipe's student starts from. A config with its weights must name the recipe's
    model.

    Args:
        may_download: weights of the Hub that are not in the cache are downloaded; otherwise the
            origin is the recipe's model without weights.

    Raises:
        InputError: no such model, or a config with the weights that names another one.
    """
    if spec.weights in (None, "pretrained"):
        return Origin(spec.model, config(spec.model), None, assumed=False)
    assert spec.weights is not None
    if is_hub_name(spec.weights):
        if not may_download and download.in_cache(spec.weights, "weights") is None:
            return Origin(spec.model, config(spec.model), None, assumed=True)
        snapshot = _snapshot(spec.weights, "weights", may_download)
        return origin_of_snapshot(snapshot, spec.model, "model")
    return origin_of_file(root / Path(spec.weights).expanduser(), spec.model, "model")


def _snapshot(weights: str, key: str, may_download: bool) -> Snapshot:
    if may_download:
        return download.fetch(weights, key)
    if (found := download.in_cache(weights, key)) is None:
        raise InputError(f"{key}: {weights} is not in the cache")
    return found


def origin_of_snapshot(snapshot: Snapshot, model: str | None, key: str) -> Origin:
    """Return a model of the Hub.

    Raises:
        InputError: it is not in timm's format, or another model than the user says.
    """
    try:
        found = origin_of_folder(snapshot.folder, model, key)
    except InputError as error:  # a user does not know the folders of the cache
        message = str(error).replace(str(snapshot.folder), str(snapshot.model))
        raise InputError(message) from error
    return replace(found, hub=snapshot.model)


def origin_of_file(path: Path, model: str | None, key: str) -> Origin:
    """Return a file of weights with the config in its folder, or else under the name that the user
    gives.

    Args:
        key: the key or option of that name, for messages.

    Raises:
        InputError: nothing names the model, or two names differ.
    """
    if is_timm_config(path.parent / CONFIG_FILE):
        return _with_config(path.parent, path, model, key)
    if model is None:
        raise InputError(
            f"{path}: a file of weights does not name its architecture, and no config.json of timm"
            f" is in its folder: give {key} and a timm name"
        )
    return Origin(model, config(model), path, assumed=True)


def origin_of_folder(path: Path, model: str | None, key: str) -> Origin:
    """Return the model of a folder in timm's format: config.json and weights.

    Raises:
        InputError: it has another model than the user says, or no weights.
    """
    for file in WEIGHTS_FILES:
        if (path / file).is_file():
            return _with_config(path, path / file, model, key)
    _with_config(path, None, model, key)
    raise InputError(
        f"{path}: config.json is there, model.safetensors is not: the export is incomplete"
    )


def _with_config(folder: Path, file: Path | None, model: str | None, key: str) -> Origin:
    name = f"local-dir:{folder}"
    found = config(name)
    if model is not None and (own := str(config(model)["architecture"])) != found["architecture"]:
        what = (
            f"{folder} holds"
            if file is None or file.name in WEIGHTS_FILES
            else f"the config.json in the folder of {file} says"
        )
        raise InputError(
            f"{key} is {own}, and {what} a {found['architecture']}: leave {key} out, or move the"
            " config.json away if it is of other weights"
        )
    return Origin(name, found, file, assumed=False)


def _refuse_student(spec: schema.TeacherSpec, where: str) -> None:
    if spec.student is not None:
        raise InputError(
            f"teacher.student {spec.student!r} picks among the students of a run, and {where} is"
            " one model"
        )


def _of_run(path: Path, student: str | None) -> Path:
    """Return a student's exported model in `path`, which is a run or its folder `best`."""
    best = best_root(path) if best_root(path).is_dir() else path
    names = sorted(
        e.parent.name for e in best.glob(f"*/{CONFIG_FILE}") if not e.parent.name.startswith(".")
    )
    if not names:
        raise InputError(
            f"teacher.weights: {path} is neither an exported model (config.json, model.safetensors)"
            " nor a finished run (best/<student>/)"
        )
    if not (best.parent / REPORT_FILE).is_file():
        raise InputError(
            f"teacher.weights: the run {path} is not finished (no {REPORT_FILE}): finish it, or"
            f" name the weights it has so far, {best / names[0]}"
        )
    student = student or reported_best(best.parent)
    if student not in names:
        unknown = (
            "its report names no best student"
            if student is None
            else f"it has no {student!r}{did_you_mean(student, names)}"
        )
        raise InputError(
            f"teacher.student: the run {path}: {unknown}: name one of {', '.join(names)}"
        )
    return best / student
