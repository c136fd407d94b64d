"""images/s of our training step against a minimal PyTorch loop written by hand for the same maths.

Ours: `Run._step` of a run that the functions of `train` built, one student, CE + KL. Theirs: the
same student and teacher networks, optimizer and batches, and nothing a first draft would not have:
pixels are normalised once for both models, and there is no accumulation, guard against NaN, loss
bookkeeping or learning rate to set. Both take the same batches, already on the device, so no data
loading is timed; the two interleave round by round and end with the same weights, bit for bit on
the CPU.

The default is the pair of `make demo`, whose steps are the shortest we ship: an overhead of fixed
length shows most there.

    python -m benchmarks.overhead
    python -m benchmarks.overhead --model resnet50 --teacher resnet152 --image-size 224 \\
        --batch-size 256 --precision bf16 --device cuda
"""

import argparse
import copy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import nn

from benchmarks.runs import (
    LR,
    MOMENTUM,
    WEIGHT_DECAY,
    SteppedRun,
    engine_on,
    kd_recipe,
    plan_and_models,
)
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
from distill.data.loading.loader import Batch
from distill.engine import Engine
from distill.models.pixels import Pixels
from distill.models.teacher import Teacher
from distill.models.view import view_of_config

TARGET = 0.97
_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class MinimalLoop:
    """The minimal loop: `net` is its own copy of the student, `teacher` that of the run.

    Args:
        optimizer: over the parameters of `net`; None: SGD with momentum.
        binary: BCE, averaged over the classes, on the labels instead of CE.
        clip_grad_norm: largest norm of the gradient; None clips nothing.
    """

    def __init__(
        self,
        net: nn.Module,
        teacher: Teacher,
        engine: Engine,
        compile: bool,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        binary: bool = False,
        clip_grad_norm: float | None = None,
    ) -> None:
        self.net = net.to(engine.device).to(memory_format=torch.channels_last).train()
        self.teacher = teacher.model
        view = view_of_config(net.pretrained_cfg, "timm")  # type: ignore[arg-type]
        self.pixels = Pixels(view.mean, view.std).to(engine.device)
        same = teacher.dtype == torch.float32 and (
            (self.pixels.mean, self.pixels.std) == (teacher.pixels.mean, teacher.pixels.std)
        )
        self.teacher_pixels = None if same else teacher.pixels
        self.optimizer = optimizer or create_optimizer_v2(
            self.net, opt="momentum", lr=LR, weight_decay=WEIGHT_DECAY, momentum=MOMENTUM
        )
        self.binary, self.clip_grad_norm = binary, clip_grad_norm
        self.device_type = engine.device.type
        self.dtype = _AUTOCAST[engine.precision]
        self.scaler = (
            torch.amp.GradScaler(self.device_type) if self.dtype == torch.float16 else None
        )
        if compile:
            self.net.compile()

    def step(self, batch: Batch) -> None:
        """Take one step of the student."""
        images = self.pixels(batch.images)
        with torch.no_grad():
            teacher_logits = self.teacher(
                self.teacher_pixels(batch.images) if self.teacher_pixels else images
            ).logits.float()
        with torch.autocast(self.device_type, self.dtype, enabled=self.dtype is not None):
            logits = self.net(images)
        logits = logits.float()
        # Each term is written as ours is reduced, sum over classes and then mean, so that the bits
        # can agree.
        if self.binary:
            hard = F.binary_cross_entropy_with_logits(logits, batch.label_probs)
        else:
            hard = -(batch.label_probs * F.log_softmax(logits, -1)).sum(-1).mean()
        log_teacher = F.log_softmax(teacher_logits, -1)
        soft = (log_teacher.exp() * (log_teacher - F.log_softmax(logits, -1))).sum(-1).mean()
        loss = hard + soft
        if self.scaler:
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            if self.clip_grad_norm is not None:
                self.scaler.unscale_(self.optimizer)
                self._clip(self.clip_grad_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            loss.backward()  # type: ignore[no-untyped-call]
            if self.clip_grad_norm is not None:
                self._clip(self.clip_grad_norm)
            self.optimizer.step()
        self.optimizer.zero_grad()

    def _clip(self, norm: float) -> None:
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), norm)


def largest_difference(ours: nn.Module, theirs: nn.Module) -> float:
    """Largest absolute difference of weights and buffers; 0.0 means the same bits, but for the sign
    of a zero.
    """
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def measure(settings: argparse.Namespace, output: Path, engine: Engine) -> int:
    """Run, print, write. Returns the exit code: 1 if eager fp32 weights on the CPU differ."""
    count = settings.steps_per_round
    total_steps = 1 + (settings.rounds + 1) * count
    recipe = kd_recipe(
        output,
        model=settings.model,
        teacher=settings.teacher,
        objectives={"student": {"soft": {"loss": "kl"}}},
        image_size=settings.image_size,
        batch_size=settings.batch_size,
        total_steps=total_steps,
        precision=settings.precision,
        compile=settings.compile,
    )
    plan, models = plan_and_models(recipe)
    net = copy.deepcopy(models.nets["student"])
    ours = SteppedRun(plan, models, engine)
    (teacher,) = ours.run.teachers.values()
    theirs = MinimalLoop(net, teacher, engine, settings.compile)
    seconds_of = Stopwatch(engine.device, settings.clock)
    batches = ours.take(1)

    def prepare() -> None:
        batches[:] = ours.take(count)

    def our_steps(of: Iterator[Batch]) -> None:
        for _ in range(count):
            ours.step(of)

    def their_steps() -> None:
        for batch in batches:
            theirs.step(batch)

    # Rounding that differs anywhere, as it may in compiled kernels, grows step by step: the first
    # step distinguishes it from other arithmetic.
    ours.step(iter(batches))
    theirs.step(batches[0])
    student = ours.run.students[0].net
    differences = {1: largest_difference(student, theirs.net)}

    contestants = {
        "ours": lambda: seconds_of(lambda: our_steps(iter(batches))),
        "minimal": lambda: seconds_of(their_steps),
    }
    interleaved(contestants, 1, prepare)  # compiles, picks kernels, fills caches
    seconds = interleaved(contestants, settings.rounds, prepare)
    ours.close()

    speed = {
        name: median([count * settings.batch_size / second for second in rounds])
        for name, rounds in seconds.items()
    }
    against = ratio(seconds["minimal"], seconds["ours"])
    differences[total_steps] = largest_difference(student, theirs.net)
    print(
        f"{settings.model} <- {settings.teacher}, {settings.image_size} px, batch"
        f" {settings.batch_size}, {settings.precision}{', compiled' if settings.compile else ''};"
        f" {settings.rounds} rounds of {count} steps, {settings.clock} clock"
    )
    print(f"{'':14}{'images/s':>10}{'ms/step':>10}")
    for name, label in (("ours", "our step"), ("minimal", "minimal loop")):
        images_per_s = speed[name].median
        ms_per_step = 1e3 * settings.batch_size / images_per_s
        print(f"{label:14}{images_per_s:>10.1f}{ms_per_step:>10.2f}")
    extra = median(
        [1e3 * (a - b) / count for a, b in zip(seconds["ours"], seconds["minimal"], strict=True)]
    )
    print(
        f"ratio {show(against)}, target at least {TARGET}; our step takes {show(extra, 2)} ms more"
    )
    for steps, difference in differences.items():
        same = "the same bits" if difference == 0 else f"largest difference {difference:.2g}"
        print(f"weights after {steps} steps of each: {same}")
    finish(
        "overhead",
        settings,
        engine.device,
        {
            "images_per_s": {name: spread._asdict() for name, spread in speed.items()},
            "ratio": against._asdict(),
            "target": TARGET,
            "extra_ms_per_step": extra._asdict(),
            "weights_largest_difference": differences,
            "rounds_s": seconds,
        },
    )
    exact = engine.device.type == "cpu" and settings.precision == "fp32" and not settings.compile
    return int(exact and any(differences.values()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="cifar_resnet8", help="timm name of the student")
    parser.add_argument(
        "--teacher",
        default="cifar_resnet20",
        help="timm name of the teacher; its weights are random",
    )
    parser.add_argument("--image-size", type=int, default=28)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps-per-round", type=int, default=5)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--clock", choices=tuple(CLOCKS), default="wall", help="cpu: for a CPU that others share"
    )
    common_arguments(parser, rounds=100)
    settings = parser.parse_args(arguments)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with (
        tempfile.TemporaryDirectory() as folder,
        engine_on(
            settings.device, precision=settings.precision, compile=settings.compile
        ) as engine,
    ):
        return measure(settings, Path(folder) / "overhead", engine)


if __name__ == "__main__":
    sys.exit(main())
