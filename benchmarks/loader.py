"""images/s of our TrainLoader, with each data.pipeline, against timm's `create_loader`: the same
JPEG folder, strategy A2 at 224 px, one training process.

Both decode, augment (random resized crop, flip, RandAugment), mix, and hand over normalised float32
batches on the device. timm mixes in its FastCollateMixup and repeats by its RepeatAugSampler, which
takes a process group (of one). Of the three views of repeated augmentation ours decodes the image
once and timm three times; `--repeats 1` compares without them. Ours mixes on the device: without a
GPU that is this process's own time, in 32 bits, where timm's takes a worker's, in 8.

A round starts a new loader, takes untimed batches until every worker has delivered one, and
counts from there: no loader starts with a full queue, and the workers of two loaders never run at
the same time. The photographs are synthetic: gradients and noise of many scales under a grain,
500x375 at quality 95, of about the 110 kB of an ImageNet file.

    python -m benchmarks.loader
    python -m benchmarks.loader --repeats 1 --workers 0 --clock cpu
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from timm.data import FastCollateMixup, create_dataset, create_loader

from benchmarks.runs import engine_on
from benchmarks.timing import (
    CLOCKS,
    Stopwatch,
    common_arguments,
    finish,
    interleaved,
    median,
    ratio,
    show,
)
from distill.data.augment import IMAGENET_MEAN, IMAGENET_STD
from distill.engine import Engine
from distill.models.pixels import Pixels
from distill.recipe import Recipe
from distill.recipe.data import Pipeline
from distill.recipe.load import find_recipe, read_tree
from distill.recipe.resolve import merge, resolve_students
from distill.training.build import train_loader
from distill.training.plan import Plan, make_plan
from distill.training.share import share_of_process

NUM_CLASSES = 10
_WIDTH, _HEIGHT = 500, 375
_GRAIN = 12.0  # of 255; sets the size of the files


# ---- the photographs -----------------------------------------------------------------------------


def photograph(seed: int) -> Image.Image:
    """Noise of falling amplitude at doubling scales, colour smoother than brightness, grain on top;
    every other one upright.
    """
    generator = torch.Generator().manual_seed(seed)
    size = (_HEIGHT, _WIDTH) if seed % 2 else (_WIDTH, _HEIGHT)
    picture = torch.zeros(1, 3, *size)
    for octave in range(7):
        side = 2 ** (octave + 1)
        grey = torch.randn(1, 1, side, side, generator=generator)
        colour = torch.randn(1, 3, side, side, generator=generator) * (0.5 if octave < 3 else 0.1)
        picture += F.interpolate(grey + colour, size, mode="bicubic") * 60 / 2 ** (0.8 * octave)
    picture += torch.randn(1, 1, *size, generator=generator) * _GRAIN + 120
    return Image.fromarray(picture[0].permute(1, 2, 0).clamp(0, 255).byte().numpy())


def write_photographs(
    root: Path, num_images: int, num_files: int, num_classes: int = NUM_CLASSES
) -> int:
    """Fill a class folder each; further files are links to the same images. Returns the mean size
    of an image in bytes.
    """
    originals = []
    for number in range(num_files):
        path = root / f"class{number % num_classes}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < num_images:
            photograph(number).save(path, quality=95)
            originals.append(path)
        else:
            os.link(originals[number % num_images], path)
    return sum(path.stat().st_size for path in originals) // len(originals)


# ---- the loaders ---------------------------------------------------------------------------------


def a2_recipe(
    root: Path,
    settings: argparse.Namespace,
    total_steps: int,
    num_workers: int,
    pipeline: Pipeline,
) -> Recipe:
    """Strategy A2 as it is shipped, on the photographs."""
    supervised = {
        "model": "resnet18",
        "drop_path": 0.0,
        "objective": {"soft": None},
        "schedule": {"warmup": "0 epochs"},
    }
    tree = merge(
        read_tree(find_recipe("strategies/a2")),
        {
            "name": "loader",
            "data": {"train": {"kind": "image_folder", "path": str(root)}},
            "students": {"any": supervised},
            "train": {
                "budget": f"{total_steps} iterations",
                "batch_size_global": settings.batch_size,
                "micro_batch_size": settings.batch_size,
            },
        },
    )
    asked = {
        "image_size": settings.image_size,
        "pipeline": pipeline,
        "augment": {"repeats": settings.repeats},
        "num_workers": num_workers,
    }
    return Recipe.model_validate(resolve_students(merge(tree, {"data": asked})))


@contextmanager
def our_batches(plan: Plan, engine: Engine) -> Iterator[Iterable[torch.Tensor]]:
    """Our loader as `train` builds it, and the normalisation that a model does for itself."""
    train = plan.recipe.train
    share = share_of_process(train.batch_size_global, train.micro_batch_size, engine.world_size)
    pixels = Pixels(IMAGENET_MEAN, IMAGENET_STD).to(engine.device)
    with train_loader(plan, plan.stages[0], share, engine, 0) as loader:
        yield (pixels(batch.images) for batch in loader)


@contextmanager
def timm_batches(
    dataset: Any, recipe: Recipe, device: torch.device
) -> Iterator[Iterable[torch.Tensor]]:
    """timm's loader with the same settings."""
    data, batch_size = recipe.data, recipe.train.batch_size_global
    mixing = FastCollateMixup(
        mixup_alpha=data.mixing.mixup,
        cutmix_alpha=data.mixing.cutmix,
        prob=data.mixing.probability,
        switch_prob=data.mixing.switch_probability,
        label_smoothing=0.0,
        num_classes=NUM_CLASSES,
    )
    repeated = data.augment.repeats > 1
    if repeated:  # RepeatAugSampler asks for its rank when it is made, and not again
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        loader = create_loader(
            dataset,
            data.image_size,
            batch_size,
            is_training=True,
            scale=data.augment.scale,
            ratio=data.augment.ratio,
            hflip=data.augment.horizontal_flip,
            color_jitter=data.augment.color_jitter or None,
            auto_augment=data.augment.auto_augment,
            interpolation=data.augment.interpolation,
            num_aug_repeats=data.augment.repeats if repeated else 0,
            distributed=repeated,
            num_workers=data.num_workers,
            collate_fn=mixing,
            pin_memory=device.type == "cuda",
            device=device,
            persistent_workers=False,
        )
    finally:
        if repeated:
            dist.destroy_process_group()
    batches = iter(loader)
    try:
        yield (images for images, _ in batches)
    finally:
        batches.close()  # its workers go with it


@dataclass(frozen=True)
class Contest:
    """How a loader is timed: `num_untimed` batches, then `num_batches` of `shape` under the
    stopwatch.
    """

    seconds_of: Stopwatch
    num_untimed: int
    num_batches: int
    shape: tuple[int, ...]

    def seconds(
        self, opened: Callable[[], AbstractContextManager[Iterable[torch.Tensor]]]
    ) -> float:
        """Seconds of a newly opened loader."""
        with opened() as batches:
            stream = iter(batches)
            self._take(stream, self.num_untimed)
            return self.seconds_of(lambda: self._take(stream, self.num_batches))

    def _take(self, stream: Iterator[torch.Tensor], count: int) -> None:
        for _ in range(count):
            assert next(stream).shape == self.shape


# ---- measure -------------------------------------------------------------------------------------


def measure(settings: argparse.Namespace, root: Path, engine: Engine) -> None:
    """Interleave for each number of workers, print, write."""
    batch_size, num_batches = settings.batch_size, settings.batches_per_round
    needed = (
        max(*settings.workers, 1) * 3 + num_batches
    ) * batch_size  # prefetched ones included: an epoch never ends
    num_files = -(-max(needed, settings.images) // 256) * 256  # RepeatAugSampler takes whole 256s
    size = write_photographs(root, settings.images, num_files)
    dataset = create_dataset("", root=str(root))
    print(
        f"A2, {settings.image_size} px, {settings.repeats} views an image, batch {batch_size};"
        f" {settings.images} JPEGs of {size / 1e3:.0f} kB; {settings.rounds} rounds of"
        f" {num_batches} batches, {settings.clock} clock"
    )
    print(f"{'workers':>8}{'pipeline':>11}{'ours':>8}{'timm':>8}  images/s; ratio (95 % interval)")
    figures: dict[str, Any] = {"jpeg_bytes": size, "workers": {}}
    seconds_of = Stopwatch(engine.device, settings.clock)
    shape = (batch_size, 3, settings.image_size, settings.image_size)
    for num_workers in settings.workers:
        recipes = {
            pipeline: a2_recipe(root, settings, num_files // batch_size, num_workers, pipeline)
            for pipeline in get_args(Pipeline)
        }
        recipe = recipes["reference"]
        contest = Contest(seconds_of, max(num_workers, 1), num_batches, shape)
        contestants = {
            **{
                pipeline: partial(contest.seconds, partial(our_batches, make_plan(each), engine))
                for pipeline, each in recipes.items()
            },
            "timm": partial(contest.seconds, partial(timm_batches, dataset, recipe, engine.device)),
        }
        seconds = interleaved(contestants, settings.rounds)
        speed = {
            name: median([num_batches * batch_size / s for s in rounds])
            for name, rounds in seconds.items()
        }
        ratios = {pipeline: ratio(seconds["timm"], seconds[pipeline]) for pipeline in recipes}
        for pipeline, against in ratios.items():
            print(
                f"{num_workers:>8}{pipeline:>11}{speed[pipeline].median:>8.1f}"
                f"{speed['timm'].median:>8.1f}  {show(against)}"
            )
        figures["workers"][num_workers] = {
            "images_per_s": {name: spread._asdict() for name, spread in speed.items()},
            "ratios": {pipeline: against._asdict() for pipeline, against in ratios.items()},
            "rounds_s": seconds,
        }
    finish("loader", settings, engine.device, figures)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=[0, 2],
        help="decoding processes, each number in turn",
    )
    parser.add_argument("--repeats", type=int, default=3, help="views of an image in a batch")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument(
        "--batches-per-round", type=int, default=4, help="a multiple of the workers"
    )
    parser.add_argument("--images", type=int, default=200, help="different photographs")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--clock", choices=tuple(CLOCKS), default="wall", help="cpu: for a CPU that others share"
    )
    common_arguments(parser, rounds=15)
    settings = parser.parse_args(arguments)
    if settings.clock == "cpu" and any(settings.workers):
        parser.error("--clock cpu sees this process alone: it goes with --workers 0")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with (
        tempfile.TemporaryDirectory() as folder,
        engine_on(settings.device, precision="fp32", compile=False) as engine,
    ):
        measure(settings, Path(folder), engine)
    return 0


if __name__ == "__main__":
    sys.exit(main())
