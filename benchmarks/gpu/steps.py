"""The step table: our step against a bare loop of the same maths, its parts, its memory, its share
of the measured peak, and what `distill doctor` predicts for it.

Batches are random pixels that are on the device already. Both loops have the same networks,
optimizer and batches, are compiled or not alike, and take turns in one process.
"""

import copy
import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.gpu.pairs import NUM_CLASSES, PAIRS, REHEARSAL, STUDENT, Pair, Sizes, pair_recipe
from benchmarks.gpu.record import Figures, PartRecord
from benchmarks.loader import write_photographs
from benchmarks.overhead import MinimalLoop
from benchmarks.runs import SteppedRun, engine_on, plan_and_models
from benchmarks.shared_teacher import resident_bytes
from benchmarks.timing import Stopwatch, interleaved, median, ratio
from distill.data.loading.loader import Batch
from distill.data.loading.prefetch import move
from distill.data.mixing import Mixing
from distill.doctor.hardware import GPUS, recognise
from distill.doctor.measure import Profiles, measure
from distill.doctor.memory import Reserve, estimate
from distill.doctor.model import Assumptions, Cluster, step
from distill.doctor.profiles import Layout
from distill.engine import Engine
from distill.losses.teachers import Lessons
from distill.recipe.teachers import TEACHER
from distill.student.optimizer import build_optimizer
from distill.training.plan import Plan

PARTS = ("data", "teacher", "student", "optimizer")
# Generous: building and placing the models, kernels that cuDNN tries, and the rounds; with the
# compiler, its two or three graphs.
EAGER_S, COMPILED_S = 30.0, 75.0


@contextmanager
def compiler(sizes: Sizes) -> Iterator[None]:
    """Return a context in which compiled modules are compiled, or in a rehearsal only traced."""
    compile_module = nn.Module.compile

    def trace(module: nn.Module, **options: Any) -> None:
        compile_module(module, backend="eager", **options)

    if not sizes.real_compiler:
        nn.Module.compile = trace  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.Module.compile = compile_module  # type: ignore[method-assign]
        torch._dynamo.reset()


class SyntheticBatches:
    """Batches of random pixels, brought to the device and mixed as the loader does it."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        recipe = plan.recipe
        size, data = recipe.train.batch_size_global, recipe.data
        self._device = device
        self._mixing = Mixing(
            num_classes=len(plan.classes),
            image_size=data.image_size,
            seed=recipe.seed,
            **data.mixing.model_dump(),
        )
        draw = torch.Generator().manual_seed(0)
        shape = (size, data.image_size, data.image_size, 3)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
        self._images = images.pin_memory() if device.type == "cuda" else images
        self._labels = torch.randint(len(plan.classes), (size,), generator=draw)

    def load(self, number: int) -> Batch:
        """Return batch `number` of the run, on the device."""
        slots = np.arange(len(self._labels))
        plan = self._mixing.plan(number, slots)
        if plan is not None:
            plan = plan._replace(
                lam=move(plan.lam, self._device), boxes=move(plan.boxes, self._device)
            )
        labels = move(self._labels, self._device)
        images, label_probs = self._mixing.apply(move(self._images, self._device), labels, plan)
        return Batch(
            step=number,
            micro=0,
            images=images,
            label_probs=label_probs,
            labels=labels,
            positions=move(torch.from_numpy(slots), self._device),
            epoch=0,
            indices=slots,
            views=np.zeros_like(slots),
            num_skipped=0,
        )


class Parts:
    """Takes steps apart: data (copy to the device, mixing), teacher, student (forward, loss,
    backward), optimizer.
    """

    def __init__(
        self, stepped: SteppedRun, batches: SyntheticBatches, seconds_of: Stopwatch, count: int
    ) -> None:
        self._run, self._batches = stepped.run, batches
        self._seconds_of, self._count = seconds_of, count
        self.seconds: dict[str, list[float]] = {name: [] for name in PARTS}

    def round(self) -> float:
        """Take `count` steps; each part adds its seconds of one step."""
        acts = (self._load, self._ask, self._learn, self._update)
        sums = dict.fromkeys(PARTS, 0.0)
        for _ in range(self._count):
            for name, act in zip(PARTS, acts, strict=True):
                sums[name] += self._seconds_of(act) / self._count
        for name, seconds in sums.items():
            self.seconds[name].append(seconds)
        return 0.0

    def _load(self) -> None:
        self._batch = self._batches.load(0)

    def _ask(self) -> None:
        (teacher,) = self._run.teachers.values()
        self._lessons = Lessons({TEACHER: teacher.outputs(self._batch.images)})

    def _learn(self) -> None:
        self._run.students[0].learn(self._batch, self._lessons)

    def _update(self) -> None:
        self._run.students[0].update(self._run.step)


@cache
def profiles_of(pair: Pair, sizes: Sizes, data: Path) -> Profiles:
    """Count a pair; its FLOPs are the same eager and compiled."""
    return measure(pair_recipe(pair, sizes, data, Path("unused")), NUM_CLASSES)


def predicted(profiles: Profiles, sizes: Sizes, device: torch.device) -> Figures:
    """Return what `distill doctor` predicts for an eager step of these batches on this GPU; for one
    that it does not know, on an H100.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    gpu = recognise(name) or GPUS["h100"]
    layout = Layout(1, sizes.batch_size)
    found = step(profiles.teacher, profiles.students, layout, Cluster(gpu, 1), Assumptions())
    memory = estimate(
        profiles.teacher,
        profiles.students,
        layout,
        image_size=sizes.image_size,
        num_classes=NUM_CLASSES,
        reserve=Reserve(context_bytes=0, fragmentation=0),
    )
    seconds = max(found.device_s, found.host_s)
    return {
        "gpu": gpu.label,
        "gpu_is_known": recognise(name) is not None,
        "sheet_bf16_flops_s": gpu.peak("bf16"),
        "images_per_s": sizes.batch_size / seconds,
        "step_s": seconds,
        "host_s": found.host_s,
        "parts_s": {
            "teacher": found.teacher_s,
            "student": found.student_s,
            "optimizer": found.update_s,
        },
        "memory_bytes": memory.total,
    }


def take_steps(stepped: SteppedRun, batches: list[Batch]) -> None:
    for batch in batches:
        stepped.step(iter([batch]))


def peak_bytes(stepped: SteppedRun, batches: list[Batch], device: torch.device) -> int:
    """Return the peak memory over some steps: of the allocator on CUDA, else of this process."""
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    take_steps(stepped, batches)
    return torch.cuda.max_memory_allocated() if on_cuda else resident_bytes("VmHWM")


def measure_pair(
    pair: Pair, compile: bool, sizes: Sizes, engine: Engine, data: Path, peak: float
) -> Figures:
    """Measure one line of the table."""
    device, count = engine.device, sizes.steps_per_round
    with tempfile.TemporaryDirectory() as folder:
        recipe = pair_recipe(pair, sizes, data, Path(folder) / "run", compile=compile)
        plan, models = plan_and_models(recipe)
        net = copy.deepcopy(models.nets[STUDENT])
        stepped = SteppedRun(plan, models, engine)
        source = SyntheticBatches(plan, device)
        batches = [source.load(0)]
        take_steps(stepped, batches)  # compiles, picks kernels
        (teacher,) = stepped.run.teachers.values()
        state = stepped.run.students[0].net.state_dict()
        first = {name: value.clone() for name, value in state.items()}
        memory = peak_bytes(stepped, batches, device)

        spec = recipe.students[STUDENT]
        net = net.to(device).to(memory_format=torch.channels_last)
        bare = MinimalLoop(
            net,
            teacher,
            engine,
            compile,
            optimizer=build_optimizer(net, spec.optimizer),
            binary=spec.objective.hard is not None and spec.objective.hard.loss == "bce",
            clip_grad_norm=spec.optimizer.clip_grad_norm,
        )
        bare.step(batches[0])
        difference = max(
            float((value.double() - first[name].double()).abs().max())
            for name, value in net.state_dict().items()
        )
        batches += [source.load(number) for number in range(1, count)]

        seconds_of = Stopwatch(device, "wall")

        def bare_steps() -> None:
            for batch in batches:
                bare.step(batch)

        contestants = {
            "ours": lambda: seconds_of(lambda: take_steps(stepped, batches)),
            "bare": lambda: seconds_of(bare_steps),
        }
        parts = Parts(stepped, source, seconds_of, count)
        interleaved({**contestants, "parts": parts.round}, 1)
        parts = Parts(stepped, source, seconds_of, count)
        rounds = interleaved({**contestants, "parts": parts.round}, sizes.rounds)
        stepped.close()

    figures = figures_of(rounds, parts.seconds, profiles_of(pair, sizes, data), sizes, peak)
    figures |= {
        "teacher": recipe.teacher_rows[TEACHER].model,
        "student": spec.model,
        "optimizer": spec.optimizer.name,
        "batch_size": sizes.batch_size,
        "image_size": sizes.image_size,
        "peak_memory_bytes": memory,
        "first_step_difference": difference,
        "predicted": predicted(profiles_of(pair, sizes, data), sizes, device),
    }
    models_s = figures["parts_s"]["teacher"] + figures["parts_s"]["student"]
    sheet = figures["predicted"]["sheet_bf16_flops_s"]
    figures["mfu_for_doctor"] = sum(figures["flops"].values()) / models_s / sheet
    return figures


def figures_of(
    rounds: dict[str, list[float]],
    parts: dict[str, list[float]],
    profiles: Profiles,
    sizes: Sizes,
    peak: float,
) -> Figures:
    """Return the figures of the rounds.

    Args:
        peak: FLOP/s of a large bf16 product, measured.
    """
    images = sizes.batch_size * sizes.steps_per_round
    speed = {name: median([images / s for s in rounds[name]]) for name in ("ours", "bare")}
    part_s = {name: median(seconds).median for name, seconds in parts.items()}
    teacher, (student,) = profiles.teacher, profiles.students
    assert teacher is not None
    flops = {
        "teacher": teacher.forward.flops(sizes.batch_size),
        "student": student.train.flops(sizes.batch_size),
    }
    step_s = sizes.batch_size / speed["ours"].median
    shares = {name: each / part_s[name] / peak for name, each in flops.items()}
    shares["step"] = sum(flops.values()) / step_s / peak
    return {
        "images_per_s": {name: spread._asdict() for name, spread in speed.items()},
        "ratio": ratio(rounds["bare"], rounds["ours"])._asdict(),
        "step_s": step_s,
        "parts_s": part_s,
        "flops": flops,
        "peak_shares": shares,
        "rounds_s": {**{name: rounds[name] for name in ("ours", "bare")}, **parts},
    }


def show_pair(name: str, how: str, found: Figures) -> None:
    parts = ", ".join(f"{part} {1e3 * s:.1f}" for part, s in found["parts_s"].items())
    shares = ", ".join(f"{part} {share:.1%}" for part, share in found["peak_shares"].items())
    expected = found["predicted"]
    print(
        f"{name}, {how}: {found['images_per_s']['ours']['median']:,.1f} images/s,"
        f" bare loop {found['images_per_s']['bare']['median']:,.1f}, ratio"
        f" {found['ratio']['median']:.3f}; {found['peak_memory_bytes'] / 2**30:.1f} GiB\n"
        f"  ms: {parts}; of the measured peak: {shares}\n"
        f"  distill doctor: {expected['images_per_s']:,.1f} images/s on {expected['gpu']},"
        f" {expected['memory_bytes'] / 2**30:.1f} GiB; as measured it is --mfu"
        f" {found['mfu_for_doctor']:.3f}",
        flush=True,
    )


def run(part: PartRecord, sizes: Sizes, device: torch.device) -> None:
    """Record the table: eager lines first, then compiled ones, then the larger teacher's others."""
    peak = part.of("ceilings").get("bf16_flops_s")
    if peak is None:
        raise SystemExit("the step table needs the part ceilings before it")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write_photographs(data, 1, NUM_CLASSES, NUM_CLASSES)
        main, others = PAIRS[:5], PAIRS[5:]
        lines = [(pair, compile) for compile in (False, True) for pair in main]
        if sizes is not REHEARSAL:  # whose models are those of the pairs before
            lines += [(pair, compile) for compile in (False, True) for pair in others]
        for pair, compile in lines:
            how = "compiled" if compile else "eager"

            def measured(pair: Pair = pair, compile: bool = compile, how: str = how) -> Figures:
                where = device.type
                with (
                    compiler(sizes),
                    engine_on(where, precision="bf16", compile=compile) as engine,
                ):
                    found = measure_pair(pair, compile, sizes, engine, data, peak)
                show_pair(pair.name, how, found)
                return found

            needed = 0.0 if sizes is REHEARSAL else COMPILED_S if compile else EAGER_S
            part.item(needed, measured, pair.name, how)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
