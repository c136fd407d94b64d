"""A checkpoint: a folder of tensors (safetensors), JSON values, the recipe, and a manifest with the
checksum of each file.
"""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

import distill
from distill.checkpoint.differences import another_recipe
from distill.checkpoint.layout import (
    MANIFEST_FILE,
    RECIPE_FILE,
    STATE_FILE,
    checkpoint_name,
    step_of,
)
from distill.errors import InputError
from distill.files import atomic_directory, clean, remove_directory, sha256_of
from distill.recipe.load import fingerprint_today

FORMAT = 1  # increases when new code can no longer read an older checkpoint
_TENSORS = ".safetensors"
_LIBRARIES = ("torch", "timm", "accelerate", "safetensors", "numpy")


@dataclass(frozen=True)
class TrainState:
    """Finished optimizer steps, and training images seen (each view of an image counts)."""

    step: int
    images_seen: int


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint. `values` is the JSON state that was saved."""

    path: Path
    state: TrainState
    values: dict[str, Any]
    recipe_text: str
    manifest: dict[str, Any]

    @property
    def recipe_digest(self) -> str:
        return str(self.manifest["recipe_digest"])

    @property
    def world_size(self) -> int:
        """The number of processes of the run that wrote it."""
        return int(self.manifest["world_size"])

    @property
    def tensor_names(self) -> list[str]:
        """The names that `tensors` takes."""
        return [
            file.removesuffix(_TENSORS)
            for file in self.manifest["files"]
            if file.endswith(_TENSORS)
        ]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors saved under `name`, on the CPU.

        Raises:
            CheckpointError: there are none.
        """
        if name not in self.tensor_names:
            raise CheckpointError(
                f"{self.path}: holds no tensors {name!r}, only {', '.join(self.tensor_names)}"
            )
        return dict(load_file(self.path / f"{name}{_TENSORS}"))


class CheckpointError(InputError):
    """A checkpoint cannot be read or continued. The message names the file and the fix."""


class DamagedError(CheckpointError):
    """Bytes are missing or wrong: an older checkpoint may do instead."""


# ---- writing -------------------------------------------------------------------------------------


def save(
    root: Path,
    state: TrainState,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    values: Mapping[str, Any],
    recipe_text: str,
    recipe_digest: str,
    world_size: int,
) -> Path:
    """Write `root/step-<step>` in one step. The main process alone calls this.

    What killed writers left in `root` is deleted first. A checkpoint of the same step is replaced.

    Args:
        root: `<run>/checkpoints`, created if missing.
        tensors: file stem -> name -> tensor, on any device, with any strides. Tensors that share
            memory are written twice.
        values: JSON-able state.

    Raises:
        WriteError: disk full, read-only or unwritable. Earlier checkpoints are untouched.
    """
    path = root / checkpoint_name(state.step)
    clean(root)
    with atomic_directory(path) as folder:
        for stem, group in tensors.items():
            save_file(storable(group), folder / f"{stem}{_TENSORS}", metadata={"format": "pt"})
        (folder / STATE_FILE).write_text(json.dumps(values, indent=1))
        (folder / RECIPE_FILE).write_text(recipe_text, encoding="utf-8")
        manifest = {
            "format": FORMAT,
            "step": state.step,
            "images_seen": state.images_seen,
            "recipe_digest": recipe_digest,
            "world_size": world_size,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": _versions(),
            "files": {
                f.name: {"size": f.stat().st_size, "sha256": sha256_of(f)}
                for f in sorted(folder.iterdir())
            },
        }
        (folder / MANIFEST_FILE).write_text(
            json.dumps({**manifest, "sha256": _checksum(manifest)}, indent=1)
        )
    return path


def prune(root: Path, keep_last: int, *, newest: Path) -> list[Path]:
    """Keep `newest` and the `keep_last` - 1 before it; delete the others, each in one step.

    Checkpoints of later steps than `newest` are deleted too: they are damaged, so the run resumed
    from an earlier one, and a later resume would prefer them.

    Args:
        newest: what `save` returned.

    Returns:
        The paths deleted.
    """
    assert keep_last >= 1, keep_last
    paths = checkpoint_paths(root)
    index = paths.index(newest)
    deleted = paths[:index] + paths[index + keep_last :]
    for path in deleted:
        remove_directory(path)
    return deleted


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors accepts them: on the CPU, contiguous, no two in the same memory (tied
    weights). Copies only where needed.
    """
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in seen:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        result[name] = value
    return result


@cache
def _versions() -> dict[str, str]:
    libraries = {name: metadata.version(name) for name in _LIBRARIES}
    return {"vanillakd": distill.__version__, "python": platform.python_version(), **libraries}


def _checksum(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


# ---- reading -------------------------------------------------------------------------------------


def load(path: Path, *, verify: bool = True) -> Checkpoint:
    """Open a checkpoint; `verify` reads every file and compares its checksum.

    Raises:
        CheckpointError: it is missing, damaged (names the file), or of another format.
    """
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no checkpoint here; a checkpoint is a folder such as"
            " checkpoints/step-00001234"
        )
    manifest = _read_manifest(path)
    for name, expected in manifest["files"].items() if verify else ():
        file = path / name
        try:
            size = file.stat().st_size
            if size != expected["size"]:
                raise DamagedError(
                    f"{file}: damaged: {size} bytes, {expected['size']} were written"
                )
            if sha256_of(file) != expected["sha256"]:
                raise DamagedError(
                    f"{file}: damaged: its bytes differ from those written (SHA-256)"
                )
        except FileNotFoundError as error:
            raise DamagedError(f"{file}: missing") from error
        except OSError as error:
            raise DamagedError(f"{file}: cannot be read: {error}") from error
    return Checkpoint(
        path=path,
        state=TrainState(step=manifest["step"], images_seen=manifest["images_seen"]),
        values=json.loads((path / STATE_FILE).read_text()),
        recipe_text=(path / RECIPE_FILE).read_text(encoding="utf-8"),
        manifest=manifest,
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST_FILE
    try:
        manifest = json.loads(file.read_text())
        expected = manifest.pop("sha256")
        is_intact = expected == _checksum(manifest)
    except FileNotFoundError as error:
        raise DamagedError(f"{file}: missing") from error
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise DamagedError(f"{file}: damaged: {error}") from error
    if not is_intact:
        raise DamagedError(f"{file}: damaged: its content differs from what was written (SHA-256)")
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: written in format {manifest['format']} by version"
            f" {manifest['versions']['vanillakd']}, this version reads format {FORMAT}: use the"
            " version that wrote it"
        )
    return dict(manifest)


def load_newest(root: Path, *, verify: bool = True) -> Checkpoint:
    """Open the newest checkpoint in `root`, of any recipe.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    paths = checkpoint_paths(root)
    if not paths:
        raise CheckpointError(f"{root.parent}: this run has no checkpoint")
    return load(paths[0], verify=verify)


def latest(
    root: Path,
    digest: str,
    recipe_text: str,
    *,
    report: Callable[[str], None] = lambda message: None,
) -> Checkpoint | None:
    """Open the newest intact checkpoint of this recipe in `root`; None if `root` holds no
    checkpoint.

    For `resume: auto`, in the process that writes into `root`: what killed writers left is deleted.
    Instead of a damaged checkpoint the one before it is used, with a message to `report`. If all
    are damaged this raises: a silent restart from step 0 could cost weeks.

    Args:
        digest: `recipe_fingerprint` of the recipe that resumes.
        recipe_text: its resolved YAML, to name the keys that differ.

    Raises:
        CheckpointError: the checkpoint is of another recipe, or all are damaged.
    """
    clean(root)
    damages = []
    for path in checkpoint_paths(root):
        try:
            checkpoint = load(path)
        except DamagedError as damage:
            damages.append(str(damage))
            report(f"{damage}; trying the checkpoint before it")
            continue
        refuse_another_recipe(checkpoint, digest, recipe_text)
        return checkpoint
    if damages:
        raise CheckpointError(
            f"{root}: all checkpoints are damaged:\n"
            + "\n".join(f"  {line}" for line in damages)
            + "\nTo start from step 0, delete them or set resume=never; to keep them, set another"
            " output="
        )
    return None


def refuse_another_recipe(
    checkpoint: Checkpoint, digest: str, recipe_text: str, name: str | None = None
) -> None:
    """Check that a checkpoint is of this recipe; `digest` and `recipe_text` as for `latest`.

    Args:
        name: of the checkpoint in the message, if it is not its path.

    Raises:
        CheckpointError: it is of another one.
    """
    if digest not in (checkpoint.recipe_digest, fingerprint_today(checkpoint.recipe_text)):
        wrote = checkpoint.manifest["versions"]["vanillakd"]
        raise CheckpointError(
            another_recipe(name or checkpoint.path, wrote, checkpoint.recipe_text, recipe_text)
        )


def checkpoint_paths(root: Path) -> list[Path]:
    """The checkpoints in `root`, newest first."""
    if not root.is_dir():
        return []
    steps = {path: step_of(path.name) for path in root.iterdir()}
    found = {path: step for path, step in steps.items() if step is not None}
    return sorted(found, key=lambda path: found[path], reverse=True)
