"""The exit of the process waits for threads that work in C++, since the interpreter must not end
while they run.

A daemon thread that returns from Arrow while the interpreter is torn down aborts the process: 8 of
32 exits while reading Parquet shards did.
"""

import atexit
import os
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

# The threads check every few milliseconds whether to stop; a hanging disk shall not keep the
# process alive.
_LONGEST_WAIT_S = 30.0


class _State:
    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.is_exiting = False
        self.num_inside = 0


_state = _State()


def is_exiting() -> bool:
    """Whether the process is exiting, so that no new work may start."""
    return _state.is_exiting


def stop_at_exit() -> None:
    """End this thread with SystemExit, silently, if the process is exiting."""
    if _state.is_exiting:
        raise SystemExit


@contextmanager
def delay_exit() -> Iterator[None]:
    """Delay the exit of the process until the block ends; the block calls `stop_at_exit` often.

    Raises:
        SystemExit: the process is exiting already.
    """
    state = _state
    with state.changed:
        stop_at_exit()
        state.num_inside += 1
    try:
        yield
    except BaseException as error:
        # Release the C++ objects in the frames now. If they were released after the exit has begun,
        # the process could abort: 3 of 115 such exits did, then none of 350.
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


def _reset() -> None:
    """In a forked child the parent's threads do not exist, and its lock may be held."""
    global _state
    _state = _State()


atexit.register(_end)
os.register_at_fork(after_in_child=_reset)
