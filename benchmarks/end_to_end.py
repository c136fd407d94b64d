"""Images a second of a whole distillation run from JPEG files: `distill train` with each
data.pipeline, against timm's train.py as it comes and with --channels-last.

All distil the same teacher into the same student (random weights: the work is the same) from the
same photographs of ImageNet's size, with strategy A2's augmentation and mixing, LAMB, the same
batch, decoding processes and threads, and evaluate and save after each epoch. Each takes a short
and a long run in a round: the rate is the images between them over the seconds between them, which
leaves out imports and the building of models.

timm's train.py is not in its package: --timm names a checkout of pytorch-image-models.

    git clone --depth 1 URL-OF-PYTORCH-IMAGE-MODELS timm
    python -m benchmarks.end_to_end --timm timm
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import yaml

from benchmarks.shards import jpeg_crops, photographs
from benchmarks.study import NUM_CLASSES, Timed, against_timm, write_teacher
from benchmarks.timing import common_arguments, interleaved, median, ratio, show
from distill.recipe.data import Pipeline

TARGET = 1.4
_LR, _WEIGHT_DECAY, _MIXUP, _CUTMIX = 5e-3, 0.03, 0.1, 1.0
_POLICY = "rand-m7-mstd0.5-inc1"


def write_photographs(root: Path, split: str, count: int) -> None:
    """Write JPEG files as a folder for each class."""
    for number, record in enumerate(jpeg_crops(count)):
        file = root / split / f"class{number % NUM_CLASSES}" / f"{number:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(record)


def write_recipe(folder: Path, settings: argparse.Namespace) -> Path:
    """Write the recipe of our runs; pipeline and epochs are set on the command line."""
    recipe = {
        "name": "end-to-end",
        "data": {
            "root": str(folder / "images"),
            "train": {"kind": "image_folder", "path": "train"},
            "eval": {"kind": "image_folder", "path": "val"},
            "image_size": settings.image_size,
            "num_workers": settings.workers,
            "augment": {"horizontal_flip": 0.5, "auto_augment": _POLICY},
            "mixing": {"mixup": _MIXUP, "cutmix": _CUTMIX},
        },
        "teacher": {
            "model": settings.teacher,
            "weights": str(folder / "teacher" / "model.safetensors"),
            "image_size": settings.image_size,
        },
        "students": {
            "kd": {
                "model": settings.model,
                "objective": {"hard": {"loss": "ce"}, "soft": {"loss": "kl"}},
                "optimizer": {"name": "lamb", "lr": _LR, "weight_decay": _WEIGHT_DECAY},
            }
        },
        "train": {
            "batch_size_global": settings.batch_size,
            "micro_batch_size": settings.batch_size,
        },
        "evaluate": {"every": "1 epochs", "batch_size_process": settings.batch_size},
        "checkpoint": {"every": "1 epochs"},
        "log": {"every": "1 epochs"},
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def our_command(recipe: Path, output: Path, pipeline: Pipeline, epochs: int) -> list[str]:
    """Return `distill train` on the recipe."""
    return [
        *(sys.executable, "-m", "distill", "train", str(recipe), f"output={output}"),
        *(f"data.pipeline={pipeline}", f"train.budget={epochs} epochs"),
    ]


def timm_command(folder: Path, settings: argparse.Namespace, epochs: int, *flags: str) -> list[str]:
    """Return timm's train.py with the same settings."""
    size = str(settings.image_size)
    return [
        *(sys.executable, str(settings.timm / "train.py"), "--data-dir", str(folder / "images")),
        *("--val-split", "val", "--model", settings.model, "--num-classes", str(NUM_CLASSES)),
        *("--input-size", "3", size, size, "--device", "cpu", "-j", str(settings.workers)),
        *("--opt", "lamb", "--lr", str(_LR), "--weight-decay", str(_WEIGHT_DECAY)),
        *("--sched", "cosine", "--epochs", str(epochs), "--warmup-epochs", "0"),
        *("--cooldown-epochs", "0", "-b", str(settings.batch_size), "--color-jitter", "0"),
        *("--aa", _POLICY, "--mixup", str(_MIXUP), "--cutmix", str(_CUTMIX), "--smoothing", "0"),
        *("--kd-model-name", f"local-dir:{folder / 'teacher'}", "--kd-temperature", "1"),
        *("--task-loss-weight", "1", "--distill-loss-weight", "1"),
        *("--output", str(folder / "timm"), "--experiment", "run", "--checkpoint-hist", "2"),
        *flags,
    ]


def measure(folder: Path, settings: argparse.Namespace) -> dict[str, Any]:
    """Interleave the contestants; print and return the figures."""
    write_photographs(folder / "images", "train", settings.images)
    write_photographs(folder / "images", "val", settings.batch_size)
    write_teacher(folder / "teacher", settings.teacher)
    recipe = write_recipe(folder, settings)
    timed = Timed("wall", folder / "log.txt")
    paths = os.pathsep.join([str(settings.timm), os.environ.get("PYTHONPATH", "")])
    environment = {"OMP_NUM_THREADS": str(settings.threads or 1), "HF_HUB_OFFLINE": "1"}

    def seconds(command: Callable[[int], list[str]]) -> float:
        """Of the images that the long run has more than the short one."""
        taken = []
        for epochs in (1, settings.epochs):
            for output in ("out", "timm"):
                shutil.rmtree(folder / output, ignore_errors=True)
            taken.append(timed([command(epochs)], PYTHONPATH=paths, **environment))
        return taken[1] - taken[0]

    ours: dict[str, Callable[[int], list[str]]] = {
        f"distill, {pipeline}": partial(our_command, recipe, folder / "out", pipeline)
        for pipeline in get_args(Pipeline)
    }
    theirs: dict[str, Callable[[int], list[str]]] = {
        "timm": lambda epochs: timm_command(folder, settings, epochs),
        "timm --channels-last": lambda epochs: timm_command(
            folder, settings, epochs, "--channels-last"
        ),
    }
    contestants = {name: partial(seconds, command) for name, command in {**ours, **theirs}.items()}
    rounds = interleaved(contestants, settings.rounds)
    num_images = (settings.epochs - 1) * (settings.images // settings.batch_size)
    num_images *= settings.batch_size
    print(
        f"{settings.model} <- {settings.teacher} at {settings.image_size} px, batch"
        f" {settings.batch_size}, {settings.workers} workers, {settings.images} crops of"
        f" {photographs()[2]}; {settings.rounds} rounds of {num_images} images"
    )
    for name, each in rounds.items():
        print(f"{name:22}{show(median([num_images / s for s in each]), 1)} images/s")
    ratios = {}
    for name in ours:
        for peer in theirs:
            ratios[f"{name} / {peer}"] = against = ratio(rounds[peer], rounds[name])
            print(f"{name} / {peer}: {show(against)}")
    print(f"target: {TARGET} times timm with its best flags")
    return {
        "ratios": {name: each._asdict() for name, each in ratios.items()},
        "target": TARGET,
        "images": num_images,
        "rounds_s": rounds,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tf_efficientnet_lite0", help="timm name of the student")
    parser.add_argument("--teacher", default="tf_efficientnet_lite2", help="timm name")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3, help="of the long run; the short has 1")
    parser.add_argument("--images", type=int, default=480, help="training images")
    parser.add_argument("--workers", type=int, default=2, help="decoding processes of each run")
    common_arguments(parser, rounds=3)
    return against_timm("end_to_end", parser, arguments, measure)


if __name__ == "__main__":
    sys.exit(main())
