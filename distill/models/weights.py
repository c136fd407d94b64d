"""Weights from files, without running code from a pickle.

`torch.load(weights_only=True)` rebuilds tensors and plain containers. We allow one more
class, argparse.Namespace, because every checkpoint of timm's train.py carries one;
unpickling it sets attributes and calls nothing.
"""

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from distill.errors import InputError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")
# Averages first: trainers evaluate and publish them. `ema` is ours, the first two are timm's.
EMA_KEYS = ("state_dict_ema", "model_ema", "ema")
PLAIN_KEYS = (
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "module",
    "net",
    "network",
    "weights",
    "params",
)


def load_state_dict(path: Path | str) -> tuple[dict[str, Tensor], str]:
    """Read a state dict from a .safetensors file or a PyTorch checkpoint, on the CPU.

    Averaged weights are preferred if the file has them. The prefixes `module.` (DDP) and
    `_orig_mod.` (torch.compile) are removed from the names.

    Returns:
        The state dict, and a note on which weights of the file these are, for logs and reports.

    Raises:
        InputError: no such file, an unknown kind of file, a damaged file, a pickle that would run
            code, or no state dict inside.
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
        raise InputError(
            f"{path}: damaged or truncated ({error}): copy or download it again"
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle's protocols; what matters raises
            return torch.load(path, map_location="cpu", weights_only=True)
    # The readers of zip files, pickles and storages each raise their own errors for damaged bytes.
    except Exception as error:
        if refused := _refused_code(error, path):
            raise InputError(
                f"{path} would run code when loaded ({refused}): refused; convert it to"
                f" safetensors. {_how_to_convert(path)}"
            ) from error
        raise InputError(
            f"{path}: damaged, truncated or no checkpoint of PyTorch: copy or download it again"
        ) from error


def _refused_code(error: Exception, path: Path) -> str:
    """Return what torch refused to execute, or "" if it failed to read the bytes."""
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


def _how_to_convert(path: Path) -> str:
    """Return advice for a file whose origin the user trusts: loading it once runs its code."""
    return (
        "If you trust where it is from, this runs its code once and keeps the tensors: "
        f"python -c \"import torch; c = torch.load({str(path)!r}, 'cpu', weights_only=False); "
        "c = c.state_dict() if hasattr(c, 'state_dict') else c; c = c.get('state_dict',"
        " c.get('model', c)); "
        f'torch.save(c, {str(path.with_name(path.name.split(".")[0] + "_weights.pth"))!r})"'
    )


def _unwrap(content: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the state dict in a checkpoint, and which one it is.

    Averages come first, then the usual names in their order, then the only one under another name.
    """
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path}: holds no state dict")
    for key in (*EMA_KEYS, *PLAIN_KEYS):
        if (found := _state_dict_in(content.get(key))) is not None:
            kind = "averaged weights" if key in EMA_KEYS else "weights"
            return _strip_wrappers(found), f"{kind} ({key})"
    if (found := _state_dict_in(content)) is not None and found is content:
        return _strip_wrappers(dict(found)), "weights"
    others = {key: found for key in content if (found := _state_dict_in(content[key])) is not None}
    if len(others) == 1:
        key, found = others.popitem()
        return _strip_wrappers(found), f"weights ({key})"
    if others:
        raise InputError(
            f"{path}: holds several state dicts ({', '.join(map(str, others))}) and none by the"
            " name of state_dict or model: save the one you mean in a file of its own"
        )
    key, value = next(
        (k, v) for k, v in content.items() if not isinstance(k, str) or not isinstance(v, Tensor)
    )
    raise InputError(
        f"{path}: holds no state dict: {key!r} is a {type(value).__name__}, not a tensor"
    )


def _state_dict_in(content: Any) -> dict[str, Tensor] | None:
    """Return a value that is a state dict, or the one that it has under a usual name, at most two
    levels down.
    """
    for _ in range(3):
        if not isinstance(content, Mapping) or not content:
            return None
        if all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
        ):
            return content if isinstance(content, dict) else dict(content)
        content = next(
            (content[key] for key in PLAIN_KEYS if isinstance(content.get(key), Mapping)), None
        )
    return None


def _strip_wrappers(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    # torch.compile of parts puts its marker inside names; `module.` is DDP's only if all keys have
    # it.
    state_dict = {key.replace("_orig_mod.", ""): value for key, value in state_dict.items()}
    while all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return state_dict
