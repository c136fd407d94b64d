"""The training strategies in the tables of the paper, and those of a recipe for comparison."""

import re
from pathlib import Path

from distill.recipe import Recipe
from distill.recipe.schema import StudentSpec

RAND, CROP = "rand-m7-mstd0.5", "random_resized"


SGD = "momentum"  # timm's "sgd" is Nesterov


# Tables 2 and 12, and what the released commands add. "previous" is Table 1's other column.
STRATEGIES = ("a1", "a2", "b", "c", "previous_imagenet", "previous_cifar")


TABLE = {
    "batch_size_global": (2048, 2048, 1024, 512, 256, 64),
    "micro_batch_size": (256, 256, 128, 512, 32, 64),
    "precision": ("bf16", "bf16", "bf16", "fp32", "fp32", "fp32"),
    "optimizer": ("lamb", "lamb", "adamw", SGD, SGD, SGD),
    "lr": (5e-3, 5e-3, 1e-3, 5e-2, 0.1, 5e-2),
    "weight_decay": (0.01, 0.03, 5e-2, 5e-4, 1e-4, 5e-4),
    "clip_grad_norm": (1.0, 1.0, None, None, None, None),
    "schedule": ("cosine", "cosine", "cosine", "cosine", "step", "step"),
    "warmup": ("5 epochs", "5 epochs", "20 epochs", "0 iterations", "0 iterations", "0 iterations"),
    "warmup_lr": (1e-6, 1e-6, 1e-6, 0.0, 0.0, 0.0),
    "min_lr": (1e-6, 1e-6, 1e-6, 1e-6, 0.0, 0.0),
    "milestones": ("", "", "", "", "30 60", "150 180 210"),
    "hard": ("bce", "bce", "ce", "ce", "ce", "ce"),
    "smoothing": (0.1, 0.0, 0.0, 0.0, 0.0, 0.0),
    "drop_path": (0.05, 0.05, 0.0, 0.0, 0.0, 0.0),
    "repeats": (3, 3, 1, 1, 1, 1),
    "auto_augment": (RAND, RAND, RAND, "cifar10", None, None),
    "random_erasing": (0.0, 0.0, 0.25, 0.0, 0.0, 0.0),
    "color_jitter": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "horizontal_flip": (0.5, 0.5, 0.5, 0.5, 0.5, 0.5),
    "crop": (CROP, CROP, CROP, "padded", CROP, "padded"),
    "mixup": (0.2, 0.1, 0.1, 0.1, 0.0, 0.0),
    "cutmix": (1.0, 1.0, 1.0, 0.0, 0.0, 0.0),
    "group_size": (256, 256, 128, 512, 256, 64),
    "image_size": (224, 224, 224, 32, 224, 32),
    "crop_fraction": (0.95, 0.95, 0.95, 1.0, 0.875, 1.0),
    "emas": ((), (), (), (), (), ()),
}


def strategy_of(path: Path) -> tuple[str, int]:
    """The strategy and the epochs that a file's name promises; the teachers of Table 1b follow the
    previous recipe.
    """
    match = re.search(r"_(a1|a2|b|c|previous)_(\d+)ep", path.stem)
    strategy, epochs = (match[1], int(match[2])) if match else ("previous", 240)
    if strategy == "previous":
        strategy = {"imagenet1k": "previous_imagenet", "cifar100": "previous_cifar"}[
            path.parent.name
        ]
    return strategy, epochs


def settings(recipe: Recipe, student: StudentSpec) -> dict[str, object]:
    """What a recipe says of each row of TABLE."""
    train, data, hard = recipe.train, recipe.data, student.objective.hard
    return {
        "batch_size_global": train.batch_size_global,
        "micro_batch_size": train.micro_batch_size,
        "precision": train.precision,
        "optimizer": student.optimizer.name,
        "lr": student.optimizer.lr,
        "weight_decay": student.optimizer.weight_decay,
        "clip_grad_norm": student.optimizer.clip_grad_norm,
        "schedule": student.schedule.name,
        "warmup": str(student.schedule.warmup),
        "warmup_lr": student.schedule.warmup_lr,
        "min_lr": student.schedule.min_lr,
        "milestones": " ".join(str(m).removesuffix(" epochs") for m in student.schedule.milestones),
        "hard": hard.loss if hard else None,
        "smoothing": hard.smoothing if hard else None,
        "drop_path": student.drop_path,
        "repeats": data.augment.repeats,
        "auto_augment": data.augment.auto_augment,
        "random_erasing": data.augment.random_erasing,
        "color_jitter": data.augment.color_jitter,
        "horizontal_flip": data.augment.horizontal_flip,
        "crop": data.augment.crop,
        "mixup": data.mixing.mixup,
        "cutmix": data.mixing.cutmix,
        "group_size": data.mixing.group_size,
        "image_size": data.image_size,
        "crop_fraction": data.eval_view.crop_fraction,
        "emas": student.ema.decays,
    }
