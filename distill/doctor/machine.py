"""Examines this machine: versions, devices, backends, environment. It needs no recipe, GPU or
network.
"""

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

import torch
import torch.distributed as dist

from distill.doctor.findings import Diagnosis, Section
from distill.engine import check_launch
from distill.errors import InputError
from distill.recipe import Recipe

_PACKAGES = (
    "torchvision",
    "timm",
    "accelerate",
    "deepspeed",
    "datasets",
    "safetensors",
    "pydantic",
    "numpy",
    "pillow",
)
_OPTIONAL = {
    "deepspeed": (
        "train.zero_stage and teacher.placement: zero3 need it: pip install 'vanillakd[deepspeed]'"
    )
}

# Variables that affect the speed or the success of a run, and are easy to forget.
_WATCHED = (
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "NCCL_DEBUG",
    "NCCL_SOCKET_IFNAME",
    "NCCL_IB_DISABLE",
    "NCCL_P2P_DISABLE",
    "GLOO_SOCKET_IFNAME",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "CUDA_LAUNCH_BLOCKING",
    "TORCH_DISTRIBUTED_DEBUG",
    "MASTER_ADDR",
    "MASTER_PORT",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "SLURM_JOB_ID",
    "SLURM_NNODES",
)
_SLOW = {
    "CUDA_LAUNCH_BLOCKING": "the host waits for every kernel",
    "NCCL_P2P_DISABLE": "GPUs of a node communicate through host memory",
    "NCCL_IB_DISABLE": "nodes communicate through sockets instead of InfiniBand",
    "TORCH_DISTRIBUTED_DEBUG": "collectives are checked, which is slow",
}


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def examine_machine(diagnosis: Diagnosis, recipe: Recipe | None, *, needs_deepspeed: bool) -> None:
    """Adds versions, devices, backends and environment to a diagnosis."""
    diagnosis.sections.append(_versions(diagnosis, needs_deepspeed))
    diagnosis.sections.append(_devices(diagnosis))
    diagnosis.sections.append(_environment(diagnosis, recipe))


def _versions(diagnosis: Diagnosis, needs_deepspeed: bool) -> Section:
    section = Section("Versions")
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
            if package in _OPTIONAL and needs_deepspeed:
                diagnosis.find(
                    "problem", "versions", f"{package} is not installed", _OPTIONAL[package]
                )
    found["cuda (of torch)"] = torch.version.cuda or "none"
    gpu = torch.cuda.is_available()
    found["cudnn"] = str(torch.backends.cudnn.version() or "none") if gpu else "no GPU"  # type: ignore[no-untyped-call]
    found["nccl"] = ".".join(map(str, torch.cuda.nccl.version())) if gpu else "no GPU"  # type: ignore[no-untyped-call]
    found["driver"] = _driver()
    for name, version in found.items():
        section.add(name, version)
    diagnosis.numbers["versions"] = found
    return section


def _driver() -> str:
    """The version of the NVIDIA driver, from its kernel module."""
    try:
        first = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return "none"
    return next((word for word in first.split() if word[0].isdigit() and "." in word), first)


def _devices(diagnosis: Diagnosis) -> Section:
    section = Section("Devices")
    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
            gpus.append({"name": properties.name, "memory_bytes": total, "free_bytes": free})
            section.add(
                f"GPU {index}", f"{properties.name}, {gib(total)}, {gib(free)} free", "driver"
            )
            if free < 0.9 * total:
                diagnosis.find(
                    "warning",
                    "devices",
                    f"GPU {index} has {gib(total - free)} in use",
                    "nvidia-smi shows which processes use it",
                )
    else:
        section.add("GPU", "none", "torch")
        diagnosis.find(
            "unknown",
            "devices",
            "torch finds no GPU: speed and memory below are predictions for the GPU named there",
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    section.add(
        "CPU",
        f"{cores()} cores usable of {os.cpu_count()}, {gib(memory)} of memory",
        platform.machine(),
    )
    backends = {
        "gloo": dist.is_available() and dist.is_gloo_available(),
        "nccl": dist.is_available() and dist.is_nccl_available(),
        "mpi": dist.is_available() and dist.is_mpi_available(),
    }
    section.add(
        "backends",
        ", ".join(f"{name} {'yes' if found else 'no'}" for name, found in backends.items()),
    )
    if gpus and not backends["nccl"]:
        diagnosis.find(
            "problem", "devices", "there are GPUs, but torch has no NCCL", "install torch for CUDA"
        )
    diagnosis.numbers["devices"] = {
        "gpus": gpus,
        "cores": cores(),
        "memory_bytes": memory,
        "backends": backends,
    }
    return section


def _environment(diagnosis: Diagnosis, recipe: Recipe | None) -> Section:
    section = Section("Environment")
    environment = dict(os.environ)
    for name in _WATCHED:
        if name in environment:
            section.add(name, environment[name])
    try:
        if recipe is None:
            count = check_launch(environment)
        else:
            train = recipe.train
            count = check_launch(
                environment,
                precision=train.precision,
                zero_stage=train.zero_stage,
                zero_offload=train.zero_offload,
            )
        section.add(
            "launcher",
            "none" if count == 1 else f"{count} processes",
            "no variable contradicts " + ("a recipe" if recipe is None else "the recipe"),
        )
    except InputError as error:
        diagnosis.find("problem", "environment", str(error))
    for name, effect in _SLOW.items():
        if environment.get(name, "0").lower() not in ("", "0", "off", "false"):
            diagnosis.find(
                "warning", "environment", f"{name}={environment[name]}: {effect}", f"unset {name}"
            )
    return section


def gib(size: float) -> str:
    """Bytes as text: "12.3 GiB", "45 MiB"."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"


def free_bytes(path: Path) -> tuple[Path, int]:
    """The nearest existing folder at or above `path`, and its free bytes."""
    folder = path.expanduser().resolve()
    while not folder.is_dir():
        folder = folder.parent
    return folder, shutil.disk_usage(folder).free
