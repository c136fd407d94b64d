"""One process among those of a launch: it ends with its launcher, one speaks for all, and none
waits for the others to leave.

No torch: a process must hear of its launcher's death while it still imports.
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
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def is_launcher(command: list[str]) -> bool:
    """Whether a command line is torchrun's or Accelerate's: by its first words, since what it
    launches has words of its own.
    """
    first, *rest = [*command[:6], ""]
    if Path(first).name.startswith("python"):
        while rest and rest[0].startswith("-") and rest[0] != "-m":  # the interpreter's own options
            rest = rest[1:]
        if rest[0:1] == ["-m"]:
            return rest[1] in _LAUNCHER_MODULES
        first = rest[0]
    return Path(first).name in _LAUNCHERS


def end_with_launcher() -> None:
    """Let the launcher's death ask this process to stop (SIGTERM: it saves and ends), since nobody
    else would.

    Accelerate's launcher of one process dies of a SIGTERM without a word to its child, and a
    launcher that is killed with -9 takes no rank with it. Only where the parent is a launcher: a
    run that a shell started with nohup shall outlive the shell.
    """
    parent = os.getppid()
    try:
        command = Path(f"/proc/{parent}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # no /proc, or the parent has gone since
        return
    if is_launcher(command):
        end_with(parent, signal.SIGTERM)


def end_with(parent: int, number: signal.Signals) -> None:
    """Get signal `number` when the parent, process `parent`, ends. Linux only; elsewhere nothing
    happens.

    The kernel means the thread of the parent that started this process: launchers and data loaders
    do so in their main thread.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel knew
        os.kill(os.getpid(), number)


def several_processes() -> bool:
    """Whether the launcher says that there are others."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1")


def speaks_first() -> bool:
    """Whether this process is the first of this machine's to say why the run ends; the others can
    be short.

    The first one to fail knows the cause; what the others see follows from it. torchrun gives each
    attempt a folder that it removes itself; where there is none, nobody can tell, and everyone is
    first.
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
    """End this process with an exit code; one of several without the interpreter's teardown.

    Teardown joins threads and runs destructors of C++ libraries in no order that they agreed on: a
    gloo process has aborted there after its run was well and saved ("terminate called without an
    active exception", once in CI), and the destructor of a process group with a collective in
    flight waits for it, up to the timeout, while the launcher waits for the exit code. All that
    wants an orderly end has had it: loaders, files and trackers close where they were opened.
    """
    if not several_processes():
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # whoever read it has gone
            stream.flush()
    os._exit(code)
