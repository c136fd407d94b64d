"""A model in timm's format: safetensors, config.json with the class names, and what we measured.

`timm.create_model("local-dir:FOLDER", pretrained=True)` gives the same logits. A run writes its
best weights in this format, so an export is a copy.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from distill.checkpoint.layout import METRICS_FILE, RECIPE_FILE
from distill.checkpoint.store import storable
from distill.errors import InputError
from distill.files import atomic_directory, current_directory, sha256_of
from distill.models.origin import CONFIG_FILE, WEIGHTS_FILES
from distill.models.view import ModelView
from distill.recipe.hub_names import is_hub_name

WEIGHTS_FILE = "model.safetensors"
ONNX_FILE = "model.onnx"
PROGRAM_FILE = "model.pt2"  # the ending that torch.export uses
RECORD_FILE = "distill.json"
WEIGHTS_SHA256 = "weights_sha256"
"""The key of a record that says of which file its scores are; earlier versions lack it."""
RAW = "raw"
"""The name of the trained weights, as opposed to their averages."""
RAW_BEFORE = "last"
"""What RAW was called in records and options of earlier versions; "last" now means the newest only.
"""
# Keys about timm's own weights of the architecture; the licence of a run's weights is their owner's
# choice.
_OF_OTHER_WEIGHTS = (
    "tag",
    "license",
    "description",
    "origin_url",
    "paper_name",
    "paper_ids",
    "notes",
)


def write_model(
    folder: Path,
    net: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    classes: tuple[str, ...],
    view: ModelView,
    record: Mapping[str, Any],
) -> None:
    """Write an export to `folder` atomically, replacing what is there (see `refuse_overwrite`).

    Args:
        net: the timm model, for its architecture and arguments.
        weights: state dict to write, of the net or of an average.
        view: what the model sees when it is evaluated.
        record: what is known of the weights: student, step, scores.

    Raises:
        WriteError: disk full or unwritable.
    """
    with atomic_directory(folder) as directory:
        file = directory / WEIGHTS_FILE
        save_file(storable(weights), file, metadata={"format": "pt"})
        record = {**record, WEIGHTS_SHA256: sha256_of(file)}
        describe_model(directory, net, classes=classes, view=view, record=record)


def describe_model(
    directory: Path,
    net: nn.Module,
    *,
    classes: tuple[str, ...],
    view: ModelView,
    record: Mapping[str, Any],
) -> None:
    """Write config.json and our record of an export into a folder. Arguments as `write_model`."""
    save_config_for_hf(
        net,
        str(directory / CONFIG_FILE),
        model_config={"label_names": list(classes)},
        data_config=data_config(view),
    )
    _forget_origin(directory / CONFIG_FILE)
    (directory / RECORD_FILE).write_text(json.dumps(dict(record), indent=1))


def data_config(view: ModelView) -> dict[str, Any]:
    """Return what a model sees by the names of timm."""
    return {
        "input_size": (3, view.image_size, view.image_size),
        "mean": view.mean,
        "std": view.std,
        "crop_pct": view.crop_fraction,
        "crop_mode": view.crop_mode,
        "interpolation": view.interpolation,
    }


def _forget_origin(file: Path) -> None:
    """Remove from a config what describes timm's own weights of this architecture."""
    config = json.loads(file.read_text(encoding="utf-8"))
    for key in _OF_OTHER_WEIGHTS:
        config["pretrained_cfg"].pop(key, None)
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")


def refuse_overwrite(folder: Path) -> None:
    """Raises InputError where `write_model` would replace anything but an earlier export."""
    if is_hub_name(str(folder)):
        raise InputError(
            f"{folder}: is a name on the Hub, and an export is a folder: name a folder, and publish"
            " it with `distill publish`"
        )
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise InputError(f"{place}: is a file, and an export is a folder: choose another place")
    for run in folder.resolve().parents:
        if (run / RECIPE_FILE).is_file() and (run / METRICS_FILE).is_file():
            raise InputError(
                f"{folder}: is inside the run {run}, whose files it might replace: choose another"
                " folder"
            )
    if not folder.exists():
        return
    known = {WEIGHTS_FILE, ONNX_FILE, PROGRAM_FILE, CONFIG_FILE, RECORD_FILE}
    if other := sorted(entry.name for entry in folder.iterdir() if entry.name not in known):
        raise InputError(
            f"{folder}: holds {other[0]!r}, which is no part of an export and would be lost: choose"
            " another folder, or move it away"
        )
    if any(folder.iterdir()) and not (folder / RECORD_FILE).is_file():
        raise InputError(
            f"{folder}: holds a model that distill did not export (it has no {RECORD_FILE}) and"
            " that would be lost: choose another folder, or move it away"
        )


def read_current_record(folder: Path) -> dict[str, Any]:
    """Return the record of the export that replaced all others in `folder`; empty if there is none.

    Raises:
        InputError: the record is damaged.
    """
    current = current_directory(folder)
    return read_record(current) if current else {}


def read_record(folder: Path) -> dict[str, Any]:
    """Return what `write_model` recorded with the weights; empty for an export that is not ours.

    Raises:
        InputError: the record is damaged.
    """
    file = folder / RECORD_FILE
    if not file.is_file():
        return {}
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read ({error}): export again, or delete it") from error
    if not isinstance(record, dict):
        raise InputError(f"{file}: is not the record of an export: export again, or delete it")
    if record.get("weights") == RAW_BEFORE:
        record["weights"] = RAW
    return record


def is_export(folder: Path) -> bool:
    """Return whether a folder holds a model that timm can load."""
    return (folder / CONFIG_FILE).is_file() and any(
        (folder / name).is_file() for name in WEIGHTS_FILES
    )


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the class names of an export.

    Raises:
        InputError: its config.json cannot be read.
    """
    try:
        return tuple(json.loads((folder / CONFIG_FILE).read_text()).get("label_names", ()))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / CONFIG_FILE}: cannot be read: {error}") from error
