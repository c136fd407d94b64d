"""A user's recipe that extends a strategy of the package."""

from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def on_a2(tmp_path: Path) -> Path:
    """A recipe of 300 epochs on strategy A2, which has a warm-up of 5 epochs."""
    path = tmp_path / "mine.yaml"
    tree: dict[str, Any] = {
        "extends": "strategies/a2",
        "name": "mine",
        "data": {"train": {"kind": "fashion_mnist", "split": "train"}},
        "student": {
            "model": "cifar_resnet8",
            "objective": {"hard": {"loss": "ce"}, "soft": None},
            "drop_path": 0.0,
        },
        "students": {"one": {}},
        "train": {"budget": "300 epochs"},
    }
    path.write_text(yaml.safe_dump(tree))
    return path
