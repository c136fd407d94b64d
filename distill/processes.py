"""A process of a launch: it ends with its launcher, one process explains an error for all, and none
waits for the others at its exit.

This module does not import torch: a process must end with its launcher while it still imports.
"""

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

_LAUNCHERS = ("torchrun", "accelerate", "accelerate-launch")
_LAUNCHER_MODULES = (
    "torch.distributed.run",
    "torch.distributed.launch",
    "accelerate.commands.launch",
    "accelerate.commands.accelerate_cli",
)
_OURS = (["launch"], ["study"])  # commands of distill that start others
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def is_launcher(command: list[str]) -> bool:
    """Return whether a command line is that of torchrun, Accelerate, `distill launch` or
    `distill study`, by its first words only: those of the launched command follow.
    """
    first, *rest = [*command[:6], ""]
    if Path(first).name.startswith("python"):
        while rest and rest[0].startswith("-") and rest[0] != "-m":  # the interpreter's own options
            rest = rest[1:]
        if rest[0:1] == ["-m"]:
            return rest[1] in _LAUNCHER_MODULES or (rest[1] == "distill" and rest[2:3] in _OURS)
        first, *rest = rest
    name = Path(first).name
    return name in _LAUNCHERS or (name == "distill" and rest[0:1] in _OURS)


def end_with_launcher() -> None:
    """Make this process receive SIGTERM when its launcher ends: it saves and ends.

    Accelerate's launcher of one process ends at a SIGTERM without passing it on, and a launcher
    killed with -9 leaves its ranks running. This is for launchers only: a run that a shell started
    with nohup continues without the shell.
    """
    parent = os.getppid()
    try:
        command = Path(f"/proc/{parent}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # no /proc, or the parent has ended
        return
    if is_launcher(command):
        end_with(parent, signal.SIGTERM)


def end_with(parent: int, number: signal.Signals) -> None:
    """Make this process receive signal `number` when its parent, process `parent`, ends. Does
    nothing outside Linux.

    For the kernel the parent is the thread that started this process: in launchers and data loaders
    it is the main thread.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel knew
        os.kill(os.getpid(), number)


def several_processes() -> bool:
    """Return whether the launcher started other processes."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1")


def speaks_first() -> bool:
    """Return whether this process is the first on this machine to explain why the run ends; the
    others can be short.

    The first one to fail has the cause; the errors of the others follow from it. torchrun gives
    each attempt a folder, which it removes itself; without that folder every process is the first.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # <attempt>/<local rank>/error.json
    if not several_processes() or not error_file:
        return True
    try:
        (Path(error_file).parents[1] / f"said-{os.environ.get('MASTER_PORT', '')}").touch(
            exist_ok=False
        )
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def leave(code: int) -> NoReturn:
    """End this process with an exit code; one of several skips the interpreter's teardown.

    Teardown joins threads and runs destructors of C++ libraries in an undefined order: a gloo
    process aborted there after its run was saved ("terminate called without an active exception",
    once in CI), and the destructor of a process group with a collective in flight waits for it, up
    to the timeout, while the launcher waits for the exit code. Nothing is lost: loaders, files and
    trackers are closed where they were opened.
    """
    if not several_processes():
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the reader has ended
            stream.flush()
    os._exit(code)
