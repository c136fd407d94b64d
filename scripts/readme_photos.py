"""Make the folder and the teacher of README's section "Your own images", from the images that come
with the package: 600 JPEGs in 6 classes, and a ResNet-18 that a plain timm loop trains at 64 pixels
on 1,800 other images of these classes.

    python scripts/readme_photos.py    # writes photos/ and teacher.pth, in 3 to 10 minutes on a CPU
"""

from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch.nn import functional as F

from distill.data.decode import read_image
from distill.data.sources import open_source
from distill.recipe.schema import FashionMnistSpec

CLASSES = ("Coat", "Dress", "Pullover", "Sandal", "T-shirt/top", "Trouser")
SIZE, EPOCHS, BATCH_SIZE = 64, 6, 36
NUM_PHOTOS, NUM_TRAINING = 100, 300  # in each class


def main() -> None:
    """Write photos/ and teacher.pth into the current folder."""
    source = open_source(FashionMnistSpec(kind="fashion_mnist", split="train"), Path())
    assert isinstance(source.labels, np.ndarray)
    generator = np.random.default_rng(0)
    images, labels = [], []
    for label, name in enumerate(CLASSES):
        rows = np.flatnonzero(source.labels == source.classes.index(name))
        folder = Path("photos", name.replace("/", "-"))
        folder.mkdir(parents=True)
        for number, row in enumerate(rows[: NUM_PHOTOS + NUM_TRAINING]):
            image = read_image(source, int(row)).convert("RGB")
            if number < NUM_PHOTOS:
                width, height = (int(side) for side in generator.integers(64, 97, 2))
                image.resize((width, height), Image.Resampling.BICUBIC).save(
                    folder / f"{number:03}.jpg", quality=90
                )
            else:
                small = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
                images.append(np.asarray(small))
                labels.append(label)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    train(pixels, torch.tensor(labels))


def train(images: torch.Tensor, labels: torch.Tensor) -> None:
    """Train the teacher on images [N, 3, S, S] in [0, 1], and write its weights."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=len(CLASSES))
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    steps = EPOCHS * len(images) // BATCH_SIZE
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH_SIZE):
            loss = F.cross_entropy(model((images[chosen] - mean) / std), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    torch.save(model.state_dict(), "teacher.pth")


if __name__ == "__main__":
    main()
