"""The device of a test: the CPU everywhere, and CUDA where there is a GPU (`-m gpu`). So what a GPU
machine runs is run on every other one too, but for CUDA itself.

Bounds for CUDA are of the rounding of its formats. No GPU has confirmed them yet.
"""

import pytest
import torch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The device of a test; runs of this process take it."""
    if request.param == "cpu":
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return torch.device(request.param)
