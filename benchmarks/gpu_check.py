"""What a machine with one GPU is for: the tests that need it, the step table, the rate from JPEGs.

It ends within `--minutes`, prints as it measures, and leaves one JSON file, written after each
figure, so that a run that is cut leaves what it has. Each part is a process of its own with a
budget: one that crashes, hangs or has no time left costs the others nothing, and is named. Times
never fail it; a failed test or a part that crashed does (exit code 1).

    python -m benchmarks.gpu_check --json gpu.json
    python -m benchmarks.gpu_check --rehearse --json rehearsal.json    # tiny, on the CPU
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu.record import Figures, PartRecord, Record

ROOT = Path(__file__).resolve().parents[1]
GRACE_S = 5.0
START_S = 10.0  # of the script before this: it installs wheels


class Part(NamedTuple):
    """A part starts if `least_s` seconds are left for it, and ends after `most_s`, or when the
    parts after it need the rest.
    """

    name: str
    least_s: float
    most_s: float


PARTS = (
    Part("ceilings", 15, 60),
    Part("tests", 60, 170),
    Part("steps", 60, 600),
    Part("jpegs", 120, 170),
)
TEACHER_GOAL, JPEG_GOAL = 0.45, 0.90


def run_part(part: Part, settings: argparse.Namespace, record: Record, until: float) -> Figures:
    """Run a part in a process of its own. Returns its status, and its figures so far."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--part", part.name]
    command += ["--json", str(record.path.resolve()), "--until", repr(until)]
    command += ["--rehearse"] if settings.rehearse else []
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    if settings.rehearse:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    started = time.time()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, process_group=0)
    try:
        code = process.wait(until + GRACE_S - started)
        status = "done" if code == 0 else "failed"
    except subprocess.TimeoutExpired:
        status = "cut"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found: Figures = record.read().get("parts", {}).get(part.name, {})
    return {**found, "status": status, "seconds": round(time.time() - started, 1)}


def commit_here() -> str | None:
    """Return the commit of this checkout, "+" after it if files differ; None without git."""
    try:
        git = ("git", "-C", str(ROOT))
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout else "")


def goals(parts: dict[str, Any]) -> dict[str, Figures]:
    """Return each goal with the best figure that was found for it; `met` is None without one."""
    lines = parts.get("steps", {})
    shares = {
        f"{name}, {how}": found["peak_shares"]["teacher"]
        for name, hows in lines.items()
        if name.startswith("BEiTv2")
        for how, found in hows.items()
        if "peak_shares" in found
    }
    from_jpegs = {
        name: found["share_of_synthetic"]
        for name, found in parts.get("jpegs", {}).get("lines", {}).items()
        if "share_of_synthetic" in found
    }
    found: dict[str, Figures] = {}
    for what, goal, figures in (
        ("teacher, share of the measured peak", TEACHER_GOAL, shares),
        ("from JPEGs, share of the synthetic rate", JPEG_GOAL, from_jpegs),
    ):
        best = max(figures, key=figures.__getitem__, default=None)
        value = None if best is None else figures[best]
        met = None if value is None else value >= goal
        found[what] = {"goal": goal, "found": value, "of": best, "met": met}
    return found


def shortfalls(figures: Figures, of: str = "") -> Iterator[str]:
    """Yield a line for each item that was skipped or failed."""
    for key, value in figures.items():
        if key in ("skipped", "failed") and isinstance(value, str):
            yield f"{of}: {key}, {value}"
        elif isinstance(value, dict):
            yield from shortfalls(value, f"{of}, {key}" if of else key)


def show_end(figures: Figures) -> None:
    """Print how each part ended, and the goals."""
    print("\n== in short")
    for name, part in figures["parts"].items():
        print(f"{name}: {part['status']}, {part.get('seconds', 0):.0f} s")
        for line in shortfalls(part):
            print(f"  {line}")
    for what, goal in figures["goals"].items():
        if goal["met"] is None:
            print(f"{what}: not run; goal at least {goal['goal']:.0%}")
        else:
            met = "met" if goal["met"] else "NOT met"
            print(f"{what}: {goal['found']:.1%} ({goal['of']}); goal {goal['goal']:.0%}: {met}")
    if figures["rehearsal"]:
        print("a rehearsal on the CPU with tiny models: its figures mean nothing")


def check(settings: argparse.Namespace) -> int:
    """Run the parts one after the other. Returns the exit code."""
    started = time.time()
    deadline = started + 60 * settings.minutes - GRACE_S - START_S
    record = Record(settings.json)
    record.write(
        {
            "check": "gpu",
            "rehearsal": settings.rehearse,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "minutes": settings.minutes,
            "machine": {"commit": settings.commit or commit_here()},
            "parts": {},
        }
    )
    for index, part in enumerate(PARTS):
        for_later = sum(later.least_s for later in PARTS[index + 1 :])
        until = min(deadline - for_later, time.time() + part.most_s)
        if settings.rehearse:  # on a loaded machine
            until = deadline
        left = until - time.time()
        print(f"\n== {part.name} (at most {max(left, 0):.0f} s)", flush=True)
        if left < part.least_s and not settings.rehearse:
            reason = f"not enough time: needs {part.least_s:.0f} s"
            print(f"{part.name}: skipped, {reason}")
            record.put({"status": "skipped", "reason": reason}, "parts", part.name)
            continue
        record.put({"status": "running"}, "parts", part.name)
        record.put(run_part(part, settings, record, until), "parts", part.name)
    figures = record.read()
    figures |= {"goals": goals(figures["parts"]), "seconds": round(time.time() - started, 1)}
    record.write(figures)
    show_end(figures)
    print(f"{settings.json}: all figures, after {figures['seconds']:.0f} s")
    return int(any(each["status"] == "failed" for each in figures["parts"].values()))


def be_part(settings: argparse.Namespace) -> int:
    """Be the process of one part. Returns its exit code."""
    part = PartRecord(Record(settings.json), settings.part, settings.until)
    if settings.part == "tests":
        from benchmarks.gpu import device_tests

        device_tests.run(part, settings.rehearse)
        return 0
    import torch

    from benchmarks.gpu import ceilings, jpegs, steps
    from benchmarks.gpu.pairs import sizes_of

    runs = {"ceilings": ceilings.run, "steps": steps.run, "jpegs": jpegs.run}
    device = torch.device("cpu" if settings.rehearse else "cuda")
    runs[settings.part](part, sizes_of(settings.rehearse), device)
    return int(part.num_failed > 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"), metavar="FILE")
    parser.add_argument("--minutes", type=float, default=9.0, help="it ends within so many")
    parser.add_argument("--rehearse", action="store_true", help="all of it on the CPU, tiny")
    parser.add_argument("--commit", help="to record, where the checkout has no git")
    parser.add_argument("--part", choices=[part.name for part in PARTS], help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    settings = parser.parse_args(arguments)
    if settings.part:
        return be_part(settings)
    # Of a time limit around this: the part's process ends too, and its figures are in the file.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if not settings.rehearse:
        import torch

        if not torch.cuda.is_available():
            raise SystemExit("torch sees no GPU here: --rehearse does all of it on the CPU")
    return check(settings)


if __name__ == "__main__":
    sys.exit(main())
