"""`distill.train`: a run from Python, and what it came to."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.checkpoint.layout import REPORT_FILE, best_dir
from distill.recipe import Recipe, load_recipe
from distill.training.loop import DONE, train


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        exit_code: 0 (done), 3 (every student stopped because its loss was not finite), or 75
            (stopped by a signal with a checkpoint saved: the same call resumes).
        output: the folder of the run.
        report: the contents of report.json; empty for a run that is not done.
    """

    exit_code: int
    output: Path
    report: Mapping[str, Any]

    @property
    def done(self) -> bool:
        """Whether the run has reached its end."""
        return self.exit_code == DONE

    @property
    def best(self) -> str | None:
        """The best student of a finished run."""
        return self.report.get("best")

    def best_weights(self, student: str | None = None) -> Path:
        """The folder of a student's best weights, which timm loads; None: of the best student."""
        name = student or self.best
        if name is None:
            raise ValueError(f"{self.output}: the run is not done: name the student")
        return best_dir(self.output, name)


def train_recipe(
    recipe: Recipe | str | Path, overrides: Mapping[str, object] | Sequence[str] = ()
) -> TrainResult:
    """Trains all students of a recipe, or resumes the run in its folder. Collective under a
    launcher.

    Args:
        recipe: a file, the name of a shipped recipe, or what `load_recipe` returned.
        overrides: {"train.budget": "2 epochs"}, or as on the command line
            ["train.budget=2 epochs"].

    Returns:
        The exit code of the command, the folder of the run, and its report.

    Raises:
        InputError: recipe, data, models or the environment do not fit; where possible, this raises
            before a device is used.
    """
    if isinstance(overrides, Mapping):
        overrides = [f"{key}={_as_text(value)}" for key, value in overrides.items()]
    if isinstance(recipe, Recipe):
        if overrides:
            raise ValueError("overrides belong to the call of load_recipe that made the recipe")
        loaded = recipe
    else:
        loaded = load_recipe(str(recipe), list(overrides))
    code, output = train(loaded), Path(loaded.output_dir)
    done = code == DONE and (output / REPORT_FILE).is_file()
    report = json.loads((output / REPORT_FILE).read_text()) if done else {}
    return TrainResult(code, output, report)


def _as_text(value: object) -> str:
    """A value as an override has it: text as it is, the rest as JSON, which is YAML too."""
    return str(value) if isinstance(value, str | Path) else json.dumps(value)
