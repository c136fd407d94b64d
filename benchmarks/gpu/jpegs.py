"""From JPEG bytes: the rate of a run whose workers decode and augment, as a share of its rate on
batches that are on the device already, and the hours of the paper's A2 run at that rate.

The photographs are made up, of the size of ImageNet's files, and are read from the page cache. The
clock of the run starts after as many steps as its workers can hold batches, so that a queue which
filled while nothing trained is not counted.
"""

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.pairs import LARGE, NUM_CLASSES, PAPER, REHEARSAL, Sizes, pair_recipe
from benchmarks.gpu.record import Figures, PartRecord
from benchmarks.gpu.steps import SyntheticBatches, compiler, take_steps
from benchmarks.loader import write_photographs
from benchmarks.runs import SteppedRun, engine_on, plan_and_models
from benchmarks.timing import Stopwatch
from distill.engine import Engine
from distill.recipe import load_recipe

IMAGENET_IMAGES = 1_281_167
PAPER_V100_HOURS = 264
"""Table 3 of the paper, vanilla KD, A2, 300 epochs, on eight V100s; for ResNet-152 and BEiTv2-L
alike. It gives none for BEiTv2-B.
"""
NEEDED_S = 40.0
# The most wanted first: the last ones may not fit into the time.
_LINES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("fast, eager", {"pipeline": "fast"}),
    ("fast, compiled", {"pipeline": "fast", "compile": True}),
    ("reference, eager", {"pipeline": "reference"}),
)


def paper_images() -> int:
    """Return the images that the paper's A2 run of 300 epochs trains on."""
    train = load_recipe(f"imagenet1k/{PAPER.recipe}").train
    assert train.budget
    size = train.batch_size_global
    steps = train.budget.steps(steps_per_epoch=IMAGENET_IMAGES // size, batch_size_global=size)
    return steps * size


def measure(line: dict[str, Any], sizes: Sizes, engine: Engine, data: Path) -> Figures:
    """Measure one pipeline: synthetic, loader alone, and both together."""
    seconds_of, size = Stopwatch(engine.device, "wall"), sizes.batch_size
    with tempfile.TemporaryDirectory() as folder:
        recipe = pair_recipe(PAPER, sizes, data, Path(folder) / "run", **line)
        stepped = SteppedRun(*plan_and_models(recipe), engine)
        source = SyntheticBatches(stepped.run.plan, engine.device)
        batches = [source.load(number) for number in range(sizes.steps_per_round)]
        take_steps(stepped, batches)

        def synthetic() -> list[float]:
            return [seconds_of(lambda: take_steps(stepped, batches)) for _ in range(sizes.rounds)]

        before = synthetic()
        workers = stepped.loader.num_workers
        started = time.perf_counter()
        stepped.take(max(workers, 1))  # every worker has started and made one
        first_batches_s = time.perf_counter() - started
        num_alone = 2 * max(workers, 1)
        loader_s = seconds_of(lambda: stepped.take(num_alone))

        def steps(count: int) -> None:
            for _ in itertools.repeat(None, count):
                stepped.step(stepped.loader)

        # As many as the workers may have prepared meanwhile.
        steps(max(workers, 1) * recipe.data.prefetch_batches)
        training_s = seconds_of(lambda: steps(sizes.long_steps))
        after = synthetic()
        stepped.close()
    synthetic_s = [second / sizes.steps_per_round for second in (*before, *after)]
    synthetic_rate = size / (sum(synthetic_s) / len(synthetic_s))
    rate = size * sizes.long_steps / training_s
    hours = {
        "synthetic": paper_images() / synthetic_rate / 3600,
        "from_jpegs": paper_images() / rate / 3600,
    }
    return {
        "workers": workers,
        "images_per_s": rate,
        "synthetic_images_per_s": synthetic_rate,
        "loader_images_per_s": size * num_alone / loader_s,
        "share_of_synthetic": rate / synthetic_rate,
        "first_batches_s": first_batches_s,
        "a2_300_epochs_hours": hours,
        "synthetic_rounds_s": synthetic_s,
    }


def show(name: str, found: Figures) -> None:
    hours = found["a2_300_epochs_hours"]
    print(
        f"{name}: {found['images_per_s']:,.1f} images/s from JPEGs,"
        f" {found['share_of_synthetic']:.1%} of the {found['synthetic_images_per_s']:,.1f} on"
        f" batches that are there; {found['workers']} workers alone"
        f" {found['loader_images_per_s']:,.1f}\n"
        f"  300 epochs of A2, {PAPER.name}: {hours['from_jpegs']:.1f} hours of this device"
        f" ({hours['synthetic']:.1f} without data); the paper: {PAPER_V100_HOURS} V100 hours"
        " (its Table 3)",
        flush=True,
    )


def run(part: PartRecord, sizes: Sizes, device: torch.device) -> None:
    """Record a line for each pipeline, eager, and compiled."""
    part.put(PAPER.name, "pair")
    part.put(PAPER_V100_HOURS, "paper_v100_hours")
    part.put(paper_images(), "a2_300_epochs_images")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        size = write_photographs(data, sizes.num_photographs, sizes.num_files, NUM_CLASSES)
        part.put(size, "jpeg_bytes")
        for name, line in _LINES:

            def measured(name: str = name, line: dict[str, Any] = line) -> Figures:
                compile = bool(line.get("compile"))
                with (
                    compiler(sizes),
                    engine_on(device.type, precision="bf16", compile=compile) as engine,
                ):
                    found = measure(line, sizes, engine, data)
                show(name, found)
                return found

            part.item(0.0 if sizes is REHEARSAL else NEEDED_S, measured, "lines", name)
    # The paper's hours are of a larger teacher, which the step table has, without data.
    for how, found in part.of("steps").get(LARGE.name, {}).items():
        if "images_per_s" in found:
            hours = paper_images() / found["images_per_s"]["ours"]["median"] / 3600
            part.put(hours, "larger_teacher_hours", how)
            print(f"300 epochs of A2, {LARGE.name}, {how}, without data: {hours:.1f} hours")
