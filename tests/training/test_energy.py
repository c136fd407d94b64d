"""The energy of a run: joules over GPUs and sessions, or None where any of it was not measured."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from distill.training.energy import EnergyCounter, EnergyMeter, counter_of


def engine(others: list[torch.Tensor], rank: int = 0, world_size: int = 1) -> Any:
    """The part of an engine that the meter uses; `others`: what other ranks add to each sum."""

    def sum_(tensor: torch.Tensor) -> torch.Tensor:
        return tensor + others.pop(0) if others else tensor

    return SimpleNamespace(device=torch.device("cpu"), rank=rank, world_size=world_size, sum_=sum_)


def counter(*readings: float | None, gpu: str = "GPU-1") -> EnergyCounter:
    values: Iterator[float | None] = iter(readings)
    return EnergyCounter(gpu, lambda: next(values))


def test_energy_is_what_the_counter_rose_by_and_adds_up_over_sessions() -> None:
    meter = EnergyMeter(engine([]), counter(1000.0, 1250.0, 1300.0))
    assert meter.joules() == 250.0
    meter.add_earlier(70.0)
    assert meter.joules() == 370.0


@pytest.mark.parametrize(
    "readings", [(None, 5.0), (5.0, None), (5.0, 4.0)], ids=["start", "end", "reset"]
)
def test_a_counter_that_cannot_be_trusted_measures_nothing(
    readings: tuple[float | None, ...],
) -> None:
    assert EnergyMeter(engine([]), counter(*readings)).joules() is None
    assert EnergyMeter(engine([]), None).joules() is None


def test_a_session_that_was_not_measured_makes_the_run_unknown() -> None:
    meter = EnergyMeter(engine([]), counter(1.0, 2.0))
    meter.add_earlier(None)
    assert meter.joules() is None


def test_gpus_add_up_and_each_counts_once() -> None:
    own = EnergyMeter(engine([], world_size=2), counter(0.0, 5.0))
    first_of_two = [torch.tensor([0, 77]), torch.tensor([30.0, 0.0])]
    assert EnergyMeter(engine(first_of_two, 0, 2), counter(0.0, 5.0)).joules() == 35.0
    key = torch.zeros(2, dtype=torch.int64)
    own._engine.sum_ = lambda tensor: key.copy_(tensor)
    own._is_first_on_its_gpu()
    same_gpu = [torch.tensor([int(key[0]), 0]), torch.tensor([30.0, 0.0])]
    assert EnergyMeter(engine(same_gpu, 1, 2), counter(0.0, 5.0)).joules() == 30.0
    unknown = [torch.tensor([77, 0]), torch.tensor([0.0, 1.0])]
    assert EnergyMeter(engine(unknown, 1, 2), counter(0.0, 5.0)).joules() is None


def test_a_run_without_a_gpu_records_that_nothing_was_measured(tiny_run: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a machine without a GPU is what this is about")
    assert json.loads((tiny_run / "report.json").read_text())["energy_j"] is None
    assert "energy_j" not in json.loads((tiny.checkpoint(tiny_run) / "state.json").read_text())


@pytest.mark.gpu
def test_a_gpu_has_a_counter_that_rises() -> None:
    found = counter_of(torch.device("cuda", 0))
    assert found is not None
    before = found.read_j()
    matrix = torch.randn(4096, 4096, device="cuda")
    for _ in range(200):
        matrix = torch.tanh(matrix @ matrix)
    torch.cuda.synchronize()
    after = found.read_j()
    assert before is not None
    assert after is not None
    assert after > before
