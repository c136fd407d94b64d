"""Chooses the numbers of a recipe by the number of images, with reasons.

Experiments with 120, 600 and 6,000 images are in docs/log.md.
"""

import math
from dataclasses import dataclass
from typing import Any

_BATCHES = (16, 1024)
_EVALUATIONS = 20


@dataclass(frozen=True)
class Advice:
    """Values by dotted key of the recipe, and the reasons of those that need one."""

    values: dict[str, Any]
    reasons: dict[str, str]


def advise(
    *,
    num_images: int,
    image_size: int,
    has_teacher: bool,
    pretrained: bool,
    epochs: int | None,
    has_gpu: bool,
    has_bf16: bool,
) -> Advice:
    """Returns the values for a training set.

    Args:
        num_images: number of training images, without those for evaluation.
        pretrained: whether the student starts from pretrained weights.
        epochs: None: chosen by the number of images.
    """
    values: dict[str, Any] = {}
    reasons: dict[str, str] = {}

    def put(key: str, value: Any, why: str = "") -> None:
        values[key] = value
        if why:
            reasons[key] = why

    batch = batch_size(num_images)
    steps = num_images // batch
    if epochs is None:
        epochs = num_epochs(num_images, pretrained)
        why = f"{epochs * steps:,} steps of {batch} images: small sets need more epochs"
    else:
        why = f"--epochs: {epochs * steps:,} steps"
    put("train.budget", f"{epochs} epochs", why)
    put(
        "train.batch_size_global",
        batch,
        f"near the square root of {num_images:,} images: {steps} step{'s' * (steps != 1)} an epoch",
    )
    if has_bf16:
        put("train.precision", "bf16", "for the GPU of this machine; use fp32 on a CPU")
    else:
        put("train.precision", "fp32", "use bf16 on a GPU that supports it")
    rate = learning_rate(batch, pretrained)
    start = "small, since the weights are pretrained" if pretrained else "from random weights"
    put(
        "student.optimizer.name", "adamw", "works with a learning rate that is off by a factor of 2"
    )
    put("student.optimizer.lr", rate, f"for batches of {batch}, {start}")
    put(
        "student.optimizer.lr_scaling",
        {"rule": "sqrt", "batch_size": batch},
        "changes the rate with the batch size",
    )
    put("student.optimizer.weight_decay", 0.05, "usual for AdamW")
    put("student.optimizer.clip_grad_norm", 1.0, "limits the effect of a single bad batch")
    put("student.schedule.warmup", "5%", "of the budget")
    if has_teacher:
        put("student.objective.hard", {"loss": "ce", "weight": 0.5}, "half from the labels")
        put(
            "student.objective.soft",
            {"loss": "kl", "weight": 0.5, "temperature": 2},
            "half from the teacher, whose outputs say more about an image than a label",
        )
    else:
        put(
            "student.objective.hard",
            {"loss": "ce", "smoothing": 0.1},
            "no teacher: only labels",
        )
    lowest = 0.25 if num_images < 50_000 and image_size >= 48 else 0.08
    put("data.augment.scale", [lowest, 1.0], "each crop shows at least this part of the image")
    put(
        "data.augment.horizontal_flip",
        0.5,
        "0 where left and right differ in meaning, such as text",
    )
    if image_size >= 48:
        put("data.augment.auto_augment", "rand-m7-mstd0.5", "varies colours and shapes a little")
    every = max(1, epochs // _EVALUATIONS)
    put(
        "evaluate.every",
        f"{every} epochs",
        f"about {round(epochs / every)} times in the run; the best weights are saved",
    )
    put("checkpoint.every", f"{every} epochs", "a stopped run resumes from here")
    put("log.every", "1 epochs" if steps < 100 else "50 iterations")
    if has_gpu:
        put(
            "data.num_workers", None, "decoding processes: null is the share of the cores, up to 16"
        )
    else:
        put(
            "data.num_workers",
            1,
            "decoding processes; without a GPU the cores are needed for training",
        )
    return Advice(values, reasons)


def batch_size(num_images: int) -> int:
    """The power of two nearest to the square root of the number of images, and not more than it."""
    nearest = 2 ** round(math.log2(math.sqrt(num_images))) if num_images > 1 else 2
    batch = min(max(nearest, _BATCHES[0]), _BATCHES[1])
    while batch > num_images and batch > 2:
        batch //= 2
    return batch


def num_epochs(num_images: int, pretrained: bool) -> int:
    """1,500 / sqrt(number of images), from 30 to 150; half of that for pretrained weights."""
    epochs = min(150.0, max(30.0, 1500 / math.sqrt(num_images)))
    epochs *= 0.5 if pretrained else 1.0
    return 10 * max(1, round(epochs / 10))


def learning_rate(batch: int, pretrained: bool) -> float:
    """Proportional to the square root of the batch size, at most 3e-3."""
    rate = min(3e-3, 4e-3 * math.sqrt(batch / 64))
    return float(f"{rate / 8 if pretrained else rate:.1g}")
