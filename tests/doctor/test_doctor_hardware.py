"""GPUs are found by their names."""

import pytest

from distill.doctor.hardware import GPUS, find_gpu, recognise
from distill.errors import InputError


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("Matrox G200", None),
    ],
)
def test_a_driver_s_name_is_recognised(name: str, gpu: str | None) -> None:
    found = recognise(name)
    assert (found and found.name) == gpu


def test_a_gpu_without_bf16_says_so() -> None:
    assert find_gpu("A100_80") is GPUS["a100-80"]
    with pytest.raises(InputError, match="has no fast bf16"):
        GPUS["v100"].peak("bf16")
