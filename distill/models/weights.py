"""Weights from files, without running what a pickle says, and loaded strictly.

`torch.load(weights_only=True)` rebuilds tensors and plain containers. Besides those exactly one class is let through,
argparse.Namespace, because every checkpoint of timm's train.py carries one; unpickling it sets attributes and calls nothing.
"""

import argparse
import pickle
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.errors import InputError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
# Averages first: they are what a trainer evaluates and publishes. `ema` is ours, the first two are timm's.
EMA_KEYS = ("state_dict_ema", "model_ema", "ema")
PLAIN_KEYS = ("state_dict", "model")
MAX_LISTED = 5


def load_state_dict(path: Path | str) -> tuple[dict[str, Tensor], str]:
    """Read a state dict from a .safetensors file or a PyTorch checkpoint, on the CPU.

    Averaged weights are preferred where the file has them. The wrappers `module.` (DDP) and `_orig_mod.` (torch.compile) are
    taken off the names.

    Returns:
        The state dict, and a note that says which weights of the file these are, for logs and reports.

    Raises:
        InputError: no such file, an unknown kind of file, a damaged file, a pickle that would run code, or no state dict inside.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: weights are read from {', '.join(SUFFIXES)} files")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return _unwrap(content, path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged or truncated ({error}): copy or download it again") from error


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle's protocols: what matters raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and storage readers each raise their own kinds on damaged bytes
        if refused := _refused_code(error, path):
            raise InputError(
                f"{path} would run code when loaded ({refused}): refused; convert it to safetensors"
            ) from error
        raise InputError(
            f"{path}: damaged, truncated or no checkpoint of PyTorch: copy or download it again"
        ) from error


def _refused_code(error: Exception, path: Path) -> str:
    """What torch refused to execute; nothing when it rather failed to read the bytes."""
    text = str(error)
    if "TorchScript" in text:
        return "a TorchScript program"
    if not isinstance(error, pickle.UnpicklingError):
        return ""
    if found := re.search(r"GLOBAL (\S+)", text):
        return f"it calls {found[1]}"
    if any(sign in text for sign in ("Trying to call", "Trying to instantiate", "Can only")):
        return "it builds objects that are neither tensors nor plain containers"
    with path.open("rb") as file:
        plain_pickle = file.read(1) == b"\x80"
    return "a pickle that torch.save did not write" if plain_pickle else ""


def _unwrap(content: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    note = "weights"
    if isinstance(content, Mapping):
        for key in (*EMA_KEYS, *PLAIN_KEYS):
            if isinstance(content.get(key), Mapping):
                note = f"averaged weights ({key})" if key in EMA_KEYS else f"weights ({key})"
                content = content[key]
                break
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path}: holds no state dict")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(f"{path}: holds no state dict: {key!r} is a {type(value).__name__}, not a tensor")
    return _strip_wrappers(dict(content)), note


def _strip_wrappers(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    # torch.compile of parts leaves its marker inside names; DDP's `module.` may be a model's own name unless all keys have it.
    state_dict = {key.replace("_orig_mod.", ""): value for key, value in state_dict.items()}
    while all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return state_dict


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the model's classifier modules, from its timm config; the first one decides the number of classes."""
    config: Any = model.pretrained_cfg
    names = config.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def head_classes(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> int:
    """How many classes weights have: from their classifier, else from the timm config of their model."""
    names = config.get("classifier") or ()
    for name in (names,) if isinstance(names, str) else tuple(names):
        if f"{name}.weight" in state_dict:
            return state_dict[f"{name}.weight"].shape[0]
    return int(config["num_classes"])


def apply_weights(model: nn.Module, state_dict: Mapping[str, Tensor], what: str) -> None:
    """Load `state_dict` into a timm model: every name and every shape must agree.

    Where they do not, timm's own converter for the architecture (`checkpoint_filter_fn`) is tried first: it knows the
    original authors' names and resamples position embeddings to another image size.

    Args:
        what: the file and its place in the recipe, which opens the message.

    Raises:
        InputError: naming the head when it has another number of classes, and up to five names of each kind of mismatch.
    """
    if _mismatch(model, state_dict):
        state_dict = _converted(model, state_dict)
    if mismatch := _mismatch(model, state_dict):
        raise InputError(f"{what}: {mismatch}")
    model.load_state_dict(dict(state_dict))


def _converted(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    convert = vars(sys.modules[type(model).__module__]).get("checkpoint_filter_fn")
    if convert is None:
        return state_dict
    try:
        converted: Mapping[str, Tensor] = convert(dict(state_dict), model)
    except Exception:  # written for checkpoints of this architecture: on any other it may fail anyhow
        return state_dict
    return converted


def _mismatch(model: nn.Module, state_dict: Mapping[str, Tensor]) -> str:
    own = model.state_dict()
    for name in classifier_names(model):
        key = f"{name}.weight"
        if key in own and key in state_dict and own[key].shape[0] != state_dict[key].shape[0]:
            return f"its head has {state_dict[key].shape[0]} classes, the recipe's data {own[key].shape[0]}"
    missing = [key for key in own if key not in state_dict]
    unexpected = [key for key in state_dict if key not in own]
    shapes = [
        f"{key} {tuple(state_dict[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in state_dict and own[key].shape != state_dict[key].shape
    ]
    parts = [("missing", missing), ("unexpected", unexpected), ("other shapes", shapes)]
    found = "; ".join(f"{title}: {_listed(names)}" for title, names in parts if names)
    return f"these are not weights of {type(model).__name__} as the recipe builds it: {found}" if found else ""


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
