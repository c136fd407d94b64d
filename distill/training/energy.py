"""The energy that the GPUs of a run use, by the counters that NVIDIA's driver keeps."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from distill.engine import Engine

_MILLIJOULES = 1000.0


@dataclass(frozen=True)
class EnergyCounter:
    """The energy counter of a GPU.

    Attributes:
        gpu: the UUID of the GPU.
        read_j: returns its energy in joules since the driver was loaded; None if it cannot be read.
    """

    gpu: str
    read_j: Callable[[], float | None]


class EnergyMeter:
    """Joules of all GPUs of a run, over all its sessions, from its creation on.

    The counters are those of whole GPUs, so what other programs use on the same GPU is counted too,
    and what is not on a GPU never. GPUs before Volta, parts of a GPU (MIG) and other makes have no
    such counter; then nothing is measured.

    Args:
        counter: of this process's device; None if it has none.
    """

    def __init__(self, engine: Engine, counter: EnergyCounter | None) -> None:
        self._engine, self._counter = engine, counter
        self._start_j = counter.read_j() if counter else None
        self._earlier_j: float | None = 0.0

    def add_earlier(self, joules: float | None) -> None:
        """Add the sessions before this one; None if one of them was not measured."""
        self._earlier_j = joules

    def joules(self) -> float | None:
        """Return the energy of the run so far; None unless it was measured on each GPU in each
        session. Collective: every rank.
        """
        used = self._used_j()
        first = self._is_first_on_its_gpu()
        total = torch.tensor(
            [used if used is not None and first else 0.0, float(used is None)],
            dtype=torch.float64,
            device=self._engine.device,
        )
        joules, num_unknown = self._engine.sum_(total).tolist()
        if num_unknown or self._earlier_j is None:
            return None
        return float(self._earlier_j + joules)

    def _used_j(self) -> float | None:
        now_j = self._counter.read_j() if self._counter else None
        if now_j is None or self._start_j is None or now_j < self._start_j:
            return None  # lower: the driver was loaded again
        return now_j - self._start_j

    def _is_first_on_its_gpu(self) -> bool:
        """Whether no lower rank counts the same GPU. Collective: every rank."""
        name = self._counter.gpu if self._counter else ""
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
        rank = self._engine.rank
        keys = torch.zeros(self._engine.world_size, dtype=torch.int64, device=self._engine.device)
        keys[rank] = key
        return key not in self._engine.sum_(keys).tolist()[:rank]


def counter_of(device: torch.device) -> EnergyCounter | None:
    """Return the energy counter of a CUDA device; None for other devices, and for a GPU without."""
    if device.type != "cuda" or torch.version.cuda is None:
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except pynvml.NVMLError:
        return None

    def read_j() -> float | None:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / _MILLIJOULES
        except pynvml.NVMLError:
            return None

    return EnergyCounter(uuid, read_j)
