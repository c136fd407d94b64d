"""A run of two stages: other images with soft labels alone, then the run's own."""

from pathlib import Path
from typing import Any

# Steps of the two stages: the second is an epoch of 120 images in batches of 16.
FOREIGN, OWN = 5, 7


def two_stages(
    foreign: Path, first: dict[str, Any] | None = None, second: dict[str, Any] | None = None
) -> Any:
    """Changes to the tiny recipe: two students, one of which keeps averages."""
    stream = {"kind": "stream", "path": str(foreign), "labelled": False, "block": 20}
    return {
        "train": {"budget": None},
        "data": {
            "mixing": {"mixup": 0.2, "cutmix": 1.0, "group_size": 8},
            "augment": {"repeats": 3},
        },
        "evaluate": {"every": "3 iterations"},
        "checkpoint": {"every": "3 iterations"},
        "log": {"every": "2 iterations"},
        "student": {"objective": {"soft": {"loss": "kl"}}, "drop_path": 0.2},
        "students": {
            "kd": {"ema": {"decays": [0.5]}},
            "dkd": {
                "objective": {"soft": {"loss": "dkd", "target": "teacher"}},
                "optimizer": {"name": "lamb"},
            },
        },
        "stages": [
            {
                "name": "foreign",
                "budget": f"{FOREIGN} iterations",
                "data": {"train": stream},
                "student": {"objective": {"hard": None}},
                **(first or {}),
            },
            {
                "name": "own",
                "budget": "1 epochs",
                "student": {"optimizer": {"lr": 0.02}},
                **(second or {}),
            },
        ],
    }
