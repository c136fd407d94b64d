"""What to show in place of a traceback: bad input, a full disk, a locale without the letters, a
process of the run that is gone.
"""

import errno
import re

from distill.errors import InputError
from distill.processes import several_processes

# What a disk or its owner can do to any write, wherever it happens; every other OSError is a fault
# of ours.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
# What torch.distributed says, with gloo or NCCL, when another process is gone, and when one does
# not come.
_PEER_GONE = (
    r"[Cc]onnection (was )?(closed|reset|refused|aborted)|[Ss]ocket (was )?closed|[Bb]roken"
    r" pipe|[Rr]emote process exit(ed|ing)"
    r"|ncclRemoteError|communicator was aborted|Application timeout caused pair closure"
)
_PEER_LATE = (
    r"Timed out waiting|[Ww]ait timeout|[Ss]ocket [Tt]imeout|timed out in monitoredBarrier|timed"
    r" out in blocking wait"
    r"|collective operation timeout|NCCL (operation timed out|timeout in)|before timing"
    r" out|([Rr]ead|[Ww]rite|Connect|barrier) timeout "
)
_MILLISECONDS = r"(?:waiting |timeout after |Timeout\(ms\) ?= ?)(\d+) ?(?:ms|\))"


def _first_sentence(text: str) -> str:
    """Without the place in a C++ source that gloo puts first, and the advice that it adds."""
    return re.sub(r"^\[\S+:\d+\] ", "", text.splitlines()[0]).split(". ")[0]


def _of_a_peer(error: Exception) -> str | None:
    """What the end or the silence of another process looks like from here, in a line; None for
    every other error.
    """
    text = str(error)
    if not several_processes() or not isinstance(error, RuntimeError):
        return None
    where = "".join(f" {note}" for note in getattr(error, "__notes__", []))
    goes_on = "; the same command goes on from the last checkpoint" if where else ""
    if re.search(_PEER_LATE, text):
        waited = re.search(_MILLISECONDS, text)
        seconds = f"{int(waited[1]) / 1000:g} s" if waited else "train.timeout_s"
        return (
            f"waited {seconds} for another process of this run (train.timeout_s){where}: it hangs,"
            f" or its machine is lost{goes_on}"
        )
    if re.search(_PEER_GONE, text):
        return (
            f"another process of this run has ended{where}: it says why itself, unless it was"
            f" killed (often for want of memory){goes_on}. Seen here: {_first_sentence(text)}"
        )
    return None


def explained(error: Exception) -> tuple[str, int] | None:
    """What to show in place of a traceback, and the exit code; None for a fault of ours, whose
    traceback is wanted.
    """
    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        return f"{error.filename or 'output'}: {error.strerror}", 2
    if isinstance(error, UnicodeEncodeError):
        text = error.object[error.start : error.end]
        return (
            (
                f"{text!a}: this locale writes {error.encoding.upper()}, which has no such letter:"
                " set LC_ALL=C.UTF-8, or PYTHONUTF8=1"
            ),
            2,
        )
    if isinstance(error, RuntimeError) and "home directory" in str(
        error
    ):  # pathlib's expanduser, of ~NAME
        return (
            (
                f"{error}: a path with ~ names a user that this machine does not know: write the"
                " path in full"
            ),
            2,
        )
    from distill.data.loading.workers import (
        worker_fault,
    )  # torch is slow to import, and most commands need none

    if fault := worker_fault(error):
        return f"{fault} (DISTILL_TRACEBACK=1 shows the traceback)", 1
    if of_a_peer := _of_a_peer(error):
        return of_a_peer, 1
    return None
