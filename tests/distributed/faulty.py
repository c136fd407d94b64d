"""Run by a launcher in place of `-m distill`: the command line, with one fault in one process.

    torchrun --nproc-per-node 2 faulty.py '{"kind": "kill", "rank": 1, "step": 5}' train RECIPE

In the middle of step `step`, between the backward pass and the update: "kill" (-9), "raise", "stop"
(a process that hangs), "kill launcher" (-9), "terminate launcher" (SIGTERM). In the evaluation
after step `step`: "terminate". Or "none".
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any


def signal_launcher(number: signal.Signals) -> None:
    """Return when it has died and the kernel has told its children."""
    launcher = os.getppid()
    os.kill(launcher, number)
    while os.getppid() == launcher:
        time.sleep(0.01)


def fail() -> None:
    raise KeyError("a fault of ours")


FAULTS: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "raise": fail,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "kill launcher": lambda: signal_launcher(signal.SIGKILL),
    "terminate launcher": lambda: signal_launcher(signal.SIGTERM),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
}


def arrange(kind: str, rank: int, step: int) -> None:
    """Let this process meet its fault, if it is the one."""
    from distill.engine.agreement import StepFlags

    if int(os.environ.get("RANK", "0")) != rank or kind == "none":
        return
    name = "agree_to_stop" if kind == "terminate" else "exchange"
    original = getattr(StepFlags, name)

    def faulty(self: StepFlags, at: int, *arguments: Any) -> Any:
        if at == step:
            FAULTS[kind]()
        return original(self, at, *arguments)

    setattr(StepFlags, name, faulty)


if __name__ == "__main__":
    arrange(**json.loads(sys.argv.pop(1)))
    from distill.__main__ import command

    command()
