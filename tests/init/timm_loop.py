"""A loop of timm's own over image files: what a teacher's accuracy is."""

from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

CLASSES = ("apple", "bread", "corn", "dill", "egg", "fig")
SIZE = 96
MODEL = "test_resnet"


def timm_accuracy(weights: Path, files: list[Path]) -> float:
    """Top-1 in percent of a loop of timm's own, image by image."""
    model = timm.create_model(MODEL, num_classes=len(CLASSES)).eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    transform = create_transform(
        **resolve_data_config({"input_size": (3, SIZE, SIZE)}, model=model), is_training=False
    )
    with torch.no_grad():
        answers = [
            int(model(transform(Image.open(file).convert("RGB"))[None]).argmax()) for file in files
        ]
    return 100 * float(
        np.mean(
            [
                CLASSES[answer] == file.parent.name
                for answer, file in zip(answers, files, strict=True)
            ]
        )
    )
