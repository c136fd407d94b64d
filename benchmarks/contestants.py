"""Processes of `benchmarks.streams`, and which of them can run here."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from benchmarks.streams import NAMES, Task

PLACES = ("http", "disk")
_ROOT = Path(__file__).resolve().parents[1]


def taking_part(places: Sequence[str]) -> dict[str, list[str]]:
    """place -> the contestants that can read from there; says what the others lack, and how to get
    it.
    """
    return {place: [name for name in NAMES if _can_read(name, place)] for place in places}


def _can_read(name: str, place: str) -> bool:
    if name == "webdataset_cached" and place == "disk":  # there is nothing to keep
        return False
    packages = {"ours": [], "datasets": ["aiohttp", "requests"] if place == "http" else []}
    lacking = [
        package
        for package in packages.get(name, ["webdataset"])
        if importlib.util.find_spec(package) is None
    ]
    if name.startswith("webdataset") and place == "http" and shutil.which("curl") is None:
        lacking.append("curl (the program)")
    if lacking:
        print(
            f"{place}: {name} is left out, for want of {', '.join(lacking)}: `pip install -e"
            " '.[bench]'`, or beside the environment `uv pip install --target PEERS webdataset"
            " aiohttp requests`, then run with PYTHONPATH=PEERS"
        )
    return not lacking


class Contestant:
    """A process of `benchmarks.streams`; it is ready with its first answer.

    Args:
        home: where `datasets` keeps what it keeps.
    """

    def __init__(self, name: str, home: Path) -> None:
        environment = {
            **os.environ,
            "HF_HOME": str(home),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.streams", name],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> None:
        """Waits for its imports."""
        assert self._answer() == {"ready": self.name}

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
