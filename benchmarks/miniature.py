"""Runs of the miniature (recipes/miniature): started as a person would, behind a server that fails,
stopped by signals; and the memory of its stream.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.runs import engine_on
from distill.data.order.lanes import LaneOrder
from distill.recipe import load_recipe
from distill.training.build import train_loader
from distill.training.plan import make_plan
from distill.training.share import share_of_process

_ROOT = Path(__file__).resolve().parents[1]
_TWO_PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
_MIB = 2**20


class Server:
    """The server of the tests, a process of its own. `counts`: requests and body bytes by path."""

    def __init__(self, folder: Path, faults: Sequence[dict[str, Any]] = ()) -> None:
        command = [
            sys.executable,
            str(_ROOT / "tests" / "servers.py"),
            str(folder),
            "--faults",
            json.dumps(faults),
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.url = self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()

    def shard_counts(self) -> tuple[dict[str, int], int]:
        """Requests by shard, and bytes of them all."""
        with urllib.request.urlopen(f"{self.url}/.server/counts", timeout=30) as answer:
            counts = json.load(answer)
        requests = {
            path: count for path, count in counts["requests"].items() if path.endswith(".tar")
        }
        return requests, sum(
            size for path, size in counts["bytes_served"].items() if path.endswith(".tar")
        )


@contextmanager
def served(folder: Path, faults: Sequence[dict[str, Any]] = ()) -> Iterator[Server]:
    """A server over a folder, with faults."""
    server = Server(folder, faults)
    try:
        yield server
    finally:
        server.close()


# ---- runs ----------------------------------------------------------------------------------------


class Runs:
    """Starts `distill` as a person would: one command a run, its output in a log beside the run."""

    def __init__(self, folder: Path, settings: argparse.Namespace) -> None:
        self.folder, self.iterations = folder, settings.iterations
        self._paths = [f"data.{part}.path={settings.data}" for part in ("train", "eval")]
        self._teacher_budget = f"train.budget={settings.teacher_epochs} epochs"

    def output(self, name: str, seed: int) -> Path:
        return self.folder / f"{name}-{seed}"

    def command(self, name: str, recipe: str, seed: int, *overrides: str) -> list[str]:
        """The arguments of `distill train` for a run."""
        half = self.iterations // 2
        budgets = {
            "teacher": [self._teacher_budget],
            "one_stage": [
                f"train.budget={2 * self.iterations} iterations",
                f"evaluate.every={half} iterations",
            ],
            "two_stages": [
                *(
                    f"stages.{stage}.budget={self.iterations} iterations"
                    for stage in ("unlabelled", "labelled")
                ),
                f"evaluate.every={half} iterations",
            ],
        }
        teacher = [] if recipe == "teacher" else [f"teacher.weights={self.output('teacher', seed)}"]
        return [
            "train",
            f"miniature/{recipe}",
            f"seed={seed}",
            f"output={self.output(name, seed)}",
            *self._paths,
            *budgets[recipe],
            *teacher,
            *overrides,
        ]

    def start(
        self, command: Sequence[str], log: Path, launcher: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        with log.open("a") as file:
            return subprocess.Popen(
                [sys.executable, *launcher, "-m", "distill", *command],
                env=environment,
                stdout=file,
                stderr=file,
            )

    def complete(self, name: str, recipe: str, seed: int, *overrides: str) -> None:
        """A run from start to end, which nothing disturbs."""
        log = self.folder / f"{name}-{seed}.log"
        code = self.start(self.command(name, recipe, seed, *overrides), log).wait()
        if code != 0:
            raise SystemExit(f"{recipe}: exit code {code}: see {log}")

    def report(self, name: str, seed: int) -> dict[str, Any]:
        """What a run wrote at its end."""
        return dict(json.loads((self.output(name, seed) / "report.json").read_text()))


def trained(output: Path, after: float) -> list[dict[str, Any]]:
    """The records of training steps that a run wrote after a moment."""
    file = output / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return [record for record in records if record["event"] == "train" and record["time"] > after]


def session(
    runs: Runs,
    name: str,
    seed: int,
    server: Server,
    cache: Path,
    *,
    until_step: int,
    processes: int,
) -> dict[str, Any]:
    """Train until a step, then send SIGTERM; or to the end, where no step comes so late. What the
    start cost.
    """
    before_requests, before_bytes = server.shard_counts()
    command = runs.command(
        name,
        "two_stages",
        seed,
        f"stages.unlabelled.data.train.path={server.url}",
        f"data.shards.cache={cache}",
        "data.shards.timeout_s=3",
        "log.every=1 iterations",
    )
    begun = time.time()
    process = runs.start(
        command, runs.folder / f"{name}-{seed}.log", _TWO_PROCESSES if processes == 2 else ()
    )
    output, first = runs.output(name, seed), None
    while process.poll() is None:
        records = trained(output, begun)
        if records and first is None:
            requests, size = server.shard_counts()
            first = {
                "step": records[0]["step"] - 1,
                "seconds": records[0]["time"] - begun,
                "shards": sum(requests.values()) - sum(before_requests.values()),
                "bytes": size - before_bytes,
            }
        if records and records[-1]["step"] >= until_step:
            # torchrun hands SIGTERM on to its processes.
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.05)
    code = process.wait()
    stopped = until_step <= 2 * runs.iterations
    # A launcher's exit code is its own.
    if code == 0 if stopped else code != 0:
        raise SystemExit(f"{name}: exit code {code}: see {runs.folder / f'{name}-{seed}.log'}")
    return {"processes": processes, "start": first}


# ---- memory --------------------------------------------------------------------------------------


def stream_memory(url: str, folder: Path, data: str, num_epochs: int) -> list[float]:
    """Resident MiB of a process that streams and decodes by itself, after each quarter of an epoch.
    In a process of its own.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_stream, url, folder, data, num_epochs).result()


def _stream(url: str, folder: Path, data: str, num_epochs: int) -> list[float]:
    torch.set_num_threads(1)
    recipe = load_recipe(
        "miniature/two_stages",
        [
            f"stages.unlabelled.data.train.path={url}",
            f"stages.unlabelled.budget={num_epochs} epochs",
            "data.num_workers=0",
            f"data.train.path={data}",
            f"data.eval.path={data}",
            f"data.shards.cache={folder}",
        ],
    )
    with engine_on("cpu", precision="fp32", compile=False) as engine:
        plan = make_plan(recipe)
        stage = plan.stages[0]
        assert isinstance(stage.order, LaneOrder)
        share = share_of_process(recipe.train.batch_size_global, recipe.train.micro_batch_size, 1)
        every, resident = stage.order.steps_per_epoch // 4 * share.num_forwards, []
        with train_loader(plan, stage, share, engine, 0) as loader:
            for number, _ in enumerate(loader, 1):
                if number % every == 0:
                    pages = int(Path("/proc/self/statm").read_text().split()[1])
                    resident.append(round(pages * os.sysconf("SC_PAGE_SIZE") / _MIB, 1))
    return resident
