"""Work in forks of the test process, killed at chosen moments: a new interpreter would take seconds
to import torch.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable

Say = Callable[[object], object]


def fork(work: Callable[[Say], object], limit_s: float = 120.0) -> tuple[int, list[str]]:
    """Run `work(say)` in a fork. Returns its exit status as of os.wait, and the lines it sent with
    `say`.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            work(lambda text: os.write(writing, f"{text}\n".encode()))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    timer = threading.Timer(limit_s, os.kill, (pid, signal.SIGKILL))
    timer.start()
    with os.fdopen(reading) as pipe:
        lines = pipe.read().splitlines()
    status = os.waitpid(pid, 0)[1]
    timer.cancel()
    return status, lines


def die_before_event(number: int) -> None:
    """kill -9 this process right before its `number`-th file operation."""
    watched = {
        "open",
        "os.rename",
        "os.mkdir",
        "os.remove",
        "os.rmdir",
        "os.scandir",
        "shutil.rmtree",
    }
    count = 0

    def hook(event: str, args: object) -> None:
        nonlocal count
        if event in watched:
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def kill_at_every_event(
    prepare: Callable[[], object],
    work: Callable[[Say], object],
    check: Callable[[list[str]], object],
) -> int:
    """Kill `work` before its first, second, ... file operation, each time from a fresh start, until
    it survives. `check` gets the lines it sent. Returns the number of runs.
    """
    for number in range(1, 1000):
        prepare()

        def killed(say: Say, number: int = number) -> None:
            die_before_event(number)
            work(say)

        status, lines = fork(killed)
        assert status in (0, signal.SIGKILL), (number, status)
        check(lines)
        if status == 0:
            return number
    raise AssertionError("work never ends")
