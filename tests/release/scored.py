"""The evaluation of the tiny run, through the package and counted by hand."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import IMAGE_SIZE, NUM_EVAL
from torchvision.transforms import v2

from distill.data.fashion import read_idx
from distill.evaluation.scores import Scores
from distill.models import cifar as cifar  # registers its models
from distill.release.evaluate import evaluate_models


def scores(path: Path | str, **options: Any) -> Mapping[str, Scores]:
    return evaluate_models(path, **{"num_workers": 0, **options}).scores


def eval_images(run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The evaluation set by hand: pixels [N, 3, S, S] in [0, 1] and labels [N]."""
    folder = run.parent / "eval"
    view = v2.Resize(IMAGE_SIZE, v2.InterpolationMode.BICUBIC)
    images = [
        np.asarray(view(Image.fromarray(i).convert("RGB")))
        for i in read_idx(folder / "t10k-images-idx3-ubyte", 3)
    ]
    labels = torch.from_numpy(read_idx(folder / "t10k-labels-idx1-ubyte", 1).astype(np.int64))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255, labels


def by_hand(net: torch.nn.Module, run: Path) -> tuple[float, float, float]:
    """(top-1 %, top-5 %, cross-entropy) of a timm model, counted image by image."""
    images, labels = eval_images(run)
    config = net.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        logits = [net.eval()(((image - mean) / std)[None])[0].double() for image in images]
    places = [sorted(range(10), key=row.tolist().__getitem__, reverse=True) for row in logits]
    first = sum(place[0] == label for place, label in zip(places, labels, strict=True))
    five = sum(label in place[:5] for place, label in zip(places, labels.tolist(), strict=True))
    loss = sum(-math.log(row.softmax(0)[label]) for row, label in zip(logits, labels, strict=True))
    return 100 * int(first) / len(labels), 100 * five / len(labels), loss / len(labels)


def same(result: Scores, expected: tuple[float, float, float]) -> None:
    assert (result.top1, result.top5) == pytest.approx(expected[:2], abs=1e-9)
    assert result.loss == pytest.approx(expected[2], abs=1e-5)
    assert result.num_samples == NUM_EVAL
