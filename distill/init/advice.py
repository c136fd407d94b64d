"""The numbers of a recipe, from the number of images, each with its reason.

What was tried on sets of 120, 600 and 6,000 images is in docs/log.md.
"""

import math
from dataclasses import dataclass
from typing import Any

_BATCHES = (16, 1024)
_EVALUATIONS = 20


@dataclass(frozen=True)
class Advice:
    """Values by dotted key of the recipe, and why each is what it is; no reason where the value
    says it.
    """

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
    """The numbers for a training set.

    Args:
        num_images: that are trained on, without held-out ones.
        pretrained: the student starts from weights.
        epochs: as asked for; None: by the number of images.
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
        put("train.precision", "bf16", "this machine's GPU has it; a CPU wants fp32")
    else:
        put("train.precision", "fp32", "bf16 on a GPU that has it")
    rate = learning_rate(batch, pretrained)
    start = "weights that are good already want small steps" if pretrained else "from nothing"
    put("student.optimizer.name", "adamw", "forgives a learning rate that is off by a factor of 2")
    put("student.optimizer.lr", rate, f"for batches of {batch}, {start}")
    put(
        "student.optimizer.lr_scaling",
        {"rule": "sqrt", "batch_size": batch},
        "another batch size brings its own rate",
    )
    put("student.optimizer.weight_decay", 0.05, "usual for AdamW")
    put("student.optimizer.clip_grad_norm", 1.0, "a rare wild batch does no harm")
    put("student.schedule.warmup", "5%", "of the budget, whatever it is")
    if has_teacher:
        put("student.objective.hard", {"loss": "ce", "weight": 0.5}, "half from the labels")
        put(
            "student.objective.soft",
            {"loss": "kl", "weight": 0.5, "temperature": 2},
            "half from the teacher: its answers say more of an image than one label",
        )
    else:
        put(
            "student.objective.hard",
            {"loss": "ce", "smoothing": 0.1},
            "no teacher: from the labels alone",
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
        f"about {_EVALUATIONS} times in the run; the best weights are kept",
    )
    put("checkpoint.every", f"{every} epochs", "what a stopped run resumes from")
    put("log.every", "1 epochs" if steps < 100 else "50 iterations")
    if has_gpu:
        put("data.num_workers", None, "decoding processes: this machine's share of cores")
    else:
        put("data.num_workers", 1, "decoding processes; on a CPU the cores are needed for training")
    return Advice(values, reasons)


def batch_size(num_images: int) -> int:
    """The power of two nearest the square root, and no more than the images."""
    did_you_mean = 2 ** round(math.log2(math.sqrt(num_images))) if num_images > 1 else 2
    batch = min(max(did_you_mean, _BATCHES[0]), _BATCHES[1])
    while batch > num_images and batch > 2:
        batch //= 2
    return batch


def num_epochs(num_images: int, pretrained: bool) -> int:
    """1,500 times the inverse root of the number of images, between 30 and 150; half of that for
    good weights.
    """
    epochs = min(150.0, max(30.0, 1500 / math.sqrt(num_images)))
    epochs *= 0.5 if pretrained else 1.0
    return 10 * max(1, round(epochs / 10))


def learning_rate(batch: int, pretrained: bool) -> float:
    """In proportion to the root of the batch, as for adaptive optimizers, up to what they stand."""
    rate = min(3e-3, 4e-3 * math.sqrt(batch / 64))
    return float(f"{rate / 8 if pretrained else rate:.1g}")
