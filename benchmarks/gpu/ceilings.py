"""The machine, and what it can do at most: products of bf16 matrices, copies in its memory."""

import os
import platform
from importlib import metadata
from typing import Any

import torch

from benchmarks.gpu.pairs import Sizes
from benchmarks.gpu.record import PartRecord
from benchmarks.timing import Stopwatch, median
from distill.doctor.findings import Diagnosis
from distill.doctor.machine import examine_machine

_REPEATS = 10
_PACKAGES = ("torchvision", "triton", "opencv-python-headless", "simplejpeg", "pydantic", "pytest")


def machine(device: torch.device) -> dict[str, Any]:
    """Return device, driver and versions."""
    diagnosis = Diagnosis()
    examine_machine(diagnosis, None, needs_deepspeed=False)
    versions = dict(diagnosis.numbers["versions"])
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    on_cuda = device.type == "cuda"
    properties = torch.cuda.get_device_properties(device) if on_cuda else None
    return {
        "device": properties.name if properties else platform.machine(),
        "device_type": device.type,
        "device_memory_bytes": properties.total_memory if properties else None,
        "driver": versions.pop("driver"),
        "versions": versions,
        "cores": diagnosis.numbers["devices"]["cores"],
        "memory_bytes": diagnosis.numbers["devices"]["memory_bytes"],
        "load_average": [round(load, 1) for load in os.getloadavg()],
    }


def matrix_peak(device: torch.device, side: int, seconds_of: Stopwatch) -> float:
    """Return FLOP/s of the product of two square bf16 matrices of random numbers: zeros multiply
    faster.
    """
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))

    def products() -> None:
        for _ in range(_REPEATS):
            torch.matmul(a, b)

    products()
    seconds = median([seconds_of(products) for _ in range(3)]).median
    return _REPEATS * 2 * side**3 / seconds


def copy_bandwidth(device: torch.device, size: int, seconds_of: Stopwatch) -> float:
    """Return bytes/s, read and written, of a copy in the device's memory."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)

    def copies() -> None:
        for _ in range(_REPEATS):
            target.copy_(source)

    copies()
    seconds = median([seconds_of(copies) for _ in range(3)]).median
    return _REPEATS * 2 * source.nbytes / seconds


def upload_bandwidth(device: torch.device, size: int, seconds_of: Stopwatch) -> float:
    """Return bytes/s from pinned host memory to the device."""
    source = torch.ones(size // 16, pin_memory=device.type == "cuda")

    def copies() -> None:
        for _ in range(_REPEATS):
            source.to(device, non_blocking=True, copy=True)

    copies()
    seconds = median([seconds_of(copies) for _ in range(3)]).median
    return _REPEATS * source.nbytes / seconds


def run(part: PartRecord, sizes: Sizes, device: torch.device) -> None:
    """Record the machine and its ceilings."""
    found = machine(device)
    part.record.put({**part.record.read().get("machine", {}), **found}, "machine")
    print(f"{found['device']}, driver {found['driver']}, torch {found['versions']['torch']}")
    seconds_of = Stopwatch(device, "wall")
    peak = matrix_peak(device, sizes.matrix, seconds_of)
    part.put(peak, "bf16_flops_s")
    part.put(sizes.matrix, "matrix_side")
    copied = copy_bandwidth(device, sizes.copied_bytes, seconds_of)
    part.put(copied, "copy_bytes_s")
    uploaded = upload_bandwidth(device, sizes.copied_bytes, seconds_of)
    part.put(uploaded, "upload_bytes_s")
    print(
        f"product of {sizes.matrix} x {sizes.matrix} bf16 matrices: {peak / 1e12:.1f} TFLOP/s;"
        f" copy {copied / 1e12:.2f} TB/s read and written; from pinned memory"
        f" {uploaded / 1e9:.1f} GB/s"
    )
