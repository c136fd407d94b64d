"""`distill launch`: exit codes of the processes, and no traceback of torchrun."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tiny import assert_equal_but_statistics, records, run, tensors, write_recipe

from distill.cli.launch import INTERRUPTED
from distill.training import loop
from distill.training.loop import DONE

LAUNCH = [sys.executable, "-m", "distill", "launch", "--nproc-per-node", "2", "train"]
STARTED_S = 300


def start(recipe: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("ACCELERATE_USE_CPU", None)
    with log.open("w") as file:
        return subprocess.Popen(
            [*LAUNCH, str(recipe)], stdout=file, stderr=subprocess.STDOUT, env=environment
        )


def test_a_stop_by_signal_is_one_message_and_resumes(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"train": {"budget": "100 iterations"}}, name="launched")
    output = tmp_path / "launched"
    process = start(recipe, tmp_path / "first.log")
    deadline = time.monotonic() + STARTED_S
    while not (output / "metrics.jsonl").exists() or not records(output):
        assert process.poll() is None, (tmp_path / "first.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(STARTED_S) == INTERRUPTED == loop.INTERRUPTED
    shown = (tmp_path / "first.log").read_text()
    assert "SIGTERM: stopped after step" in shown
    assert "Traceback" not in shown
    assert "torch.distributed" not in shown

    process = start(recipe, tmp_path / "second.log")
    assert process.wait(STARTED_S) == DONE, (tmp_path / "second.log").read_text()
    undisturbed = write_recipe(tmp_path, {"train": {"budget": "100 iterations"}}, name="alone")
    assert run(undisturbed) == DONE
    assert_equal_but_statistics(tensors(output), tensors(tmp_path / "alone"))


def test_the_exit_code_is_that_of_the_command(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, name="wrong")
    ended = subprocess.run(
        [*LAUNCH, str(recipe), "train.budget=none"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "train.budget" in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr
