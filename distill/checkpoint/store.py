"""`step-00001234/`: tensors as safetensors, the rest as JSON, the recipe, and a manifest with the
checksum of each file.
"""

import hashlib
import json
import platform
import re
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
from distill.files import CheckpointError, atomic_directory, clean, remove_directory, sha256_of
from distill.recipe.load import digest_today

FORMAT = 1  # raised whenever a checkpoint comes to hold what older code does not, or the reverse
_NAME = re.compile(r"step-(\d{8,})")
_TENSORS = ".safetensors"
_LIBRARIES = ("torch", "timm", "accelerate", "safetensors", "numpy")


@dataclass(frozen=True)
class TrainState:
    """Where a run stands: finished optimizer steps, and training images seen (views; repeats count
    each).
    """

    step: int
    images_seen: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, opened. `values` is the JSON state that was saved, `manifest` the whole
    manifest.
    """

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
        """Processes of the run that wrote it."""
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
            CheckpointError: nothing was saved under that name.
        """
        if name not in self.tensor_names:
            raise CheckpointError(
                f"{self.path}: holds no tensors {name!r}, only {', '.join(self.tensor_names)}"
            )
        return dict(load_file(self.path / f"{name}{_TENSORS}"))


class _DamagedError(CheckpointError):
    """Bytes are missing or wrong: an older checkpoint may serve instead."""


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
    """Write `root/step-<step>`: whole and verified by checksums, or not at all. One process of the
    run calls this.

    What killed writers left in `root` is removed first. A checkpoint of the same step is replaced.

    Args:
        root: `<run>/checkpoints`, made if missing.
        tensors: file stem to tensors by name. They may lie on a device, share memory, have any
            strides; shared ones are written twice.
        values: JSON-able state.

    Raises:
        CheckpointError: disk full, read-only or unwritable. Earlier checkpoints are untouched.
    """
    path = root / f"step-{state.step:08d}"
    clean(root)
    with atomic_directory(path) as folder:
        for stem, group in tensors.items():
            save_file(storable(group), folder / f"{stem}{_TENSORS}", metadata={"format": "pt"})
        (folder / "state.json").write_text(json.dumps(values, indent=1))
        (folder / "recipe.yaml").write_text(recipe_text, encoding="utf-8")
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
        (folder / "manifest.json").write_text(
            json.dumps({**manifest, "sha256": _seal(manifest)}, indent=1)
        )
    return path


def prune(root: Path, keep_last: int, *, newest: Path) -> list[Path]:
    """Keep `newest` and the `keep_last` - 1 before it; delete the rest, each in one step.

    Checkpoints of later steps than `newest` go too: this run resumed from before them because they
    are damaged, and they would outrank it.

    Args:
        newest: what `save` returned.

    Returns:
        The paths deleted.
    """
    assert keep_last >= 1, keep_last
    here = _step_of(newest)
    paths = _checkpoints(root)
    earlier = [path for path in paths if _step_of(path) < here]
    doomed = [path for path in paths if _step_of(path) > here] + earlier[keep_last - 1 :]
    for path in doomed:
        remove_directory(path)
    return doomed


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors takes them: on the CPU, contiguous, no two over one memory (tied weights).
    Copies only where needed.
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


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


# ---- reading -------------------------------------------------------------------------------------


def load(path: Path, *, verify: bool = True) -> Checkpoint:
    """Open one checkpoint; reads and checks every byte unless `verify` is off (ranks after the
    first need not).

    Raises:
        CheckpointError: it is not there, damaged (names the file), or of another format.
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
                raise _DamagedError(
                    f"{file}: damaged: {size} bytes, {expected['size']} were written"
                )
            if sha256_of(file) != expected["sha256"]:
                raise _DamagedError(
                    f"{file}: damaged: its bytes differ from those written (SHA-256)"
                )
        except FileNotFoundError as error:
            raise _DamagedError(f"{file}: missing") from error
        except OSError as error:
            raise _DamagedError(f"{file}: cannot be read: {error}") from error
    return Checkpoint(
        path=path,
        state=TrainState(step=manifest["step"], images_seen=manifest["images_seen"]),
        values=json.loads((path / "state.json").read_text()),
        recipe_text=(path / "recipe.yaml").read_text(encoding="utf-8"),
        manifest=manifest,
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_text())
        seal = manifest.pop("sha256")
        whole = seal == _seal(manifest)
    except FileNotFoundError as error:
        raise _DamagedError(f"{file}: missing") from error
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise _DamagedError(f"{file}: damaged: {error}") from error
    if not whole:
        raise _DamagedError(f"{file}: damaged: its content differs from what was written (SHA-256)")
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: written in format {manifest['format']} by version"
            f" {manifest['versions']['vanillakd']}, this version reads format {FORMAT}: use the"
            " version that wrote it"
        )
    return dict(manifest)


def latest(
    root: Path,
    digest: str,
    recipe_text: str,
    *,
    report: Callable[[str], None] = lambda message: None,
) -> Checkpoint | None:
    """The newest whole checkpoint of this recipe in `root`, every byte checked; None if there is
    none at all.

    For `resume: auto`, by the one process that writes into `root`: what killed writers left is
    removed. A damaged checkpoint is passed over for the one before it, and `report` is told. When
    all are damaged this refuses: starting again from step 0 in silence could cost weeks.

    Args:
        digest: `recipe_digest` of the recipe that wants to continue.
        recipe_text: its resolved YAML, to name the keys that differ.

    Raises:
        CheckpointError: the checkpoint is of another recipe, or none is whole.
    """
    clean(root)
    damages = []
    for path in _checkpoints(root):
        try:
            checkpoint = load(path)
        except _DamagedError as damage:
            damages.append(str(damage))
            report(f"{damage}; trying the checkpoint before it")
            continue
        if checkpoint.recipe_digest != digest and digest_today(checkpoint.recipe_text) != digest:
            wrote = checkpoint.manifest["versions"]["vanillakd"]
            raise CheckpointError(another_recipe(path, wrote, checkpoint.recipe_text, recipe_text))
        return checkpoint
    if damages:
        raise CheckpointError(
            f"{root}: no checkpoint is whole:\n"
            + "\n".join(f"  {line}" for line in damages)
            + "\nTo start from step 0, delete them or set resume=never; to keep them, set another"
            " output="
        )
    return None


def _checkpoints(root: Path) -> list[Path]:
    """The checkpoints in `root`, newest first."""
    if not root.is_dir():
        return []
    return sorted(
        (path for path in root.iterdir() if _NAME.fullmatch(path.name)), key=_step_of, reverse=True
    )


def _step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match, path
    return int(match[1])
