"""Shards whose sample i has label i, a server for them, faults to order, and recipes over them.

Each case reads the shards under a URL of its own (a link beside them), and has a cache of its own.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from servers import FolderServer
from shards import describe, images_of, write_tars
from tiny import run, write_recipe

from distill.data.fashion import EmbeddedFashionMnist
from distill.training.loop import DONE

NUM_SAMPLES, PER_SHARD, BATCH = 600, 25, 16
STEPS = NUM_SAMPLES // BATCH  # an epoch: 37, and 8 samples are left out
# Blocks smaller than shards, lanes of six shards.
STREAM: dict[str, Any] = {"kind": "stream", "lanes": 4, "block": 20, "classes": "classes.txt"}
# A run in two stages, of 8 and 7 steps; at the second the data are the package's.
FOREIGN, OWN = 8, 7
# Shards that meet a fault, the first of them a 503; and the one that comes damaged.
STRUCK = [f"shard-{number:05d}.tar" for number in (2, 5, 11, 17, 20)]
CORRUPTED = STRUCK[-1]
BROKEN_SHARDS, CUT_AT = (10, 11), 20_000  # in lanes of the second process, and of the first
TIMEOUT_S = 120
HELD: dict[str, Any] = {
    "data": {"shards": {"timeout_s": TIMEOUT_S}},
    "checkpoint": {"every": "1 iterations"},
}
BROKEN: dict[str, Any] = {"data": {"shards": {"retries": 0, "timeout_s": TIMEOUT_S}}}


class Shards:
    """The shards, and the server that has them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = write_tars(
            folder / "served" / "set",
            images_of(EmbeddedFashionMnist("train"), range(NUM_SAMPLES)),
            PER_SHARD,
            labels=range(NUM_SAMPLES),
        )
        (folder / "classes.txt").write_text("\n".join(f"sample {i}" for i in range(NUM_SAMPLES)))
        describe(folder / "served" / "set", [f"sample {i}" for i in range(NUM_SAMPLES)])
        self.server = FolderServer(folder / "served")

    def url(self, case: str) -> str:
        (self.folder / "served" / case).symlink_to("set")
        return f"{self.server.url}/{case}"

    def faults(self, case: str, *, stall: bool = True) -> None:
        """What strikes each of some shards once. `stall`: for recipes that wait a second; on a busy
        machine a good answer may take that long too.
        """
        unavailable, reset, stalled, truncated, corrupted = (f"/{case}/{name}" for name in STRUCK)
        self.server.fault(unavailable, "status", status=503)
        self.server.fault(reset, "reset", after_bytes=5000)
        self.server.fault(stalled, "stall" if stall else "reset", after_bytes=3000)
        self.server.fault(truncated, "truncate", after_bytes=7000)
        self.server.fault(corrupted, "corrupt", after_bytes=7000)

    def recipe(self, case: str, path: str, *changes: dict[str, Any]) -> Path:
        """Of a stream alone, whose labels count samples."""
        base = {
            "data": {
                "root": str(self.folder),
                "train": None,
                "fraction": 1.0,
                "eval": None,
                "shards": {"cache": f"cache-{case}", "timeout_s": 1},
            },
            "train": {"budget": "3 epochs"},
        }
        stream = {"data": {"train": {**STREAM, "path": path}}}
        return write_recipe(self.folder, base, stream, *changes, name=case)

    def run_recipe(self, case: str, *changes: dict[str, Any]) -> Path:
        """Of a run in two stages: the shards without their labels, then images with labels."""
        path = self.url(case)
        if BROKEN in changes:
            for number in BROKEN_SHARDS:
                self.server.fault(
                    f"/{case}/shard-{number:05d}.tar", "shorten", after_bytes=CUT_AT, on=None
                )
        elif HELD not in changes:
            self.faults(case)
        stream = {**STREAM, "path": path, "labelled": False, "classes": None}
        stages: dict[str, Any] = {
            "train": {"budget": None},
            "data": {"shards": {"cache": str(self.folder / f"cache-{case}"), "timeout_s": 1}},
            "student": {"objective": {"soft": {"loss": "kl"}}},
            "stages": [
                {
                    "name": "foreign",
                    "budget": f"{FOREIGN} iterations",
                    "data": {"train": stream},
                    "student": {"objective": {"hard": None}},
                },
                {"name": "own", "budget": f"{OWN} iterations"},
            ],
        }
        return write_recipe(self.folder, stages, *changes, name=case)

    def requested(self, case: str) -> dict[str, int]:
        """How often each shard was asked for."""
        start = f"/{case}/shard-"
        return {
            path: count for path, count in self.server.requests.items() if path.startswith(start)
        }


@contextmanager
def shards_and_undisturbed(folder: Path) -> Iterator[Shards]:
    """The shards while they are served, and a run over them that nothing disturbs."""
    shards = Shards(folder)
    with shards.server:
        assert run(shards.run_recipe("undisturbed")) == DONE
        yield shards
    shutil.rmtree(shards.folder)
