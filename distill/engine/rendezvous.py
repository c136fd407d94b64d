"""How the processes of a run meet: checked in the environment, tried with a socket, and put into
words when it fails.
"""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from distill.engine.environment import launched_processes
from distill.errors import InputError

# At most so long for the master to answer: its process may still read weights while this one is
# ready.
MASTER_WAIT_S = 300
_NEEDED = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_MEND = "start it with torchrun, accelerate launch or a script of launchers/, which set them"
# Starters of several processes that say nothing of them in WORLD_SIZE: each would believe that it
# is alone.
_STARTERS = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpiexec",
}


def check_rendezvous(environment: dict[str, str]) -> None:
    """Look at what a launcher says of the processes and where they meet. No network.

    Raises:
        InputError: a variable is missing, no number, or out of range; names it and the mend.
    """
    given = {name: environment.get(name, "") for name in _NEEDED}
    if not given["WORLD_SIZE"]:
        for variable, starter in _STARTERS.items():
            count = environment.get(variable, "")
            if count.isdigit() and int(count) > 1:
                raise InputError(
                    f"{starter} started {count} processes of this command ({variable}), and none"
                    f" knows of the others: WORLD_SIZE is not set; {_MEND}"
                )
    if given["LOCAL_RANK"] == "-1":  # how older launchers say that there is none
        given["LOCAL_RANK"] = ""
    if launched_processes(environment) == 1 and not given["LOCAL_RANK"]:
        return
    if missing := [name for name, value in given.items() if not value]:
        said = ", ".join(f"{name}={value}" for name, value in given.items() if value)
        raise InputError(
            f"{said} tells of a launch of several processes, and how they meet is missing:"
            f" {', '.join(missing)} not set; {_MEND}. For one process, unset what is set"
        )
    world_size = launched_processes(environment)
    for name, limit in (("RANK", world_size), ("LOCAL_RANK", world_size), ("MASTER_PORT", 65536)):
        if not given[name].isdigit() or int(given[name]) >= limit:
            raise InputError(
                f"{name}={given[name]}: should be a number from 0 to {limit - 1}; {_MEND}"
            )


def reach_master(environment: dict[str, str], timeout_s: float) -> None:
    """Wait until the process that hosts the rendezvous answers. torch would wait too, with a page
    of C++ frames a process.

    Raises:
        InputError: its name does not resolve, or nobody answers, within `timeout_s` or
            MASTER_WAIT_S.
    """
    hosted_by_launcher = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if launched_processes(environment) == 1 or (
        environment["RANK"] == "0" and not hosted_by_launcher
    ):
        return  # alone, or the host itself
    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    wait_s = min(timeout_s, MASTER_WAIT_S)
    deadline, pause_s = time.monotonic() + wait_s, 0.1
    while True:
        try:
            socket.create_connection((address, port), timeout=max(1.0, min(10.0, wait_s))).close()
            return
        # a name that does not resolve, too: in a cluster it may appear with its machine
        except OSError as error:
            if time.monotonic() + pause_s > deadline:
                raise InputError(
                    f"no process answers at MASTER_ADDR={address}, MASTER_PORT={port}"
                    f" ({error.strerror or error}; waited {wait_s:g} s): give the address of the"
                    " machine that runs RANK 0 and a free port that the others can reach; or that"
                    " process did not start"
                ) from error
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 2.0)


@contextmanager
def meeting(timeout_s: float) -> Iterator[None]:
    """Inside, the processes' group is made. What torch raises when some do not come is put into a
    sentence.

    Raises:
        InputError: some did not come within `timeout_s`, or cannot be reached.
    """
    try:
        yield
    except RuntimeError as error:  # DistError, and plain ones from gloo
        text = " ".join(str(error).splitlines()[:1])
        joined = re.search(r"(\d+)/(\d+) clients joined", text)
        if not (
            joined
            or isinstance(error, dist.DistError)
            or re.search(r"[Cc]onnect|[Tt]imed? ?out|[Gg]loo", text)
        ):
            raise
        what = (
            f"{joined[1]} of {joined[2]} processes came to the rendezvous"
            if joined
            else "the processes do not meet"
        )
        raise InputError(
            f"{what} (waited {timeout_s:g} s, train.timeout_s): did every machine start, with the"
            f" same MASTER_ADDR, MASTER_PORT and WORLD_SIZE? Seen here: {text}"
        ) from error
