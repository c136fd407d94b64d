"""The Hub is asked by one process of a run on each machine, and every run asks again."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from hub import COMMIT, Hub
from servers import FolderServer

ASKING = """
import sys
from pathlib import Path
from distill.data.stream.cache import ShardCache
from distill.data.stream.listing import list_shards
from distill.data.stream.transport import Transport
from distill.errors import InputError
from distill.recipe.schema import StreamSpec

spec = StreamSpec(kind="stream", path=sys.argv[1], split=sys.argv[2])
cache = ShardCache(Path(sys.argv[3]), 10**9)
try:
    found = list_shards(spec, Path(), "data.train", Transport(retries=0, timeout_s=5), cache)
    print("SAID", [(s.url, s.size_bytes, s.sha256) for s in found.shards], found.classes)
except InputError as error:
    print("SAID", error)
"""


def ask(
    server: FolderServer, folder: Path, run: str | None, path: str, split: str, times: int
) -> list[str]:
    """What so many processes of a run say, which start together."""
    environment = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(folder / "home"),
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    if run is not None:
        environment |= {"TORCHELASTIC_RUN_ID": run, "TORCHELASTIC_RESTART_COUNT": "0"}
    command = [sys.executable, "-c", ASKING, path, split, str(folder / "cache")]
    started = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(times)
    ]
    said = []
    for process in started:
        out, err = process.communicate(timeout=600)
        lines = [line.removeprefix("SAID ") for line in out.splitlines() if line.startswith("SAID")]
        assert lines, err
        said += lines
    return said


def test_one_process_of_a_run_asks(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    with FolderServer(tmp_path / "served") as server:
        hub = Hub(tmp_path / "served", server)
        hub.repository(
            "timm/wds", {"x-train-0.tar": b"a", "x-train-1.tar": b"bc", "x-test-0.tar": b"d"}
        )
        tree = f"/api/datasets/timm/wds/tree/{COMMIT}"

        def asked(run: str | None, split: str, times: int) -> tuple[set[str], int]:
            before = server.requests[tree]
            said = ask(server, tmp_path, run, "hf://datasets/timm/wds", split, times)
            assert len(said) == times
            return set(said), server.requests[tree] - before

        alone, cost = asked(None, "train", 1)
        assert cost > 0
        root = f"hf://datasets/timm/wds@{COMMIT}"
        files = [
            (f"{root}/x-train-{i}.tar", i + 1, hashlib.sha256((b"a", b"bc")[i]).hexdigest())
            for i in range(2)
        ]
        assert alone == {f"{files} None"}
        assert asked("one", "train", 3) == (alone, cost)
        assert asked("one", "train", 1) == (alone, 0)
        assert asked("one", "test", 1)[0] != alone
        assert asked("two", "train", 1) == (alone, cost)
        (kept,) = (
            file
            for file in (tmp_path / "cache").iterdir()
            if '"run": "torchrun two' in file.read_text()
        )
        text = kept.read_text()
        record = json.loads(text)
        # A requeued job, which has the token of its run before; as long as the file was, or it were
        # taken for damaged.
        kept.write_text(json.dumps(record | {"time": int(record["time"]) - 1000}).ljust(len(text)))
        assert asked("two", "train", 1) == (alone, cost)


def test_what_the_hub_refuses_is_reported_by_each(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    with FolderServer(tmp_path / "served") as server:
        Hub(tmp_path / "served", server).gated("o/gated")
        said = ask(server, tmp_path, "one", "hf://datasets/o/gated", "train", 2)
    assert len(said) == 2
    assert all("is a gated dataset" in each for each in said)
