"""Two stages against one, in miniature, as the paper's Table 14 compares them; stopped twice and
moved between numbers of processes on the way.

All 60,000 images of Fashion-MNIST without labels stream over loopback HTTP and are learnt from a
teacher alone; then the tenth with labels (`recipes/miniature/two_stages.yaml`). Beside it, as many
iterations on that tenth alone, with and without the teacher (`one_stage.yaml`), behind the same
teacher (`teacher.yaml`). Recipes and seeds are as they are shipped; nothing here was chosen after a
result.

The first seed's two-stage run is made twice: undisturbed; and with a server that fails (503, resets
and truncations in mid-shard, a stall, a corrupt byte), stopped by a signal in each stage, on one
process, then on two with an empty cache as on another machine, then on one again. Both must end
alike. On the way it says what a resume deep in the stream costs, and how much memory a long stream
takes.

Wants Debian's dataset-fashion-mnist (or --data FOLDER with the four IDX files). Every process has
one thread, beside one that decodes.

    python -m benchmarks.two_stages
    python -m benchmarks.two_stages --seeds 0 1 2 --folder runs/two_stages
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.miniature import Runs, served, session, stream_memory
from benchmarks.timing import finish

_DATA = "/usr/share/datasets/fashion-mnist"
_PER_SHARD = 1000
# Each strikes the first request of a cache; the cache of the second session is new, and the request
# between them is the retry.
_FAULTS = [
    {"path": f"shard-{number:05d}.tar", "on": [1, 3], **how}
    for number, how in {
        3: {"kind": "status", "status": 503},
        11: {"kind": "stall", "after_bytes": 300_000},
        17: {"kind": "corrupt", "after_bytes": 500_000},
        23: {"kind": "status", "status": 503, "retry_after": "1"},
        37: {"kind": "reset", "after_bytes": 600_000},
        41: {"kind": "reset", "after_bytes": 1_000},
        53: {"kind": "truncate", "after_bytes": 700_000},
    }.items()
]


# ---- how runs compare ----------------------------------------------------------------------------


def newest(output: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's newest checkpoint."""
    folder = max((output / "checkpoints").glob("step-*"))
    return {
        f"{file.stem}/{key}": value
        for file in sorted(folder.glob("*.safetensors"))
        for key, value in load_file(file).items()
    }


def compare(one: Path, other: Path) -> dict[str, Any]:
    """How far two runs ended from each other: tensors that differ, and by how much of their largest
    entry.
    """
    tensors, others = newest(one), newest(other)
    assert tensors.keys() == others.keys()
    apart = {
        name: float(
            (tensor.double() - others[name].double()).abs().max()
            / tensor.double().abs().max().clamp(min=1e-12)
        )
        for name, tensor in tensors.items()
        if not torch.equal(tensor, others[name])
    }
    statistics_ = {name: gap for name, gap in apart.items() if "running_" in name}
    return {
        "tensors": len(tensors),
        "statistics_that_differ": len(statistics_),
        "others_that_differ": len(apart) - len(statistics_),
        "largest_difference_of_statistics": max(statistics_.values(), default=0.0),
        "largest_difference_of_others": max(
            (gap for name, gap in apart.items() if name not in statistics_), default=0.0
        ),
    }


def top1(report: dict[str, Any], student: str) -> float:
    return float(report["students"][student]["last"]["top1"])


def rows_of(runs: Runs, seed: int) -> dict[str, float]:
    """Top-1 of every line of the table."""
    two, one, teacher = (runs.report(name, seed) for name in ("two_stages", "one_stage", "teacher"))
    return {
        "teacher": top1(teacher, "resnet20"),
        "two stages, kd": top1(two, "kd"),
        "two stages, kd, after the first": float(two["stages"][0]["models"]["kd"]["top1"]),
        "one stage, kd": top1(one, "kd"),
        "one stage, alone": top1(one, "alone"),
    }


def table(by_seed: Sequence[dict[str, float]], iterations: int) -> str:
    """Markdown."""
    stages = {
        "two stages, kd": f"{iterations} + {iterations}",
        "two stages, kd, after the first": f"{iterations} + 0",
        "one stage, kd": f"0 + {2 * iterations}",
        "one stage, alone": f"0 + {2 * iterations}",
        "teacher": "",
    }
    lines = ["| | iterations without + with labels | top-1 % | by seed |", "|---|---|---|---|"]
    for name, spent in stages.items():
        values = [row[name] for row in by_seed]
        spread = f" (deviation {statistics.stdev(values):.2f})" if len(values) > 1 else ""
        each = ", ".join(f"{value:.2f}" for value in values)
        lines.append(f"| {name} | {spent} | {statistics.mean(values):.2f}{spread} | {each} |")
    return "\n".join(lines)


# ---- the whole -----------------------------------------------------------------------------------


def disturbed_run(runs: Runs, seed: int, shards: Path) -> dict[str, Any]:
    """The two-stage run in three sessions, of 1, 2 and 1 processes; the second and third have a
    cache of their own.
    """
    third = runs.iterations // 3
    caches = [runs.folder / "cache-first", runs.folder / "cache-second"]
    plan = ((third, 1, caches[0]), (runs.iterations + third, 2, caches[1]), (10**9, 1, caches[1]))
    with served(shards, _FAULTS) as server:
        sessions = [
            session(runs, "disturbed", seed, server, cache, until_step=until, processes=processes)
            for until, processes, cache in plan
        ]
        requests, size = server.shard_counts()
    return {
        "sessions": sessions,
        "requests": sum(requests.values()),
        "bytes": size,
        "compared": compare(runs.output("disturbed", seed), runs.output("two_stages", seed)),
        "top1": [top1(runs.report(name, seed), "kd") for name in ("disturbed", "two_stages")],
    }


def show_disturbed(disturbed: dict[str, Any]) -> None:
    """What each start cost, and how the run ended."""
    for each in disturbed["sessions"]:
        start = each["start"]
        print(
            f"{each['processes']} process(es), going on after step {start['step']}:"
            f" {start['seconds']:.1f} s from the command to the end of its first step,"
            f" {start['shards']} requests for shards and {start['bytes'] / 1e6:.1f} MB by then"
        )
    print(
        f"in all {disturbed['requests']} requests and {disturbed['bytes'] / 1e6:.1f} MB, into two"
        " caches"
    )
    print(
        f"disturbed against undisturbed: {disturbed['compared']}, top-1 {disturbed['top1']}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """1 when the disturbed run does not end as the undisturbed one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--folder",
        type=Path,
        help="where runs, logs and shards go, and stay; default: a temporary one",
    )
    parser.add_argument("--data", default=_DATA, help="the folder of the four IDX files")
    parser.add_argument(
        "--iterations", type=int, default=936, help="of each stage; the recipes say 936"
    )
    parser.add_argument("--teacher-epochs", type=int, default=16, help="the recipe says 16")
    parser.add_argument(
        "--memory-epochs", type=int, default=4, help="of the stream, for the memory that it takes"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures to this file too"
    )
    settings = parser.parse_args(arguments)
    if not Path(settings.data).is_dir():
        raise SystemExit(
            f"{settings.data} is not there: apt-get install dataset-fashion-mnist, or give --data"
            " FOLDER"
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = (settings.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        figures = measure(settings, Runs(folder, settings))
    finish("two_stages", settings, torch.device("cpu"), figures)
    alike = figures["disturbed"]["compared"]
    return int(alike["others_that_differ"] > 0 or alike["largest_difference_of_statistics"] > 1e-4)


def measure(settings: argparse.Namespace, runs: Runs) -> dict[str, Any]:
    """Every run; prints as it goes."""
    shards = runs.folder / "shards"
    source = runs.folder / "source.yaml"
    source.write_text(
        f"extends: miniature/teacher\ndata: {{train: {{path: {json.dumps(settings.data)}}}}}\n"
    )
    cut = [
        "data",
        "shard",
        f"{source}:data.train",
        str(shards),
        "--unlabelled",
        "--samples-per-shard",
        str(_PER_SHARD),
    ]
    code = runs.start(cut, runs.folder / "shards.log").wait()
    if code != 0:
        raise SystemExit(f"distill data shard: exit code {code}: see {runs.folder / 'shards.log'}")
    files = list(shards.glob("*.tar"))
    total = sum(file.stat().st_size for file in files)
    print(f"{len(files)} shards of {_PER_SHARD} images without labels, {total / 1e6:.1f} MB")

    by_seed, seconds = [], []
    disturbed: dict[str, Any] = {}
    for seed in settings.seeds:
        runs.complete("teacher", "teacher", seed)
        with served(shards) as server:
            cache = runs.folder / f"cache-{seed}"
            stream = [
                f"stages.unlabelled.data.train.path={server.url}",
                f"data.shards.cache={cache}",
            ]
            runs.complete("two_stages", "two_stages", seed, *stream)
            requests, size = server.shard_counts()
        print(
            f"seed {seed}: {sum(requests.values())} requests for shards, {size / 1e6:.1f} MB",
            flush=True,
        )
        runs.complete("one_stage", "one_stage", seed)
        by_seed.append(rows_of(runs, seed))
        seconds.append(
            {
                name: runs.report(name, seed)["seconds"]
                for name in ("teacher", "two_stages", "one_stage")
            }
        )
        print(f"seed {seed}: {by_seed[-1]}; seconds of training {seconds[-1]}", flush=True)
        if not disturbed:
            disturbed = disturbed_run(runs, seed, shards)
            show_disturbed(disturbed)
    print(table(by_seed, runs.iterations))
    with served(shards) as server:
        resident = stream_memory(
            server.url, runs.folder / "cache-memory", settings.data, settings.memory_epochs
        )
    print(f"resident MiB over {settings.memory_epochs} epochs of the stream: {resident}")
    return {
        "by_seed": by_seed,
        "seconds": seconds,
        "shards_bytes": total,
        "disturbed": disturbed,
        "resident_mib": resident,
    }


if __name__ == "__main__":
    sys.exit(main())
