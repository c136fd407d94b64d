"""Processes of their own against the fake Hub: a publication that is killed, and two processes of a
launch that read one model.
"""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fake_hub import FakeHub
from publishing import unchanged
from tiny import IMAGE_SIZE, write_recipe

TOKEN = "hf_alice_may_write"
LAUNCH = ("-m", "distill", "launch", "--nproc-per-node", "2")
ENDED_S = 150


def start(hub: FakeHub, folder: Path, *arguments: object) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    home = {"HF_HOME": str(folder / "hf"), "HF_TOKEN": TOKEN, "PYTHONPATH": ""}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env={**kept, **hub.environment, **home},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    shown, _ = process.communicate(timeout=ENDED_S)
    assert process.returncode == code, shown
    assert TOKEN not in shown
    return shown


def wait_for(hub: FakeHub, path: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + ENDED_S
    while not any(path in asked for asked in hub.requests):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_publication_that_is_killed_is_finished_by_the_same_command(
    hub: FakeHub, tiny_run: Path, tmp_path: Path
) -> None:
    hub.repository("alice/net", {"notes.md": b"mine"})
    command = ("-m", "distill", "publish", tiny_run, "alice/net", "--student", "kd")
    options = ("--license", "mit")
    hub.fault("/lfs/*", "hold")
    with unchanged(hub):
        process = start(hub, tmp_path, *command, *options)
        wait_for(hub, "/lfs/", process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    hub.release.set()
    shown = finish(start(hub, tmp_path, *command, *options))
    assert "the logits are the same, bit for bit" in shown
    assert "Traceback" not in shown
    files = hub["alice/net"].files()
    assert files["model.safetensors"] == (tiny_run / "best/kd/model.safetensors").read_bytes()
    assert files["notes.md"] == b"mine"


def test_the_round_trip_of_processes_through_the_environment(
    hub: FakeHub, tiny_run: Path, tmp_path: Path
) -> None:
    publish = ("-m", "distill", "publish", tiny_run / "best/kd", "alice/net", "--license", "mit")
    finish(start(hub, tmp_path, *publish))
    data = ("--data", "fashion_mnist", "--split", "test", "--num-workers", 0)
    evaluate = ("-m", "distill", "evaluate", "hf://alice/net", *data)
    assert "1000 images" in finish(start(hub, tmp_path, *evaluate))
    absent = ("-m", "distill", "evaluate", "hf://alice/absent", *data)
    shown = finish(start(hub, tmp_path, *absent), 2)
    assert "there is no such model, or it is private" in shown
    assert "Traceback" not in shown


def test_a_user_at_a_terminal_is_asked_for_the_licence(
    hub: FakeHub, tiny_run: Path, tmp_path: Path
) -> None:
    keyboard, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "distill", "publish", str(tiny_run), "alice/net"],
        env={**os.environ, **hub.environment, "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    while b"The licence of its weights" not in shown:
        shown += os.read(keyboard, 1000)
    assert b"training images Fashion-MNIST: mit" in shown
    assert not hub.log
    os.write(keyboard, b"cc0-1.0\n")
    with suppress(OSError):  # at its end a terminal has no end of file
        while piece := os.read(keyboard, 1000):
            shown += piece
    assert process.wait(ENDED_S) == 0, shown.decode()
    assert b"license: cc0-1.0" in hub["alice/net"].files()["README.md"]
    os.close(keyboard)


def test_two_processes_of_a_launch_read_one_commit(
    hub: FakeHub, tiny_run: Path, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in (tiny_run / "best/kd").iterdir()}
    commit = hub.repository("alice/net", files).head().oid
    changes: dict[str, Any] = {
        "teacher": {"model": None, "weights": "hf://alice/net", "image_size": IMAGE_SIZE},
        "log": {"publish": {"repo": "lab/out", "every": "4 iterations"}},
    }
    recipe = write_recipe(tmp_path, changes)
    finish(start(hub, tmp_path, *LAUNCH, "train", recipe))
    asked = [
        request.path
        for request in hub.log
        if request.method == "HEAD" and request.path.endswith("/resolve/main/config.json")
    ]
    assert len(asked) == 1, "one process resolves the branch for both"
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["num_processes"] == 2
    assert report["origins"]["teacher"]["weights"] == f"hf://alice/net@{commit}"
    titles = hub["lab/out"].titles()
    assert titles[0].startswith("step 8"), "the main process publishes, and no other"
    assert len(titles) == len(set(titles))
