"""What every test runs under: no network, one thread, and a reason where a GPU is missing."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported
# Tests are many small operations, often beside other processes: two threads that wait for each other took nine times as long.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch


def pytest_configure() -> None:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch sees none"))
