"""images/s of our stream against plain `datasets` streaming and against `webdataset`, on the same tars; time to go on after a stop; memory.

Every contestant decodes, augments and batches alike (`benchmarks.streams`), in a process of its own, and they take turns. A round is two epochs of
a stream that is opened afresh: ours and webdataset's cache begin empty, so that the first epoch fetches; in the second
both read what they kept, and the others fetch again. From disk all read what the kernel has in memory.

Peers: (a) `datasets.load_dataset("webdataset", streaming=True).shuffle(buffer)` behind Accelerate's prepared DataLoader; (b) `webdataset`
behind its WebLoader, without and with `cache_dir`. They are no dependencies of ours. Beside the project they go into a folder:

    uv pip install --target PEERS --no-deps webdataset braceexpand; uv pip install --target PEERS aiohttp requests
    OMP_NUM_THREADS=1 PYTHONPATH=PEERS python -m benchmarks.streaming
    OMP_NUM_THREADS=1 PYTHONPATH=PEERS python -m benchmarks.streaming --images png --places http --workers 0 --rounds 15
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from benchmarks.shards import KINDS, ShardSet, served, write_shards
from benchmarks.streams import NAMES, WAYS, Task
from benchmarks.timing import CLOCKS, common_arguments, finish, interleaved, median, ratio, show
from benchmarks.trees import sampled_bytes

PLACES = ("http", "disk")
_ROOT = Path(__file__).resolve().parents[1]
_NEEDS = {
    "ours": (),
    "datasets": ("aiohttp", "requests"),
    "webdataset": ("webdataset",),
    "webdataset_cached": ("webdataset",),
}
_MIB = 2**20


# ---- contestants -----------------------------------------------------------------------------------------------------


def present(places: Sequence[str]) -> list[str]:
    """The contestants that can run here; says what the others lack."""
    names = []
    for name in NAMES:
        lacking = [package for package in _NEEDS[name] if importlib.util.find_spec(package) is None]
        if name == "datasets" and "http" not in places:
            lacking = []
        if name.startswith("webdataset") and "http" in places and shutil.which("curl") is None:
            lacking.append("curl (the program)")
        if lacking:
            print(
                f"{name} is left out, for want of {', '.join(lacking)}: `uv pip install --target PEERS {' '.join(_NEEDS[name])}`, "
                "then run with PYTHONPATH=PEERS"
            )
        else:
            names.append(name)
    return names


class Contestant:
    """A contestant's process."""

    def __init__(self, name: str, home: Path) -> None:
        environment = {**os.environ, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.streams", name],
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    @property
    def pid(self) -> int:
        return self._process.pid

    def __call__(self, act: str, task: Task, **how: Any) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"act": act, "task": asdict(task), **how}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} has ended with status {self._process.wait()}: see above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


# ---- speed -----------------------------------------------------------------------------------------------------------


def measure_speed(
    contestants: Mapping[str, Contestant], task: Task, place: str, num_rounds: int, clock: str
) -> dict[str, Any]:
    """Interleave two epochs of each; print a line an epoch, and return the figures."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}

    def round_of(name: str) -> float:
        shutil.rmtree(task.cache, ignore_errors=True)
        found[name].append(contestants[name]("epochs", task, num_epochs=2))
        return 0.0

    interleaved({name: partial(round_of, name) for name in contestants}, num_rounds)
    shutil.rmtree(task.cache, ignore_errors=True)
    figures: dict[str, Any] = {"first_batch_s": {}}
    for number, label in enumerate(("first", "second")):
        rate = {name: [r["images"][number] / r[f"{clock}_s"][number] for r in rounds] for name, rounds in found.items()}
        speed = {name: median(values) for name, values in rate.items()}
        peers = [name for name in rate if name != "ours"]
        fastest = max(peers, key=lambda name: speed[name].median, default=None)
        against = ratio(rate["ours"], rate[fastest]) if fastest else None
        cells = "".join(f"{speed[name].median:>11.1f}" if name in speed else f"{'-':>11}" for name in NAMES)
        kind = "jpeg" if task.extension == "jpg" else "png"
        print(
            f"{kind:6}{place:6}{task.num_workers:>3}  {label:7}{cells}  "
            + (f"{show(against)} of {fastest}" if against else ""),
            flush=True,
        )
        figures[label] = {
            "images_per_s": {name: spread._asdict() for name, spread in speed.items()},
            "fastest": fastest,
            "ratio": against._asdict() if against else None,
        }
    figures["first_batch_s"] = {
        name: median([r["first_batch_s"] for r in rounds])._asdict() for name, rounds in found.items()
    }
    figures["rounds"] = found
    return figures


# ---- going on after a stop -------------------------------------------------------------------------------------------


def measure_resume(contestants: Mapping[str, Contestant], task: Task, num_rounds: int) -> dict[str, Any]:
    """Stop in the middle of an epoch and go on in another process, which reads by itself; print a line a way, and return the figures.

    Ours goes on with the shards that it has in its cache, and on another machine, with none.
    """
    num_batches = task.steps_per_epoch // 2
    print(f"going on after {num_batches} of {task.steps_per_epoch} batches, by the process that reads")
    print(f"{'':32}{'seconds to the first batch':>28}{'lost':>8}{'twice':>8}  the order")
    figures: dict[str, Any] = {}
    for name, contestant in contestants.items():
        shutil.rmtree(task.cache, ignore_errors=True)
        stopped = contestant("stop", task, num_batches=num_batches)
        whole = contestant("stop", task, num_batches=task.steps_per_epoch)["labels"]
        for way, keeps in _ways(name):
            seconds, rest = [], []
            for _ in range(num_rounds):
                if not keeps:
                    shutil.rmtree(task.cache, ignore_errors=True)
                state = stopped["state"] if way == "state_dict" else None
                answer = contestant("resume", task, stopped=[num_batches, way, state])
                seconds.append(answer["seconds"])
                rest = answer["labels"]
            told = stopped["labels"] + rest
            lost, twice = len(set(whole) - set(told)), len(told) - len(set(told))
            same = told == whole
            label = f"{name}, {way}" + ("" if not _caches(name) else ", cache kept" if keeps else ", cache empty")
            spread = median(seconds)
            print(
                f"{label:32}{show(spread, 2):>28}{lost:>8}{twice:>8}  {'as without' if same else 'another'}", flush=True
            )
            figures[label] = {"seconds": spread._asdict(), "lost": lost, "twice": twice, "same_order": same}
        shutil.rmtree(task.cache, ignore_errors=True)
    return {"num_batches": num_batches, "ways": figures}


def _caches(name: str) -> bool:
    return name in ("ours", "webdataset_cached")


def _ways(name: str) -> Iterator[tuple[str, bool]]:
    for way in WAYS[name]:
        yield from ((way, keeps) for keeps in ((True, False) if _caches(name) else (False,)))


# ---- memory ----------------------------------------------------------------------------------------------------------


def measure_memory(contestants: Mapping[str, Contestant], task: Task) -> dict[str, Any]:
    """Two epochs of each, under no clock; print and return the figures."""
    figures = {}
    for name, contestant in contestants.items():
        shutil.rmtree(task.cache, ignore_errors=True)
        with sampled_bytes(contestant.pid) as samples:
            contestant("epochs", task, num_epochs=2)
        shutil.rmtree(task.cache, ignore_errors=True)
        figures[name] = {"before_bytes": samples[0], "peak_bytes": max(samples)}
    cells = "".join(
        f"{(figures[n]['peak_bytes'] - figures[n]['before_bytes']) / _MIB:>11.0f}" if n in figures else f"{'-':>11}"
        for n in NAMES
    )
    print(f"{'peak memory, MiB, above that of the imports':28}"[:24] + cells, flush=True)
    return figures


# ---- all of it -------------------------------------------------------------------------------------------------------


def task_of(settings: argparse.Namespace, shards: ShardSet, place: str, cache: Path, num_workers: int) -> Task:
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


def measure(settings: argparse.Namespace, root: Path) -> None:
    """Every row: images, place, workers. Then resumption and memory."""
    names = present(settings.places)
    figures: dict[str, Any] = {"contestants": names, "shards": {}, "speed": {}, "resume": {}, "memory": {}}
    with ExitStack() as stack:
        every = {name: stack.enter_context(Contestant(name, root / "hub")) for name in names}
        from_disk = {name: contestant for name, contestant in every.items() if name != "webdataset_cached"}
        running = {"http": every, "disk": from_disk}
        sets = {}
        for kind in settings.images:
            num_samples = settings.samples if kind == "jpeg" else settings.samples * settings.small_times
            sets[kind] = write_shards(root / kind, kind, num_samples, settings.shards)
            made = sets[kind]
            print(
                f"{kind}: {num_samples} of {made.mean_bytes / 1e3:.1f} kB from {made.made_of}, in {len(made.names)} tars"
            )
            figures["shards"][kind] = {
                "num_samples": num_samples,
                "mean_bytes": made.mean_bytes,
                "made_of": made.made_of,
            }
        url = stack.enter_context(served(root))
        print(f"batches of {settings.batch_size}, peers' buffer {settings.buffer}, {settings.rounds} rounds; images/s")
        print(
            f"{'':6}{'':6}{'w':>3}  {'epoch':7}"
            + "".join(f"{n.replace('webdataset_', 'wds_'):>11}" for n in NAMES)
            + "  ours / fastest peer"
        )
        for kind, made in sets.items():
            for place in settings.places:
                where = str(made.folder) if place == "disk" else f"{url}/{kind}"
                for num_workers in settings.workers:
                    task = task_of(settings, made, where, root / "cache", num_workers)
                    row = f"{kind} {place} {num_workers}"
                    figures["speed"][row] = measure_speed(running[place], task, place, settings.rounds, settings.clock)
                    if not settings.speed_only:
                        figures["memory"][row] = measure_memory(running[place], task)
        if "jpeg" in sets and not settings.speed_only:
            for place in settings.places:
                made = sets["jpeg"]
                where = str(made.folder) if place == "disk" else f"{url}/jpeg"
                task = task_of(settings, made, where, root / "cache", 0)
                figures["resume"][place] = measure_resume(running[place], task, min(settings.rounds, 3))
    finish("streaming", settings, torch.device("cpu"), figures)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--places", nargs="+", choices=PLACES, default=list(PLACES))
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, 2], help="decoding processes, each number in turn"
    )
    parser.add_argument("--samples", type=int, default=2560, help="JPEGs, all different")
    parser.add_argument("--small-times", type=int, default=8, help="PNGs for each JPEG")
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=224, help="of the JPEGs' views")
    parser.add_argument("--buffer", type=int, default=1000, help="samples that the peers shuffle among")
    parser.add_argument("--speed-only", action="store_true", help="neither memory nor going on after a stop")
    parser.add_argument("--quick", action="store_true", help="too small to mean anything: does it run?")
    parser.add_argument("--device", choices=("cpu",), default="cpu", help=argparse.SUPPRESS)
    parser.add_argument(
        "--clock", choices=tuple(CLOCKS), default="wall", help="cpu: of all processes, for a CPU that others share"
    )
    common_arguments(parser, rounds=5)
    settings = parser.parse_args(arguments)
    if settings.quick:
        small = {
            "samples": 64,
            "small_times": 2,
            "shards": 4,
            "batch_size": 8,
            "image_size": 32,
            "buffer": 10,
            "rounds": 1,
        }
        vars(settings).update(small)
    with tempfile.TemporaryDirectory() as folder:
        measure(settings, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
