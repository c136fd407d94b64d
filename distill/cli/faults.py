"""Messages that replace a traceback: wrong input, a full disk, a locale that lacks a character,
another process of the run that ended.
"""

import errno
import re

from distill.errors import InputError
from distill.processes import several_processes

# Errors of the disk or its permissions at any write, and of paths that no file can have, which come
# from a recipe or the command line. Other OSErrors are internal errors.
_DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)
# Messages of torch.distributed, with gloo or NCCL, if another process has ended or does not answer.
_PEER_ENDED = (
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
    """The message of gloo without the C++ source location before it and the advice after it."""
    return re.sub(r"^\[\S+:\d+\] ", "", text.splitlines()[0]).split(". ")[0]


def _explain_peer(error: Exception) -> str | None:
    """A message for an error because another process ended or does not answer; None for every other
    error.
    """
    text = str(error)
    if not several_processes() or not isinstance(error, RuntimeError):
        return None
    where = "".join(f" {note}" for note in getattr(error, "__notes__", []))
    resumes = "; the same command resumes from the last checkpoint" if where else ""
    if re.search(_PEER_LATE, text):
        waited = re.search(_MILLISECONDS, text)
        seconds = f"{int(waited[1]) / 1000:g} s" if waited else "train.timeout_s"
        return (
            f"waited {seconds} for another process of this run (train.timeout_s){where}: it hangs,"
            f" or its machine is not reachable{resumes}"
        )
    if re.search(_PEER_ENDED, text):
        return (
            f"another process of this run has ended{where}: see its own message, unless it was"
            f" killed (often because memory ran out){resumes}. Seen here: {_first_sentence(text)}"
        )
    return None


def explain_error(error: Exception) -> tuple[str, int] | None:
    """Returns the message to show instead of a traceback, and the exit code; None for an internal
    error, which needs its traceback.
    """
    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return f"{error.filename or 'output'}: {error.strerror}", 2
    if isinstance(error, UnicodeEncodeError):
        text = error.object[error.start : error.end]
        return (
            (
                f"{text!a}: this locale writes {error.encoding.upper()}, which lacks the character:"
                " set LC_ALL=C.UTF-8, or PYTHONUTF8=1"
            ),
            2,
        )
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        # From pathlib's expanduser of ~NAME, which does not name the path.
        return (
            (
                "a path of the recipe or the command line begins with ~ and a user that this"
                f" machine does not know ({error}): write the path in full"
            ),
            2,
        )
    from distill.data.loading.workers import worker_fault  # here, since torch is slow to import

    if fault := worker_fault(error):
        return f"{fault} (DISTILL_TRACEBACK=1 shows the traceback)", 1
    if message := _explain_peer(error):
        return message, 1
    return None
