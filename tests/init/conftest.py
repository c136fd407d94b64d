"""600 small JPEGs in 6 classes, and a teacher that plain timm code trained on them at 96 pixels."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm_loop import CLASSES, MODEL, SIZE


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise over a colour that leans to its class; 60 to 110 pixels."""
    root = tmp_path_factory.mktemp("init") / "photos"
    rng = np.random.default_rng(0)
    colours = rng.uniform(90, 165, (len(CLASSES), 3))
    for name, colour in zip(CLASSES, colours, strict=True):
        (root / name).mkdir(parents=True)
        for number in range(100):
            small = np.clip(
                rng.normal(colour + rng.normal(0, 12, 3), 60, (8, 8, 3)), 0, 255
            ).astype(np.uint8)
            width, height = (int(side) for side in rng.integers(60, 110, 2))
            Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(
                root / name / f"{number:03}.jpg"
            )
    return root


@pytest.fixture(scope="session")
def teacher(photos: Path) -> Path:
    """A file of weights as torch.save writes it, which says neither model nor size."""
    torch.manual_seed(0)
    model = timm.create_model(MODEL, num_classes=len(CLASSES)).train()
    transform = create_transform(
        **resolve_data_config({"input_size": (3, SIZE, SIZE)}, model=model)
    )
    files = sorted(photos.glob("*/*.jpg"))[::5]
    images = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    labels = torch.tensor([CLASSES.index(file.parent.name) for file in files])
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(4):
        for chosen in torch.randperm(len(files)).split(25):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
    path = photos.parent / "teacher.pth"
    torch.save(model.state_dict(), path)
    return path
