"""Study files for tests, over a recipe that trains in two seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import yaml

KD = {"objective": {"soft": {"loss": "kl", "temperature": 2.0}}}
STUDENTS: dict[str, Any] = {"students": {"alone": {}, "kd": KD}}

Write = Callable[..., Path]


def write_study(folder: Path, study: dict[str, Any], *changes: dict[str, Any]) -> Path:
    """Write `folder/grid.yaml`, and the recipe that it names, base.yaml. The study's folder is
    `folder/out`.
    """
    tiny.write_recipe(folder, STUDENTS, *changes, name="base")
    tree = {"name": "grid", "recipe": "base.yaml", "output": str(folder / "out"), **study}
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path
