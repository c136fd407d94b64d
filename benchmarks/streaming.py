"""images/s of our stream against plain `datasets` streaming and against `webdataset`, on the same
tars; time to resume after a stop; memory.

Every contestant decodes, augments and batches alike (`benchmarks.streams`), in a process of its
own, and they take turns. A round is two epochs of a newly opened stream: ours and
webdataset's cache begin empty, so that the first epoch fetches; in the second both read what they
kept, and the others fetch again. From disk all read what the kernel has in memory.

Peers: (a) `datasets.load_dataset("webdataset", streaming=True).shuffle(buffer)` behind Accelerate's
prepared DataLoader; (b) `webdataset` behind its WebLoader, without and with `cache_dir`. They are
no dependencies of ours: `pip install -e '.[bench]'` brings them, or, beside the project and leaving
its environment as it is tested, a folder:

    uv pip install --target PEERS --no-deps webdataset braceexpand
    uv pip install --target PEERS aiohttp requests
    OMP_NUM_THREADS=1 PYTHONPATH=PEERS python -m benchmarks.streaming
    OMP_NUM_THREADS=1 PYTHONPATH=PEERS python -m benchmarks.streaming --images png --places http \\
        --workers 0 --rounds 15
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants import PLACES, Contestant, taking_part
from benchmarks.shards import KINDS, ShardSet, served, write_shards
from benchmarks.streams import NAMES, WAYS, Task
from benchmarks.timing import CLOCKS, common_arguments, finish, interleaved, median, ratio, show
from benchmarks.trees import sampled_bytes

_MIB = 2**20
_QUICK = {
    "samples": 64,
    "small_times": 2,
    "shards": 4,
    "batch_size": 8,
    "image_size": 32,
    "buffer": 10,
    "rounds": 1,
}

Contestants = Mapping[str, Contestant]


# ---- speed ---------------------------------------------------------------------------------------


def print_row(label: str, values: Mapping[str, float], digits: int, remark: str = "") -> None:
    cells = "".join(
        f"{values[name]:>11.{digits}f}" if name in values else f"{'-':>11}" for name in NAMES
    )
    print(f"{label:32}{cells}  {remark}".rstrip(), flush=True)


def measure_speed(
    contestants: Contestants, task: Task, settings: argparse.Namespace, row: str
) -> dict[str, Any]:
    """Interleave two epochs of each; print, and return the figures."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}

    def round_of(name: str) -> float:
        shutil.rmtree(task.cache, ignore_errors=True)
        found[name].append(contestants[name]("epochs", task, num_epochs=2))
        return 0.0  # an epoch's time is in the answer

    interleaved({name: partial(round_of, name) for name in contestants}, settings.rounds)
    shutil.rmtree(task.cache, ignore_errors=True)
    figures: dict[str, Any] = {}
    for number, label in enumerate(("first", "second")):
        rates = {
            name: [
                answer["images"][number] / answer[f"{settings.clock}_s"][number]
                for answer in answers
            ]
            for name, answers in found.items()
        }
        speed = {name: median(values) for name, values in rates.items()}
        fastest = max(
            (name for name in rates if name != "ours"),
            key=lambda name: speed[name].median,
            default=None,
        )
        against = ratio(rates["ours"], rates[fastest]) if fastest else None
        print_row(
            f"{row}, {label} epoch",
            {name: spread.median for name, spread in speed.items()},
            1,
            f"{show(against)} of {fastest}" if against else "",
        )
        figures[label] = {
            "images_per_s": {name: spread._asdict() for name, spread in speed.items()},
            "fastest": fastest,
            "ratio": against._asdict() if against else None,
        }
    firsts = {
        name: median([answer["first_batch_s"] for answer in answers])
        for name, answers in found.items()
    }
    print_row("    first batch, s", {name: spread.median for name, spread in firsts.items()}, 2)
    return {
        **figures,
        "first_batch_s": {n: s._asdict() for n, s in firsts.items()},
        "rounds": found,
    }


# ---- going on after a stop -----------------------------------------------------------------------


def measure_resume(contestants: Contestants, task: Task, num_rounds: int) -> dict[str, Any]:
    """Stop in the middle of an epoch and resume in another process, which reads by itself; print,
    and return the figures.

    Ours resumes with the shards that it has in its cache, and on another machine, with none.
    """
    num_batches = task.steps_per_epoch // 2
    print(f"{'':40}{'s to the first batch':>24}{'lost':>8}{'twice':>8}  order of the rest")
    figures: dict[str, Any] = {}
    for name, contestant in contestants.items():
        shutil.rmtree(task.cache, ignore_errors=True)
        stopped = contestant("stop", task, num_batches=num_batches)
        whole = contestant("stop", task, num_batches=task.steps_per_epoch)["labels"]
        for way, cache in _ways(name):
            seconds: list[float] = []
            received: list[int] = []
            for _ in range(num_rounds):
                if cache == "empty":
                    shutil.rmtree(task.cache, ignore_errors=True)
                state = stopped["state"] if way == "state_dict" else None
                answer = contestant("resume", task, stopped=[num_batches, way, state])
                seconds.append(answer["seconds"])
                received = stopped["labels"] + answer["labels"]
            lost, twice = len(set(whole) - set(received)), len(received) - len(set(received))
            label = f"{name}, {way}" + (f", cache {cache}" if cache else "")
            spread = median(seconds)
            same, none = received == whole, len(received) == len(stopped["labels"])
            print(
                f"{label:40}{show(spread, 2):>24}{lost:>8}{twice:>8} "
                f" {'the same' if same else 'no batch came' if none else 'another'}",
                flush=True,
            )
            figures[label] = {
                "seconds": spread._asdict(),
                "lost": lost,
                "twice": twice,
                "same_order": same,
            }
        shutil.rmtree(task.cache, ignore_errors=True)
    return {"num_batches": num_batches, "ways": figures}


def _ways(name: str) -> Iterator[tuple[str, str]]:
    caches = ("kept", "empty") if name in ("ours", "webdataset_cached") else ("",)
    yield from ((way, cache) for way in WAYS[name] for cache in caches)


# ---- memory --------------------------------------------------------------------------------------


def measure_memory(contestants: Contestants, task: Task) -> dict[str, Any]:
    """Two epochs of each, under no clock; print and return the figures."""
    figures = {}
    for name, contestant in contestants.items():
        shutil.rmtree(task.cache, ignore_errors=True)
        with sampled_bytes(contestant.pid) as samples:
            contestant("epochs", task, num_epochs=2)
        figures[name] = {"before_bytes": samples[0], "peak_bytes": max(samples)}
    shutil.rmtree(task.cache, ignore_errors=True)
    above = {
        name: (found["peak_bytes"] - found["before_bytes"]) / _MIB
        for name, found in figures.items()
    }
    print_row("    peak memory, MiB", above, 0, "beyond the imports")
    return figures


# ---- all of it -----------------------------------------------------------------------------------


def task_of(
    settings: argparse.Namespace, shards: ShardSet, place: str, cache: Path, num_workers: int
) -> Task:
    return Task(
        place=place,
        names=shards.names,
        num_samples=shards.num_samples,
        num_classes=shards.num_classes,
        extension=shards.extension,
        classes=str(shards.folder / "classes.txt"),
        cache=str(cache),
        image_size=28 if shards.extension == "png" else settings.image_size,
        batch_size=settings.batch_size,
        num_workers=num_workers,
        buffer=settings.buffer,
    )


def make_shards(settings: argparse.Namespace, root: Path) -> dict[str, ShardSet]:
    """kind -> its shards; says what they are."""
    sets = {}
    for kind in settings.images:
        num_samples = (
            settings.samples if kind == "jpeg" else settings.samples * settings.small_times
        )
        sets[kind] = made = write_shards(root / kind, kind, num_samples, settings.shards)
        print(
            f"{kind}: {num_samples} of {made.mean_bytes / 1e3:.1f} kB from {made.made_of}, in"
            f" {len(made.names)} tars"
        )
    return sets


def measure(settings: argparse.Namespace, root: Path) -> None:
    """Every row: images, place, workers. Then how each resumes after a stop."""
    part = taking_part(settings.places)
    figures: dict[str, Any] = {
        "contestants": part,
        "shards": {},
        "speed": {},
        "resume": {},
        "memory": {},
    }
    with ExitStack() as stack:
        every = [name for name in NAMES if any(name in names for names in part.values())]
        processes = {name: stack.enter_context(Contestant(name, root / "hub")) for name in every}
        sets = make_shards(settings, root)
        url = stack.enter_context(served(root))
        for contestant in processes.values():
            contestant.ready()
        print(
            f"images/s, {settings.clock} clock; batches of {settings.batch_size}, peers' buffer"
            f" {settings.buffer}, {settings.rounds} rounds"
        )
        print(
            f"{'':32}"
            + "".join(f"{name.replace('webdataset_', 'wds_'):>11}" for name in NAMES)
            + "  ours / fastest peer"
        )
        for kind, made in sets.items():
            figures["shards"][kind] = {
                "num_samples": made.num_samples,
                "mean_bytes": made.mean_bytes,
                "made_of": made.made_of,
            }
            for place, names in part.items():
                running = {name: processes[name] for name in names}
                where = str(made.folder) if place == "disk" else f"{url}/{kind}"
                for num_workers in settings.workers:
                    row = f"{kind} {place} {num_workers}"
                    task = task_of(settings, made, where, root / "cache", num_workers)
                    figures["speed"][row] = measure_speed(running, task, settings, row)
                    if not settings.speed_only:
                        figures["memory"][row] = measure_memory(running, task)
        for place, names in part.items() if "jpeg" in sets and not settings.speed_only else ():
            made = sets["jpeg"]
            where = str(made.folder) if place == "disk" else f"{url}/jpeg"
            task = task_of(settings, made, where, root / "cache", 0)
            print(
                f"going on after {task.steps_per_epoch // 2} of {task.steps_per_epoch} batches,"
                f" {place}"
            )
            running = {name: processes[name] for name in names}
            figures["resume"][place] = measure_resume(running, task, settings.rounds)
    finish("streaming", settings, torch.device("cpu"), figures)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--places", nargs="+", choices=PLACES, default=list(PLACES))
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, 2], help="decoding processes, each in turn"
    )
    parser.add_argument("--samples", type=int, default=2560, help="JPEGs, all different")
    parser.add_argument("--small-times", type=int, default=8, help="PNGs for each JPEG")
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=224, help="of the JPEGs' views")
    parser.add_argument(
        "--buffer", type=int, default=1000, help="samples that the peers shuffle among"
    )
    parser.add_argument(
        "--speed-only", action="store_true", help="neither memory nor going on after a stop"
    )
    parser.add_argument(
        "--quick", action="store_true", help="too small to mean anything: does it run?"
    )
    parser.add_argument("--device", choices=("cpu",), default="cpu", help=argparse.SUPPRESS)
    parser.add_argument(
        "--clock",
        choices=tuple(CLOCKS),
        default="wall",
        help="cpu: of all processes, for a CPU that others share",
    )
    common_arguments(parser, rounds=5)
    settings = parser.parse_args(arguments)
    if settings.quick:
        vars(settings).update(_QUICK)
    with tempfile.TemporaryDirectory() as folder:
        measure(settings, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
