"""One launch of `driver.py` for many commands of two processes, and how far apart two
runs ended.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ports import free_ports
from tiny import tensors

from distill.recipe import load_recipe
from distill.training.build import build_models
from distill.training.plan import make_plan

TIMEOUT_S = 900


class Launch:
    """Commands for several processes, started together, and what they came to."""

    def __init__(self, folder: Path, num_processes: int = 2) -> None:
        self.folder, self.num_processes = folder, num_processes
        self._commands: list[dict[str, Any]] = []

    def add(
        self, name: str, recipe: Path, stop_rank: int | None = None, stop_step: int | None = None
    ) -> None:
        command = {
            "name": name,
            "arguments": ["train", str(recipe)],
            "stop_rank": stop_rank,
            "stop_step": stop_step,
        }
        self._commands.append(command)

    def command(self, name: str, *arguments: object) -> None:
        """Have both ranks run `distill` with these arguments."""
        self._commands.append(
            {
                "name": name,
                "arguments": list(map(str, arguments)),
                "stop_rank": None,
                "stop_step": None,
            }
        )

    def call(self, function: str) -> None:
        """Have both ranks call "module:name" of a file in this folder."""
        self._commands.append(
            {"name": function, "call": function, "stop_rank": None, "stop_step": None}
        )

    def returned(self, function: str) -> list[Any]:
        """What `call` returned, by rank."""
        return [self._result(function, rank)["returned"] for rank in range(self.num_processes)]

    def start(self) -> None:
        for command, port in zip(self._commands, free_ports(len(self._commands)), strict=True):
            command["port"] = port
        (self.folder / "commands.json").write_text(json.dumps(self._commands))
        driver = Path(__file__).with_name("driver.py")
        paths = [str(driver.parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(self.num_processes),
        ]
        self._log = (self.folder / "launch.log").open("w")
        self._process = subprocess.Popen(
            [*launcher, str(driver), str(self.folder)],
            env=environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def finish(self) -> None:
        """Wait for it; nothing of it is left afterwards."""
        try:
            self._process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pytest.fail(
                f"the launch has not ended within {TIMEOUT_S} s:"
                f" {(self.folder / 'launch.log').read_text()[-2000:]}"
            )
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._log.close()
        assert self._process.returncode == 0, (self.folder / "launch.log").read_text()[-4000:]

    def codes(self, name: str) -> list[int]:
        return [self._result(name, rank)["code"] for rank in range(self.num_processes)]

    def shown(self, name: str) -> list[str]:
        return [self._result(name, rank)["shown"] for rank in range(self.num_processes)]

    def _result(self, name: str, rank: int) -> dict[str, Any]:
        return dict(json.loads((self.folder / f"{name}.{rank}.json").read_text()))


def deviation(one: Path, two: Path, recipe: Path) -> dict[str, float]:
    """For each student, how far apart two runs ended, in units of how far training moved the
    weights (Euclidean norms).
    """
    models = build_models(make_plan(load_recipe(recipe)))
    result = {}
    for name, net in models.nets.items():
        start, ends = net.state_dict(), [tensors(output, name) for output in (one, two)]
        assert ends[0].keys() == ends[1].keys()

        def flat(state: dict[str, torch.Tensor], names: list[str]) -> torch.Tensor:
            return torch.cat([state[key].double().flatten() for key in names])

        keys = [key for key in start if not key.endswith("num_batches_tracked")]
        held = [flat({key: end[f"{name}.model/{key}"] for key in keys}, keys) for end in ends]
        result[name] = float(
            (held[0] - held[1]).norm() / (held[0] - flat(dict(start), keys)).norm()
        )
    return result
