"""One teacher forward for four students, against a run for each of them.

Time: a step of one run of N students, against the sum of a step of N runs of one student each,
interleaved round by round; and the parts of which both consist, timed in the same rounds: data D,
teacher forward T, a student S on average. They give the ideal, (D + T + N S) / (N (D + T + S)). All
students learn from the teacher (CE with KL at two temperatures, DKD, DIST): a run without one would
pay no T. Images are decoded in the training process, so that D is seen; workers on idle cores would
hide it on both sides.

Memory: the peak of a run of 1, 2 and 4 students, each in a fresh process: of the allocator on CUDA,
of the resident set on the CPU (Linux), less what was resident after a tiny run that loads all code.
A further student should add its own weights, gradients, momentum and buffers, which the table
counts too; batch, teacher, logits and activations exist once. The tensors that are alive after the
last step are counted as well: unlike the resident set, that number is the same on every machine.

    python -m benchmarks.shared_teacher
    python -m benchmarks.shared_teacher --model resnet50 --teacher beitv2_large_patch16_224 \\
        --image-size 224 --batch-size 256 --device cuda
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

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
from distill.engine import Engine
from distill.losses.teachers import Lessons
from distill.recipe.teachers import TEACHER
from distill.student.student import Student

SOFT_TERMS: dict[str, dict[str, Any]] = {
    "kd": {"loss": "kl"},
    "kd4": {"loss": "kl", "temperature": 4.0},
    "dkd": {"loss": "dkd"},
    "dist": {"loss": "dist"},
}
COMPANIES = (1, 2, len(SOFT_TERMS))
_MEMORY_STEPS = 3
_MIB = 2**20


class Starter:
    """Starts runs that differ in their students."""

    def __init__(self, settings: argparse.Namespace, folder: Path, engine: Engine) -> None:
        self.engine = engine
        self._folder = folder
        self._values = {
            "model": settings.model,
            "teacher": settings.teacher,
            "image_size": settings.image_size,
            "batch_size": settings.batch_size,
            "precision": settings.precision,
            "compile": False,
        }

    def __call__(self, names: Iterable[str], total_steps: int, **other: Any) -> SteppedRun:
        terms = {name: {"soft": SOFT_TERMS[name]} for name in names}
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        recipe = kd_recipe(
            folder, objectives=terms, total_steps=total_steps, **self._values | other
        )
        return SteppedRun(*plan_and_models(recipe), self.engine)


# ---- time ----------------------------------------------------------------------------------------


class Parts:
    """Takes steps of a run apart. `seconds`: of data, teacher and a student on average, an entry a
    round.
    """

    def __init__(self, stepped: SteppedRun, seconds_of: Stopwatch, count: int) -> None:
        self._stepped, self._seconds_of, self._count = stepped, seconds_of, count
        self.seconds: dict[str, list[float]] = {"data": [], "teacher": [], "student": []}

    def round(self) -> float:
        """Take `count` steps, and time each part of them."""
        for part in self.seconds.values():
            part.append(0.0)
        for _ in range(self._count):
            self.seconds["data"][-1] += self._seconds_of(self._load)
            self.seconds["teacher"][-1] += self._seconds_of(self._ask)
            self.seconds["student"][-1] += self._seconds_of(self._learn) / len(
                self._stepped.run.students
            )
        return 0.0

    def _load(self) -> None:
        (self._batch,) = self._stepped.take(1)

    def _ask(self) -> None:
        (teacher,) = self._stepped.run.teachers.values()
        self._lessons = Lessons({TEACHER: teacher.outputs(self._batch.images)})

    def _learn(self) -> None:
        for student in self._stepped.run.students:
            student.learn(self._batch, self._lessons)
        for student in self._stepped.run.students:
            student.update(self._stepped.run.step)


def measure_time(settings: argparse.Namespace, start: Starter) -> dict[str, Any]:
    """Interleave one run of all students, a run for each, and the parts; print and return the
    figures.
    """
    count, num_students = settings.steps_per_round, len(SOFT_TERMS)
    total_steps = (
        2 * count * (settings.rounds + 1)
    )  # twice: the run of all is also the one that is taken apart
    together = start(SOFT_TERMS, total_steps)
    alone = {name: start([name], total_steps) for name in SOFT_TERMS}
    seconds_of = Stopwatch(start.engine.device, settings.clock)

    def steps(stepped: SteppedRun) -> None:
        for _ in range(count):
            stepped.step(stepped.loader)

    contestants = {
        name: partial(seconds_of, partial(steps, stepped))
        for name, stepped in {"together": together, **alone}.items()
    }
    parts = Parts(together, seconds_of, count)
    interleaved({**contestants, "parts": parts.round}, 1)
    parts = Parts(together, seconds_of, count)
    seconds = interleaved({**contestants, "parts": parts.round}, settings.rounds)
    for stepped in (together, *alone.values()):
        stepped.close()

    separate = [sum(rounds) for rounds in zip(*(seconds[name] for name in alone), strict=True)]
    measured = ratio(seconds["together"], separate)
    by_round = zip(
        parts.seconds["data"], parts.seconds["teacher"], parts.seconds["student"], strict=True
    )
    ideal = median(
        [(d + t + num_students * s) / (num_students * (d + t + s)) for d, t, s in by_round]
    )
    milliseconds = {
        name: median([1e3 * second / count for second in rounds])
        for name, rounds in {
            "together": seconds["together"],
            "separate": separate,
            **parts.seconds,
        }.items()
    }
    print(f"one run of {num_students}: {show(milliseconds['together'], 1)} ms a step")
    print(f"{num_students} runs of one: {show(milliseconds['separate'], 1)} ms a step of each")
    print(
        "parts, ms: " + ", ".join(f"{name} {show(milliseconds[name], 1)}" for name in parts.seconds)
    )
    print(f"time ratio {show(measured)}, ideal from the parts {show(ideal)}")
    return {
        "ms": {name: spread._asdict() for name, spread in milliseconds.items()},
        "time_ratio": measured._asdict(),
        "ideal_time_ratio": ideal._asdict(),
        "rounds_s": {**seconds, **parts.seconds},
    }


# ---- memory --------------------------------------------------------------------------------------


def resident_bytes(field: str) -> int:
    """Return VmRSS, or VmHWM, its peak since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def own_bytes(student: Student) -> int:
    """Return the bytes of weights, gradients, optimizer state and buffers of a student."""
    weights = list(student.net.parameters())
    state = student.placement.state()[0]["optimizer"].values()
    return sum(t.nbytes for t in (*weights, *weights, *state, *student.net.buffers()))


def live_bytes() -> int:
    """Return the bytes of all tensors in this process, each storage once."""
    storages = {}
    for found in gc.get_objects():
        if issubclass(
            type(found), torch.Tensor
        ):  # isinstance would ask proxies of libraries for their class
            for tensor in (found, found.grad) if found.is_leaf else (found,):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def memory_of(num_students: int, start: Starter) -> dict[str, int]:
    """Bytes of a run above what this process held before: at the peak, and after the last step.
    Call in a fresh process.
    """
    tiny = start(
        ["kd"], 2, model="cifar_resnet8", teacher="cifar_resnet8", batch_size=2, image_size=28
    )
    tiny.step(tiny.loader)
    tiny.close()
    del tiny
    on_cuda = start.engine.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_bytes("VmRSS")
    stepped = start(list(SOFT_TERMS)[:num_students], _MEMORY_STEPS)
    for _ in range(_MEMORY_STEPS):
        stepped.step(stepped.loader)
    stepped.close()
    peak = torch.cuda.max_memory_allocated() if on_cuda else resident_bytes("VmHWM")
    gc.collect()
    return {"peak": peak - before, "live": live_bytes(), "own": own_bytes(stepped.run.students[0])}


def measure_memory(arguments: Sequence[str]) -> dict[str, Any]:
    """Run each number of students in a process of its own; print and return the figures."""
    # Large blocks go back to the system when freed, so that the resident set is what is in use: by
    # default glibc keeps ever larger ones.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    found = {}
    for count in COMPANIES:
        command = [
            sys.executable,
            "-m",
            "benchmarks.shared_teacher",
            *arguments,
            "--memory-of",
            str(count),
        ]
        root = Path(__file__).resolve().parents[1]
        output = subprocess.run(
            command, env=environment, cwd=root, stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        found[count] = json.loads(output.splitlines()[-1])
    one, two, all_ = (found[count]["peak"] for count in COMPANIES)
    step = (all_ - two) / (COMPANIES[2] - COMPANIES[1])
    live = (found[COMPANIES[2]]["live"] - found[COMPANIES[1]]["live"]) / (
        COMPANIES[2] - COMPANIES[1]
    )
    figures = {
        "peak_bytes": {count: values["peak"] for count, values in found.items()},
        "further_student_bytes": step,
        "further_student_live_bytes": live,
        "own_bytes": found[1]["own"],
        "shared_bytes": one - step,
        "memory_ratio": all_ / (COMPANIES[2] * one),
    }
    print(
        "peak memory, MiB: "
        + ", ".join(f"{n} students {v['peak'] / _MIB:.0f}" for n, v in found.items())
    )
    print(
        f"a further student takes {step / _MIB:.1f} MiB, its weights, gradients, momentum and"
        f" buffers are {found[1]['own'] / _MIB:.1f}; held once: {(one - step) / _MIB:.0f};"
        f" {figures['memory_ratio']:.2f} of {COMPANIES[2]} runs of one"
    )
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line. Returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18", help="timm name of the students")
    parser.add_argument(
        "--teacher", default="resnet50", help="timm name of the teacher; its weights are random"
    )
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps-per-round", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--clock", choices=tuple(CLOCKS), default="wall", help="cpu: for a CPU that others share"
    )
    parser.add_argument("--memory-of", type=int, choices=COMPANIES, help=argparse.SUPPRESS)
    common_arguments(parser, rounds=15)
    settings = parser.parse_args(arguments)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with (
        tempfile.TemporaryDirectory() as folder,
        engine_on(settings.device, precision=settings.precision, compile=False) as engine,
    ):
        start = Starter(settings, Path(folder), engine)
        if settings.memory_of:
            print(json.dumps(memory_of(settings.memory_of, start)))
            return 0
        print(
            f"{len(SOFT_TERMS)} x {settings.model} <- {settings.teacher}, {settings.image_size} px,"
            f" batch {settings.batch_size}, {settings.precision}; {settings.rounds} rounds of"
            f" {settings.steps_per_round} steps, {settings.clock} clock"
        )
        figures = measure_time(settings, start) | measure_memory(arguments)
        finish("shared_teacher", settings, engine.device, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
