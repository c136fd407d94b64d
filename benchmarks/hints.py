"""What a step of each hint costs, over a step of vanilla KD.

Counted: FLOPs, bytes that kernels read and write, and the peak of memory, of teacher forward,
student forward, loss and backward at the shapes of a ResNet-50 that learns from a ResNet-152 on 256
images of 224 pixels in bf16, on tensors without memory. The optimizer is left out. The paper's GPU
hours give 1.00 (CC), 1.07 (RKD), 1.16 (CRD), 1.66 (ReviewKD).

Timed: a step of a run of each method, with all that a step of `train` does, interleaved round by
round.

    python -m benchmarks.hints
    python -m benchmarks.hints --model resnet50 --teacher resnet152 --image-size 224 \\
        --batch-size 256 --device cuda --precision bf16
"""

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from torch import Tensor

from benchmarks.runs import SteppedRun, engine_on, kd_recipe, plan_and_models
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
from distill.doctor.meter import Meter, autocast, fake
from distill.engine import Engine
from distill.losses import Outputs, TeacherOutputs, build_objective
from distill.losses.build_hint import HintMaps
from distill.losses.crd import CRD
from distill.losses.hint import Samples
from distill.models.features import Featured
from distill.models.pixels import Pixels
from distill.recipe.schema import ObjectiveSpec
from distill.student.learner import Learner
from distill.training.hints import FeatureSource, read_features

METHODS: dict[str, dict[str, Any]] = {
    "kd": {"soft": {"loss": "kl"}},
    "fitnet": {"hint": {"loss": "fitnet"}},
    "cc": {"hint": {"loss": "cc"}},
    "rkd": {"hint": {"loss": "rkd"}},
    "crd": {"hint": {"loss": "crd"}},
    "reviewkd": {"hint": {"loss": "reviewkd", "warmup_epochs": 0}},
}
_STUDENT, _TEACHER, _IMAGE_SIZE, _BATCH_SIZE, _NUM_CLASSES = "resnet50", "resnet152", 224, 256, 1000


class Counted(NamedTuple):
    """FLOPs of products, bytes read and written, and peak bytes of a step."""

    flops: int
    traffic: int
    peak: int


def count(terms: dict[str, Any]) -> Counted:
    """Count a step of one student, without its optimizer."""
    spec = ObjectiveSpec.model_validate({"hard": {"loss": "ce"}, **terms})
    with torch.device("meta"):
        net, teacher = (
            timm.create_model(name, num_classes=_NUM_CLASSES) for name in (_STUDENT, _TEACHER)
        )
        objective = build_objective(spec, maps=_maps(spec, net, teacher), samples=_samples())
    heads = objective.hint.build_heads() if objective.hint else None
    keys = objective.hint.student_features if objective.hint else ()
    pixels = Pixels((0.5,) * 3, (0.5,) * 3)
    learner = Learner(net, pixels, heads, keys).train()
    frozen = Featured(teacher.eval().requires_grad_(False))
    with fake(torch.nn.ModuleList([learner, frozen])):
        batch = _batch()
        if isinstance(heads, CRD):
            heads.bank.student, heads.bank.teacher, heads.bank.labels = (
                torch.empty(each.shape, dtype=each.dtype)
                for each in (heads.bank.student, heads.bank.teacher, heads.bank.labels)
            )
        with Meter() as meter:
            with torch.no_grad(), autocast("bf16"):
                found: Outputs = frozen(pixels(batch.images), objective.teacher_features)
            features = dict(zip(objective.teacher_features, found.features, strict=True))
            outputs = TeacherOutputs(found.logits.float(), features)
            with autocast("bf16"):
                ours: Outputs = learner(batch.images, outputs.read(objective.teacher_features))
            total: Tensor = objective(ours, outputs, batch, heads).total
            total.backward()  # type: ignore[no-untyped-call]
    products = np.asarray(meter.products)
    traffic = int(products[:, 1].sum()) + meter.other_bytes
    return Counted(int(products[:, 0].sum()), traffic, meter.peak)


def _maps(spec: ObjectiveSpec, net: torch.nn.Module, teacher: torch.nn.Module) -> HintMaps | None:
    if spec.hint is None:
        return None
    ours = read_features(spec.hint, FeatureSource(net, _IMAGE_SIZE, _STUDENT), "student", "hint")
    theirs = read_features(
        spec.hint, FeatureSource(teacher, _IMAGE_SIZE, _TEACHER), "teacher", "hint"
    )
    assert ours
    assert theirs
    return ours, theirs


def _samples() -> Samples:
    """A bank of 100,000 images."""
    count = 100_000
    return Samples(
        seed=0,
        count=count,
        rows_of=lambda indices: indices,
        key=None,
        labelled=True,
        device=torch.device("cpu"),
        num_processes=1,
    )


def _batch() -> Any:
    """A batch as losses read it; in the context of `fake`."""
    return SimpleNamespace(
        images=torch.empty(_BATCH_SIZE, 3, _IMAGE_SIZE, _IMAGE_SIZE),
        label_probs=torch.empty(_BATCH_SIZE, _NUM_CLASSES),
        labels=torch.empty(_BATCH_SIZE, dtype=torch.int64),
        step=0,
        epoch=0,
        indices=np.arange(_BATCH_SIZE),
    )


def show_counts() -> dict[str, Any]:
    """Count all methods; print and return the figures."""
    kd = count(METHODS["kd"])
    print(f"{_STUDENT} <- {_TEACHER}, {_BATCH_SIZE} x {_IMAGE_SIZE} px, bf16, against kd")
    print(f"{'':10}{'FLOPs':>9}{'bytes':>9}{'peak memory':>14}")
    figures = {}
    for name, terms in METHODS.items():
        found = count(terms)
        flops, traffic = found.flops / kd.flops, found.traffic / kd.traffic
        extra = (found.peak - kd.peak) / 2**20
        print(f"{name:10}{flops:9.4f}{traffic:9.4f}{extra:+10.0f} MiB")
        figures[name] = {"flops": flops, "bytes": traffic, "extra_peak_mib": extra}
    return figures


def measure_time(settings: argparse.Namespace, folder: Path, engine: Engine) -> dict[str, Any]:
    """Interleave a run of each method; print and return the figures."""
    per_round = settings.steps_per_round
    runs = {}
    for name, terms in METHODS.items():
        recipe = kd_recipe(
            folder / name,
            model=settings.model,
            teacher=settings.teacher,
            objectives={name: terms},
            image_size=settings.image_size,
            batch_size=settings.batch_size,
            total_steps=per_round * (settings.rounds + 1),
            precision=settings.precision,
            compile=False,
        )
        runs[name] = SteppedRun(*plan_and_models(recipe), engine)
    seconds_of = Stopwatch(engine.device, settings.clock)

    def steps(stepped: SteppedRun) -> None:
        for _ in range(per_round):
            stepped.step(stepped.loader)

    contestants = {
        name: partial(seconds_of, partial(steps, stepped)) for name, stepped in runs.items()
    }
    interleaved(contestants, 1)
    seconds = interleaved(contestants, settings.rounds)
    for stepped in runs.values():
        stepped.close()
    size = f"{settings.batch_size} x {settings.image_size} px"
    print(f"{settings.model} <- {settings.teacher}, {size}: time of a step against kd")
    figures = {}
    for name, rounds in seconds.items():
        milliseconds = median([1e3 * second / per_round for second in rounds])
        against = ratio(rounds, seconds["kd"])
        print(f"{name:10}{show(against)}, {show(milliseconds, 1)} ms")
        figures[name] = {"ratio": against._asdict(), "ms": milliseconds._asdict()}
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet10t")
    parser.add_argument("--teacher", default="resnet18")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--clock", default="wall", choices=CLOCKS)
    parser.add_argument("--steps-per-round", type=int, default=1)
    common_arguments(parser, rounds=20)
    settings = parser.parse_args(arguments)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    counted = show_counts()
    with (
        tempfile.TemporaryDirectory() as folder,
        engine_on(settings.device, precision=settings.precision, compile=False) as engine,
    ):
        timed = measure_time(settings, Path(folder), engine)
        finish("hints", settings, engine.device, {"counted": counted, "timed": timed})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
