"""Threads and the end of the process: what is under way in C++ is waited for, which cannot bear
that the interpreter goes.

A daemon thread that comes back from Arrow while the interpreter is torn down aborts the process: 8
of 32 exits amid Parquet shards did.
"""

import atexit
import os
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

# A stop is looked for every few milliseconds; a disk that hangs shall not keep the process.
_LONGEST_WAIT_S = 30.0


class _State:
    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.is_exiting = False
        self.num_inside = 0


_state = _State()


def is_exiting() -> bool:
    """Whether the process ends, so that nothing new is begun."""
    return _state.is_exiting


def stop_at_exit() -> None:
    """Ends this thread when the process ends, by SystemExit: no failure, of which
    nobody need hear.
    """
    if _state.is_exiting:
        raise SystemExit


@contextmanager
def delay_exit() -> Iterator[None]:
    """Work that the end of the process waits for; it calls `stop_at_exit` often. Raises
    SystemExit when it comes too late.
    """
    state = _state
    with state.changed:
        stop_at_exit()
        state.num_inside += 1
    try:
        yield
    except BaseException as error:
        # What the frames behind it hold of C++ goes now. It would go behind the end's back: 3 of
        # 115 such exits aborted, then none of 350.
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        with state.changed:
            state.num_inside -= 1
            state.changed.notify_all()


def _end() -> None:
    state = _state
    with state.changed:
        state.is_exiting = True
        state.changed.wait_for(lambda: state.num_inside == 0, _LONGEST_WAIT_S)


def _begin_anew() -> None:
    """In a forked child: the parent's threads are not there, and its lock may be held."""
    global _state
    _state = _State()


atexit.register(_end)
os.register_at_fork(after_in_child=_begin_anew)
