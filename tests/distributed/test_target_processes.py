"""A store is the same bytes however many processes write it and whenever they are killed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from ports import free_ports
from tiny import write_recipe

from distill.recipe import load_recipe
from distill.training.write_targets import write_targets

KILLS = 8
CHANGES = {
    "students": {"kd": {"objective": {"soft": {"loss": "kl"}}}},
    "data": {"mixing": {"mixup": 0.2, "cutmix": 1.0, "group_size": 8}},
    "train": {"budget": "40 epochs"},
}


def start(recipe: Path, store: Path, num_processes: int) -> subprocess.Popen[bytes]:
    """Start `distill targets` in a process group of its own."""
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={num_processes}"]
    launcher += ["--master-addr=127.0.0.1", f"--master-port={free_ports(1)[0]}"]
    command = ["-m", "distill", "targets", str(recipe), f"targets={store}", "--keep=3"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *(launcher if num_processes > 1 else []), *command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def shards(store: Path) -> list[Path]:
    return sorted(store.glob("epoch-*"))


def test_killed_writers_leave_the_same_store(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, CHANGES)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert write_targets(load_recipe(recipe, [f"targets={whole}"]), keep=3) == 0
    draw, num_killed = random.Random(0), 0
    for kill in range(KILLS):
        process = start(recipe, killed, 1 + kill % 2)
        # After the first new shard or soon after it, so that some work is done between kills.
        before = len(shards(killed))
        while len(shards(killed)) == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.15))
        num_killed += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(1)  # the ranks end with their launcher, and with them the lock
        for path in shards(killed):  # what is there is complete
            assert path.read_bytes() == (whole / path.name).read_bytes()
    assert num_killed >= KILLS // 2
    assert start(recipe, killed, 2).wait() == 0
    one, other = (
        {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}
        for folder in (whole, killed)
    )
    assert one == other
    assert len(one) == 41
