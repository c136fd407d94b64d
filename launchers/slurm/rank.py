"""One process of a run under SLURM: `distill train ...`, with a planned stop that no launcher takes
for a fault.

Launchers turn every exit code but 0 into 1, and end the other processes at the first. So exit code
75 (stopped by a signal, state saved) becomes a note for the batch script, and a 0 for the launcher.
Started by node.sh.
"""

import os
import signal
import sys
from pathlib import Path

STOPPED = 75  # distill.training.loop.INTERRUPTED, which would import torch here


def main() -> None:
    """`distill` with this process's arguments."""
    # Until training listens, a stop is dropped, not died of: node.sh repeats it. node.sh starts us
    # with both ignored; with a handler instead, what we start in turn finds them as usual.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    here = Path(os.environ["DISTILL_RANKS"]) / str(os.getpid())  # whom node.sh signals
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
