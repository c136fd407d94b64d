"""Measures the interconnect: the time of an all-reduce of several sizes over all processes."""

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from distill.doctor.findings import Diagnosis, Grid, Section
from distill.doctor.model import all_reduce_bytes
from distill.engine import Engine

_MIB = 2**20
_SIZES = {"cuda": (1 * _MIB, 16 * _MIB, 64 * _MIB, 256 * _MIB), "cpu": (1 * _MIB, 16 * _MIB)}
_REPEATS = {"cuda": 10, "cpu": 3}


@dataclass(frozen=True)
class Timing:
    """The time of an all-reduce of `size` bytes: the mean over repeats, of the slowest process.

    The bus bandwidth, 2 (N - 1) / N * size / seconds, is what each process sends in a ring. It can
    be compared with the rate of a link for any number of processes N (as in nccl-tests).
    """

    size: int
    seconds: float
    bus_bytes_s: float


def measure_all_reduce(engine: Engine) -> list[Timing]:
    """Collective. Measures an all-reduce of float32 zeros."""
    timings = []
    device, repeats = engine.device, _REPEATS[engine.device.type]
    for size in _SIZES[device.type]:
        tensor = torch.zeros(size // 4, device=device)
        for _ in range(2):  # opens connections and touches buffers
            dist.all_reduce(tensor)
        _wait(device)
        dist.barrier()
        start = time.perf_counter()
        for _ in range(repeats):
            dist.all_reduce(tensor)
        _wait(device)
        seconds = torch.tensor(
            [(time.perf_counter() - start) / repeats], device=device, dtype=torch.float64
        )
        slowest = float(engine.max_(seconds).item())
        timings.append(Timing(size, slowest, all_reduce_bytes(size, engine.world_size) / slowest))
    return timings


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report_interconnect(
    diagnosis: Diagnosis, timings: list[Timing], num_processes: int, backend: str
) -> None:
    """Adds the timings to a diagnosis, or that nothing was measured."""
    section = Section("Interconnect")
    if not timings:
        section.add(
            "all-reduce",
            "not measured: there is only one process",
            "torchrun --nproc-per-node N -m distill doctor measures it",
        )
    else:
        rows = tuple(
            (f"{t.size // _MIB} MiB", f"{t.seconds * 1e3:.2f}", f"{t.bus_bytes_s / 1e9:.2f}")
            for t in timings
        )
        note = (
            f"{num_processes} processes, {backend}; measured; bus bandwidth = 2 (N - 1) / N x size"
            " / time"
        )
        section.tables.append(Grid("all-reduce", ("size", "ms", "GB/s"), rows, note))
    diagnosis.sections.append(section)
    diagnosis.numbers["interconnect"] = {
        "processes": num_processes,
        "backend": backend,
        "all_reduce": [vars(timing) for timing in timings],
    }
