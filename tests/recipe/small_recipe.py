"""The smallest recipe with two students, and a writer of recipe files."""

from pathlib import Path
from typing import Any

import yaml

BASE: dict[str, Any] = {
    "name": "generated",
    "data": {
        "train": {"kind": "fashion_mnist", "split": "train"},
        "image_size": 16,
        "num_workers": 0,
    },
    "teacher": {"model": "cifar_resnet14", "weights": "random"},
    "student": {"model": "cifar_resnet8", "optimizer": {"name": "momentum", "lr": 0.1}},
    "students": {"a": {}, "b": {"objective": {"soft": {"loss": "dkd"}}}},
    "train": {"budget": "2 epochs", "batch_size_global": 64},
}


def write(folder: Path, tree: Any) -> Path:
    """A tree as a file, written as any YAML library would."""
    path = folder / "generated.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=False), encoding="utf-8")
    return path
