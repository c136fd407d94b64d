"""How the processes of a run meet: tried with a socket, and explained in a sentence when it
fails.
"""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from distill.engine.environment import launched_processes
from distill.errors import InputError

# The longest wait for the master, whose process may still read weights.
MASTER_WAIT_S = 300


def reach_master(environment: dict[str, str], timeout_s: float) -> None:
    """Wait until the process that hosts the rendezvous answers. torch would wait too, and print a
    page of C++ frames for each process.

    Raises:
        InputError: its name does not resolve, or no process answers, within `timeout_s` or
            MASTER_WAIT_S.
    """
    hosted_by_launcher = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if launched_processes(environment) == 1 or (
        environment["RANK"] == "0" and not hosted_by_launcher
    ):
        return  # there is one process, or this is the host
    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    wait_s = min(timeout_s, MASTER_WAIT_S)
    deadline, pause_s = time.monotonic() + wait_s, 0.1
    while True:
        try:
            socket.create_connection((address, port), timeout=max(1.0, min(10.0, wait_s))).close()
            return
        # Also a name that does not resolve: in a cluster it may appear with its machine.
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
    """Return a context in which the process group is made; what torch raises when some processes
    are missing becomes a sentence.

    Raises:
        InputError: some processes did not come within `timeout_s`, or cannot be reached.
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
