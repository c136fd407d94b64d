"""How a run is known to TensorBoard, wandb and trackio, so that a resumed run continues
there too.
"""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRACKERS = ("tensorboard", "wandb", "trackio")
# The models of a metric in one chart of TensorBoard's tab "custom scalars".
OVERLAID = (
    "loss_total",
    "loss_hard",
    "loss_soft",
    "lr",
    "top1",
    "top5",
    "loss",
    "agreement",
    "teacher_kl",
)


@dataclass(frozen=True)
class Tracking:
    """What the recipe's section `log` says of trackers.

    Attributes:
        names: the trackers to start, of TRACKERS.
        project: groups runs, in each of them.
        entity: wandb's user or team; None for the account's own.
        directory: where TensorBoard and wandb write; trackio only where the recipe names one.
        trackio_directory: None for trackio's own place, where `trackio show` looks.
    """

    names: tuple[str, ...] = ()
    project: str = "distill"
    entity: str | None = None
    directory: Path | None = None
    trackio_directory: Path | None = None

    def arguments(self, run_name: str, run_id: str, step: int) -> dict[str, dict[str, Any]]:
        """Return what each tracker's start takes beside the project.

        Args:
            run_id: the same in each session of the run.
            step: steps done before this session.
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
            # It knows a run by its name alone.
            "trackio": {"name": f"{run_name}-{run_id}", "resume": "allow"},
        }
        return {name: known[name] for name in self.names}


def kept_run_id(folder: Path) -> str:
    """Return the id of the run in `folder`, made the first time. The main process alone
    calls this.
    """
    file = folder / "run_id"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(uuid.uuid4().hex[:12] + "\n")
    return file.read_text().strip()
