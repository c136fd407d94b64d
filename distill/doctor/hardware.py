"""GPUs in the data sheets of their vendors: peak rates of dense products, memory, links. Nothing
here was measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from distill.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Gpu:
    """One GPU, from its vendor's data sheet (G = 1e9).

    Attributes:
        peak_flops: FLOP/s of dense products with float32 sums, by dtype. "fp32" is TF32 if the GPU
            has it, which the engine switches on. The GPU has no fast path for a missing dtype.
        memory_bytes, memory_bytes_s: size and bandwidth of its memory.
        link_bytes_s: to another GPU in the same node, in one direction: NVLink, else PCI Express.
        names: parts of its name in the driver, in lower case.
    """

    name: str
    label: str
    peak_flops: Mapping[str, float]
    memory_bytes: float
    memory_bytes_s: float
    link_bytes_s: float
    link: str
    names: tuple[str, ...] = ()

    def peak(self, dtype: str) -> float:
        """The FLOP/s of dense products in "fp32", "bf16" or "fp16".

        Raises:
            InputError: the GPU has no fast products in that dtype.
        """
        if dtype not in self.peak_flops:
            raise InputError(
                f"{self.label} has no fast {dtype}: it has {', '.join(self.peak_flops)}"
            )
        return self.peak_flops[dtype]


def _gpu(
    name: str,
    label: str,
    *,
    half: float,
    single: float,
    gb: float,
    tb_s: float,
    link: tuple[str, float],
    names: tuple[str, ...],
    bf16: bool = True,
) -> Gpu:
    """Builds a Gpu from the units of data sheets: TFLOP/s, GB, TB/s, GB/s in one direction."""
    peaks = {"fp32": single * 1e12, "fp16": half * 1e12} | ({"bf16": half * 1e12} if bf16 else {})
    return Gpu(name, label, peaks, gb * 1e9, tb_s * 1e12, link[1] * 1e9, link[0], names)


# Rates are dense; data sheets also print rates with 2:4 sparsity, which are twice as high. NVLink
# rates are for one direction; data sheets add both. Consumer GPUs are from NVIDIA's architecture
# papers, for half-precision products with float32 sums.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu(
            "b200",
            "NVIDIA B200",
            half=2250,
            single=1125,
            gb=180,
            tb_s=8.0,
            link=("NVLink", 900),
            names=("b200",),
        ),
        _gpu(
            "h200",
            "NVIDIA H200",
            half=989.4,
            single=494.7,
            gb=141,
            tb_s=4.8,
            link=("NVLink", 450),
            names=("h200",),
        ),
        _gpu(
            "h100",
            "NVIDIA H100 SXM",
            half=989.4,
            single=494.7,
            gb=80,
            tb_s=3.35,
            link=("NVLink", 450),
            names=("h100 80gb hbm3", "h100 sxm"),
        ),
        _gpu(
            "h100-pcie",
            "NVIDIA H100 PCIe",
            half=756,
            single=378,
            gb=80,
            tb_s=2.0,
            link=("PCIe 5", 64),
            names=("h100 pcie",),
        ),
        _gpu(
            "a100-80",
            "NVIDIA A100 SXM 80 GB",
            half=312,
            single=156,
            gb=80,
            tb_s=2.039,
            link=("NVLink", 300),
            names=("a100-sxm4-80gb", "a100 80gb"),
        ),
        _gpu(
            "a100-40",
            "NVIDIA A100 SXM 40 GB",
            half=312,
            single=156,
            gb=40,
            tb_s=1.555,
            link=("NVLink", 300),
            names=("a100-sxm4-40gb", "a100-pcie-40gb"),
        ),
        _gpu(
            "v100",
            "NVIDIA V100 SXM2 32 GB",
            half=125,
            single=15.7,
            gb=32,
            tb_s=0.9,
            link=("NVLink", 150),
            names=("v100",),
            bf16=False,
        ),
        _gpu(
            "l40s",
            "NVIDIA L40S",
            half=362.05,
            single=183,
            gb=48,
            tb_s=0.864,
            link=("PCIe 4", 32),
            names=("nvidia l40s",),
        ),
        _gpu(
            "l4",
            "NVIDIA L4",
            half=121,
            single=60,
            gb=24,
            tb_s=0.3,
            link=("PCIe 4", 32),
            names=("nvidia l4",),
        ),
        _gpu(
            "rtx4090",
            "NVIDIA RTX 4090",
            half=165.2,
            single=82.6,
            gb=24,
            tb_s=1.008,
            link=("PCIe 4", 32),
            names=("rtx 4090",),
        ),
        _gpu(
            "rtx3090",
            "NVIDIA RTX 3090",
            half=71,
            single=35.6,
            gb=24,
            tb_s=0.936,
            link=("PCIe 4", 32),
            names=("rtx 3090",),
        ),
    )
}

SOURCE = "vendor data sheet, dense"


def find_gpu(name: str) -> Gpu:
    """Returns a GPU of the table by its short name.

    Raises:
        InputError: there is no such GPU; the message names the nearest.
    """
    key = name.lower().replace("_", "-").replace(" ", "-")
    if key not in GPUS:
        raise InputError(
            f"--gpu {name}: not in the table{did_you_mean(key, GPUS)}: it has {', '.join(GPUS)}"
        )
    return GPUS[key]


def recognise(device_name: str) -> Gpu | None:
    """Returns the GPU for a driver's name, such as "NVIDIA A100-SXM4-80GB"; None if the table lacks
    it.
    """
    name = device_name.lower()
    found = [gpu for gpu in GPUS.values() if any(known in name for known in gpu.names)]
    # "NVIDIA L4" is the start of "NVIDIA L40S", so the longest name that matches wins.
    return max(
        found, key=lambda gpu: max(len(known) for known in gpu.names if known in name), default=None
    )
