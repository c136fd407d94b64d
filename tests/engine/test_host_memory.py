"""Page faults of large tensors on the CPU, in a process of its own: the setting is global."""

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource, sys
import torch
from distill.engine.host_memory import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults(mib):
    found = []
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(mib << 18)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(found)  # a small block may be in the way of one tensor, not of the next
print(faults(8), faults(96))
"""


def faults(how: str) -> list[int]:
    shown = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True
    ).stdout
    return [int(number) for number in shown.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_of_large_tensors_is_kept() -> None:
    """Tensors of 96 MiB, one after another: by default the kernel gives every page again."""
    assert faults("left")[1] > 1000
    small, large = faults("kept")
    assert small < 100, (
        "glibc keeps these by itself, and would not if the second setting came without the first"
    )
    assert large < 100
