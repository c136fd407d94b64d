"""Processes that die, fail, hang or are told to stop, under real launchers: all end in time, one
says why, none is left, and the run resumes.

Each launch has a folder of its own; a process of it is one whose command line names that folder
(workers inherit it by fork).
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ports import free_ports
from tiny import assert_equal_but_statistics, records, report, run, tensors, write_recipe

from distill.training.loop import DONE

ROOT = Path(__file__).resolve().parents[2]
STARTED_S = 300  # for a launch to come to its fault, on a machine that is busy
GRACE_S = 30  # torchrun's, between the signal to end and the one that cannot be ignored
TIMEOUT_S = 10  # longer than a decoding process is waited for that hung at its fork
# What follows a fault on two busy cores.
SOON_S = 25
CHANGES: dict[str, Any] = {
    "train": {"timeout_s": TIMEOUT_S},
    "evaluate": {
        "batch_size_process": 4
    },  # seven batches on each process: two looks at whether to stop
    "students": {"alone": {}, "kd": {"seed": 1, "objective": {"soft": {"loss": "kl"}}}},
}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SINGLE = [
    "-m",
    "accelerate.commands.launch",
    "--config_file",
    str(ROOT / "launchers/accelerate/single.yaml"),
]


class Launch:
    """A run under a launcher, with one fault."""

    def __init__(
        self,
        folder: Path,
        kind: str,
        *,
        rank: int = 1,
        step: int = 6,
        launcher: list[str] = TORCHRUN,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.output = folder, folder / "run"
        self.recipe = write_recipe(folder, CHANGES, {"data": {"num_workers": 1}})
        self._log = folder / f"{kind}.log"
        fault = json.dumps({"kind": kind, "rank": rank, "step": step})
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    *launcher,
                    str(Path(__file__).with_name("faulty.py")),
                    fault,
                    "train",
                    str(self.recipe),
                ],
                env=environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ended(self, within_s: float = SOON_S, left_s: float = 3) -> tuple[int, str]:
        """The launcher's exit code and all that was shown.

        The last word came `within_s` after the last record of the run, and nothing runs any more
        `left_s` after the launcher's end.
        """
        try:
            self._process.wait(STARTED_S + within_s)
            deadline = time.monotonic() + left_s
            while self.left():
                assert time.monotonic() < deadline, (
                    f"left: {self.left()}; {self._log.read_text()[-2000:]}"
                )
                time.sleep(0.05)
        finally:
            self.clear()
        shown = self._log.read_text()
        assert (
            self._log.stat().st_mtime - (self.output / "metrics.jsonl").stat().st_mtime < within_s
        ), shown
        return self._process.returncode, shown

    def clear(self) -> None:
        """Let nothing survive a test that failed."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pid in self.left():
            os.kill(pid, signal.SIGKILL)

    def left(self) -> list[int]:
        """Processes of this launch that are still there."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if (
                    str(self.folder).encode() in (entry / "cmdline").read_bytes()
                    and int(entry.name) != os.getpid()
                ):
                    found.append(int(entry.name))
            except OSError:
                pass
        return found


def environment(**more: str) -> dict[str, str]:
    """Of a launcher: this checkout, the CPU, one thread."""
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    settings = {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    return {**os.environ, **settings, **more}


@pytest.fixture(scope="module")
def hanging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Started before everything else: most of what it takes is torchrun's patience."""
    launch = Launch(tmp_path_factory.mktemp("hanging"), "stop")
    yield launch
    launch.clear()


@pytest.fixture(scope="module")
def whole(hanging: Launch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happens to, by one process."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(write_recipe(folder, CHANGES)) == DONE
    return folder / "run"


def assert_as_undisturbed(output: Path, whole: Path) -> None:
    """Weights and optimizers bit for bit (a sum of two gradients has one order); running statistics
    within their rounding.
    """
    assert_equal_but_statistics(tensors(output), tensors(whole))
    steps = [(line["event"], line["step"]) for line in records(output)]
    assert steps == [(line["event"], line["step"]) for line in records(whole)]
    assert report(output)["students"].keys() == report(whole)["students"].keys()


def said(shown: str) -> list[str]:
    """The messages of the command, each a line."""
    return [line for line in shown.splitlines() if line.startswith("distill")]


def checkpoints(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


def test_a_rank_that_is_killed(whole: Path, tmp_path: Path) -> None:
    code, shown = Launch(tmp_path, "kill").ended()
    assert code == 1
    assert len(said(shown)) == 1, shown
    (message,) = said(shown)
    assert "another process of this run has ended after step 5" in message
    assert re.search(
        r"; the same command resumes from the last checkpoint. Seen here: .*[Cc]onnection"
        r" (closed|reset) by peer",
        message,
    )
    assert shown.count("Traceback") == 1, "torchrun's own, which ends every failed launch"
    assert checkpoints(tmp_path / "run") == ["step-00000004"]

    code, shown = Launch(tmp_path, "none").ended()
    assert code == 0, shown
    assert "resuming from" in shown
    assert "rror" not in shown
    assert_as_undisturbed(tmp_path / "run", whole)


def test_a_rank_that_raises(whole: Path, tmp_path: Path) -> None:
    code, shown = Launch(tmp_path, "raise").ended()
    assert code == 1
    assert shown.count("KeyError: 'a fault of ours'\nafter step 5\n") == 1
    assert said(shown) == [], "the other one adds nothing to the cause"
    assert shown.count("Traceback") == 2, "the fault's, and torchrun's own"
    assert run(tmp_path / "run.yaml") == DONE
    assert_as_undisturbed(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("kind", "launcher"), [("kill launcher", TORCHRUN), ("terminate launcher", SINGLE)]
)
def test_ranks_save_and_end_when_their_launcher_is_gone(
    kind: str, launcher: list[str], whole: Path, tmp_path: Path
) -> None:
    """torchrun killed with -9; Accelerate's launcher of one process, which does not hand a SIGTERM
    on.
    """
    rank = 1 if launcher is TORCHRUN else 0
    code, shown = Launch(tmp_path, kind, rank=rank, step=5, launcher=launcher).ended(left_s=SOON_S)
    assert code == (-signal.SIGKILL if launcher is TORCHRUN else -signal.SIGTERM)
    # As a rule after step 6, the one after the signal; a busy machine may notice later.
    assert re.search(r": stopped after step [5-8], saved in", shown), shown
    assert "Traceback" not in shown
    assert run(tmp_path / "run.yaml") == DONE
    assert_as_undisturbed(tmp_path / "run", whole)


def test_a_signal_in_an_evaluation_abandons_it_on_both_ranks(whole: Path, tmp_path: Path) -> None:
    _, shown = Launch(tmp_path, "terminate", step=4).ended()
    assert "a signal: stopped after step 4, saved in" in shown, "rank 0 was told by rank 1"
    assert said(shown) == []
    assert [line["step"] for line in records(tmp_path / "run")] == [1, 2, 3, 4]
    assert {line["event"] for line in records(tmp_path / "run")} == {"train"}
    assert run(tmp_path / "run.yaml") == DONE
    assert_as_undisturbed(tmp_path / "run", whole)


def test_a_rank_that_hangs(hanging: Launch, whole: Path) -> None:
    """The others give up after timeout_s, and torchrun ends what does not end itself."""
    code, shown = hanging.ended(within_s=TIMEOUT_S + GRACE_S + SOON_S)
    assert code == 1
    assert said(shown) == [
        f"distill: waited {TIMEOUT_S} s for another process of this run (train.timeout_s) after"
        " step 5: it hangs, or its machine is not reachable; the same command resumes from the last"
        " checkpoint"
    ]
    assert shown.count("Traceback") == 1
    assert run(hanging.recipe) == DONE
    assert_as_undisturbed(hanging.output, whole)


def test_processes_that_do_not_meet(tmp_path: Path) -> None:
    """The first waits for a second that never comes; the second asks where no process answers."""
    recipe = write_recipe(tmp_path, CHANGES, {"train": {"timeout_s": 2}})
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "distill", "train", str(recipe)],
            env=environment(
                WORLD_SIZE="2",
                RANK=rank,
                LOCAL_RANK=rank,
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, port in zip("01", free_ports(2), strict=True)
    ]
    shown = [process.communicate(timeout=STARTED_S)[0] for process in started]
    assert [process.returncode for process in started] == [2, 2]
    assert "Traceback" not in "".join(shown)
    assert len(shown[1].splitlines()) == 1, shown[1]
    # The first has printed the run's header before it waits.
    assert (
        "1 of 2 processes came to the rendezvous (waited 2 s, train.timeout_s)"
        in shown[0].splitlines()[-1]
    )
    assert "distill (rank 1): no process answers at MASTER_ADDR=127.0.0.1, MASTER_PORT=" in shown[1]
    assert "(Connection refused; waited 2 s)" in shown[1]
    assert not (tmp_path / "run").exists()
