"""How a run appears in TensorBoard, wandb and trackio; a resumed run continues there."""

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from distill.errors import InputError

TRACKERS = ("tensorboard", "wandb", "trackio")
# Metrics whose models share one chart in TensorBoard's tab "custom scalars".
OVERLAID = (
    "loss_total",
    "loss_hard",
    "loss_soft",
    "loss_hint",
    "loss_masked",
    "lr",
    "gradient_norm_total",
    "top1",
    "top5",
    "loss",
    "agreement",
    "teacher_kl",
)


@dataclass(frozen=True)
class Tracking:
    """The trackers of a run, from the recipe's section `log`.

    Attributes:
        names: the trackers to start, of TRACKERS.
        project: groups runs, in each of them.
        entity: wandb's user or team; None for the account's own.
        directory: where TensorBoard and wandb write; trackio only where the recipe names one.
        trackio_directory: None for trackio's own folder, where `trackio show` looks.
    """

    names: tuple[str, ...] = ()
    project: str = "distill"
    entity: str | None = None
    directory: Path | None = None
    trackio_directory: Path | None = None

    def arguments(self, run_name: str, run_id: str, step: int) -> dict[str, dict[str, Any]]:
        """Return the arguments of each tracker's start, besides the project.

        Args:
            run_id: the same each time the run resumes.
            step: steps done so far.
        """
        known: dict[str, dict[str, Any]] = {
            # Events of steps that are computed again are hidden.
            "tensorboard": {"purge_step": step + 1} if step else {},
            "wandb": {
                "name": run_name,
                "id": run_id,
                "resume": "allow",
                "entity": self.entity,
                "dir": str(self.directory),
            },
            # trackio finds a run by its name alone.
            "trackio": {"name": f"{run_name}-{run_id}", "resume": "allow"},
        }
        return {name: known[name] for name in self.names}


def start_trackers(
    accelerator: Accelerator,
    tracking: Tracking,
    run_name: str,
    output: Path,
    config: dict[str, Any],
    step: int,
) -> None:
    """Start the trackers that `tracking` names. Only the main process calls this.

    Raises:
        InputError: a tracker does not start.
    """
    try:
        run_id = read_run_id(output / "trackers")
        if tracking.directory:
            tracking.directory.mkdir(parents=True, exist_ok=True)
        if tracking.trackio_directory:
            # trackio reads it when it is imported.
            os.environ["TRACKIO_DIR"] = str(tracking.trackio_directory)
        accelerator.init_trackers(
            tracking.project,
            config=_flatten(config),
            init_kwargs=tracking.arguments(run_name, run_id, step),
        )
        for tracker in accelerator.trackers:
            if tracker.name == "tensorboard":
                charts = {metric: ["Multiline", [f"^{metric}/.*"]] for metric in OVERLAID}
                tracker.writer.add_custom_scalars({"models": charts})
    except Exception as error:  # each library fails in its own ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"log.trackers: {', '.join(tracking.names)} did not start ({reason}): fix that, or"
            " leave it out"
        ) from error


def read_run_id(folder: Path) -> str:
    """Return the id of the run in `folder`; the first call makes it. Only the main process calls
    this.
    """
    file = folder / "run_id"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(uuid.uuid4().hex[:12] + "\n")
    return file.read_text().strip()


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Return settings as dotted keys and scalars, since TensorBoard takes nothing else."""
    flat: dict[str, int | float | str | bool] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = (
                value if isinstance(value, int | float | str) else json.dumps(value)
            )
    return flat
