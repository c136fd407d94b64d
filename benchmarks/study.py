"""A sweep of four learning rates: one `distill study`, against a run of timm's train.py for each.

Both train the same timm student from random weights for as many epochs on the same folder of
Fashion-MNIST images, learn from the same teacher (cross-entropy and KL, temperature 1), evaluate
after each epoch, and save. Ours is one run of four students behind one teacher forward; timm's is
four processes. Everything counts from the start of the first process to the end of the last:
imports, decoding, training, evaluations. The two take turns, round by round.

timm's train.py is not in its package: --timm names a checkout of pytorch-image-models. timm's
sweep.py was in no release and no commit that could be had when this was written.

    git clone --depth 1 URL-OF-PYTORCH-IMAGE-MODELS timm
    python -m benchmarks.study --timm timm
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.timing import common_arguments, finish, interleaved, median, ratio, show
from distill.data.decode import read_image
from distill.data.fashion import EmbeddedFashionMnist

RATES = (0.01, 0.02, 0.05, 0.1)
TARGET = 0.75
NUM_CLASSES = 10


def write_images(folder: Path, split: str, count: int) -> None:
    """Write images of the package as a folder for each class."""
    source = EmbeddedFashionMnist("train" if split == "train" else "test")
    for index in range(count):
        place = folder / split / f"class{source.labels[index]}"
        place.mkdir(parents=True, exist_ok=True)
        read_image(source, index).save(place / f"{index:05d}.png")


def write_teacher(folder: Path, model: str) -> None:
    """Write a teacher with random weights, in the form that timm and we load."""
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(0)
    net = timm.create_model(model, num_classes=NUM_CLASSES)
    save_for_hf(net, folder, model_config={"num_classes": NUM_CLASSES}, safe_serialization=True)


def write_study(folder: Path, settings: argparse.Namespace) -> Path:
    """Write the study, and the recipe that it is about."""
    recipe = {
        "name": "base",
        "data": {
            "root": str(folder / "images"),
            "train": {"kind": "image_folder", "path": "train"},
            "eval": {"kind": "image_folder", "path": "val"},
            "image_size": settings.image_size,
            "num_workers": settings.workers,
            "augment": {"horizontal_flip": 0.5},
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
                "optimizer": {"name": "momentum", "lr": 0.1, "weight_decay": 5e-4},
            }
        },
        "train": {
            "budget": f"{settings.epochs} epochs",
            "batch_size_global": settings.batch_size,
            "micro_batch_size": settings.batch_size,
        },
        "evaluate": {"every": "1 epochs", "batch_size_process": settings.batch_size},
        "checkpoint": {"every": "1 epochs"},
        "log": {"every": "1 epochs"},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(recipe))
    study = {"name": "sweep", "recipe": "base.yaml", "axes": {"optimizer.lr": list(RATES)}}
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(study))
    return file


class Timed:
    """Runs processes one after the other; the clock is the wall's, or the processor time of all of
    them and their children.
    """

    def __init__(self, clock: str, log: Path) -> None:
        self._clock, self._log = clock, log

    def _now(self) -> float:
        if self._clock == "wall":
            return time.perf_counter()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def __call__(self, commands: Sequence[Sequence[str]], **environment: str) -> float:
        start = self._now()
        for command in commands:
            with self._log.open("a") as log:
                done = subprocess.run(
                    command, stdout=log, stderr=log, check=False, env={**os.environ, **environment}
                )
            if done.returncode:
                tail = "\n".join(self._log.read_text().splitlines()[-15:])
                raise SystemExit(f"{' '.join(command[:4])} ended with {done.returncode}:\n{tail}")
        seconds = self._now() - start
        print(f"{len(commands)} command(s): {seconds:.1f} s", flush=True)
        return seconds


def timm_commands(folder: Path, settings: argparse.Namespace) -> list[list[str]]:
    """Return a run of timm's train.py for each rate."""
    size = str(settings.image_size)
    return [
        [
            *(sys.executable, str(settings.timm / "train.py")),
            *("--data-dir", str(folder / "images"), "--val-split", "val"),
            *("--model", settings.model, "--num-classes", str(NUM_CLASSES)),
            *("--input-size", "3", size, size, "--device", "cpu", "-j", str(settings.workers)),
            *("--opt", "momentum", "--lr", str(rate), "--weight-decay", "5e-4"),
            *("--sched", "cosine", "--epochs", str(settings.epochs), "--warmup-epochs", "0"),
            *("--cooldown-epochs", "0", "-b", str(settings.batch_size)),
            *("--kd-model-name", f"local-dir:{folder / 'teacher'}", "--kd-temperature", "1"),
            *("--task-loss-weight", "1", "--distill-loss-weight", "1"),
            *("--output", str(folder / "timm"), "--experiment", f"lr{rate}"),
            *("--checkpoint-hist", "2", "--color-jitter", "0"),
        ]
        for rate in RATES
    ]


def measure(folder: Path, settings: argparse.Namespace) -> dict[str, Any]:
    """Interleave both sweeps; print and return the figures."""
    write_images(folder / "images", "train", settings.images)
    write_images(folder / "images", "val", max(settings.images // 6, 20))
    write_teacher(folder / "teacher", settings.teacher)
    study = write_study(folder, settings)
    timed = Timed(settings.clock, folder / "log.txt")
    threads = {"OMP_NUM_THREADS": str(settings.threads or 1), "HF_HUB_OFFLINE": "1"}

    def ours() -> float:
        shutil.rmtree(folder / "out", ignore_errors=True)
        output = f"output={folder / 'out'}"
        return timed([[sys.executable, "-m", "distill", "study", str(study), output]], **threads)

    def theirs() -> float:
        shutil.rmtree(folder / "timm", ignore_errors=True)
        paths = os.pathsep.join([str(settings.timm), os.environ.get("PYTHONPATH", "")])
        return timed(timm_commands(folder, settings), PYTHONPATH=paths, **threads)

    seconds = interleaved({"ours": ours, "timm": theirs}, settings.rounds)
    against = ratio(seconds["ours"], seconds["timm"])
    print(
        f"{len(RATES)} rates of {settings.model} <- {settings.teacher}, {settings.image_size} px,"
        f" {settings.epochs} epochs of {settings.images} images, batch {settings.batch_size};"
        f" {settings.rounds} rounds, {settings.clock} clock"
    )
    for name, label in (("ours", "distill study, one run"), ("timm", "timm train.py, four runs")):
        print(f"{label:26}{show(median(seconds[name]), 1)} s")
    print(f"ratio {show(against)}, target at most {TARGET}")
    return {"ratio": against._asdict(), "target": TARGET, "rounds_s": seconds}


def against_timm(
    name: str,
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    measure: Callable[[Path, argparse.Namespace], dict[str, Any]],
) -> int:
    """Measure in a new folder against timm's train.py, and write the figures. Returns the exit
    code.

    Args:
        name: of the benchmark.
        parser: with its options; this adds --timm.
    """
    parser.add_argument(
        "--timm", type=Path, required=True, help="a checkout of pytorch-image-models"
    )
    settings = parser.parse_args(arguments)
    if not (settings.timm / "train.py").is_file():
        raise SystemExit(f"--timm {settings.timm}: holds no train.py: name a checkout")
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), settings)
    finish(name, settings, torch.device("cpu"), figures)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet10t", help="timm name of the student")
    parser.add_argument("--teacher", default="resnet34", help="timm name of the teacher")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=960, help="training images")
    parser.add_argument("--workers", type=int, default=1, help="decoding processes of each run")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    common_arguments(parser, rounds=3)
    return against_timm("study", parser, arguments, measure)


if __name__ == "__main__":
    sys.exit(main())
