"""The memory of the host."""

import ctypes
import os
import resource
from contextlib import suppress
from pathlib import Path

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BYTES = (1 << 31) - 1
_LARGEST_OF_OLD_BYTES = 32 << 20  # before glibc 2.35


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors above 32 MB for the next step. By default it goes
    back to the kernel, and comes again page by page.

    Converting a batch of 64 images of 224 pixels to float32 then takes a third of the time. Does
    nothing without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    # Setting either one stops glibc from raising both itself, so the second is set only with the
    # first.
    if mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES) or mallopt(
        _M_MMAP_THRESHOLD, _LARGEST_OF_OLD_BYTES
    ):
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_BYTES)


def available_bytes() -> int:
    """Return the memory that this process can still take: of the machine without swapping, of its
    control group, and of its own address space.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    free = [page * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, StopIteration):  # Linux
        lines = Path("/proc/meminfo").read_text().splitlines()
        kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        free.append(1024 * int(kib))
    with suppress(OSError, ValueError):  # "max" where it is not limited
        free.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        with suppress(OSError):
            free.append(limit - page * int(Path("/proc/self/statm").read_text().split()[0]))
    return max(0, min(free))
