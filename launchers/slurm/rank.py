"""One process of a run under SLURM: `distill train ...` or `distill study ...`, with a planned stop
that launchers do not take for an error.

Launchers turn every exit code but 0 into 1, and end the other processes at the first one. So exit
code 75 (stopped by a signal, state saved) becomes a file for the batch script, and 0 for the
launcher. node.sh starts this script.
"""

import os
import signal
import sys
from pathlib import Path

STOPPED = 75  # distill.training.loop.INTERRUPTED, which would import torch here


def main() -> None:
    """Run `distill` with this process's arguments."""
    # Until training handles signals, they have no effect, and node.sh repeats them. node.sh starts
    # this process with both ignored; with a handler, its own child processes get the defaults.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    here = Path(os.environ["DISTILL_RANKS"]) / str(
        os.getpid()
    )  # the processes that node.sh signals
    here.touch()
    sys.argv[0] = "distill"
    try:
        from distill.__main__ import main as distill

        distill()
    except SystemExit as end:
        if end.code != STOPPED:
            raise
        (Path(os.environ["DISTILL_STATE"]) / "stopped").touch()
    finally:
        here.unlink(missing_ok=True)


if __name__ == "__main__":  # loader processes may import this file again
    main()
