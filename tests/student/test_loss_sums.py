"""Loss sums of an unfinished log interval, in checkpoints of this and of earlier versions."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distill.student.loss_sums import Losses
from distill.student.student import Student


@pytest.mark.parametrize(
    ("sums", "kept"),
    [
        ({"total": 3.0, "hard": 1.0, "soft": 2.0, "kept": 0.5}, 0.5),
        ({"total": 3.0, "hard": 1.0, "soft": 2.0, "hint": 0.0, "kept": 0.5}, 0.5),
        ([3.0, 1.0, 2.0, 0.0, 0.5], 0.5),  # with a place for a hint
        ([3.0, 1.0, 2.0, 0.0], 0.0),  # before "kept"
    ],
)
def test_each_sum_is_loaded_under_its_name(sums: Any, kept: float) -> None:
    student: Any = SimpleNamespace(
        placement=SimpleNamespace(load=lambda *_: None),
        engine=SimpleNamespace(is_main=True, device=torch.device("cpu")),
        _no_losses=lambda: Losses(torch.zeros(len(Losses.NAMES))),
    )
    losses = {"sums": sums, "steps": 2, "present": ["total", "hard", "soft"]}
    Student.load(student, {}, {"stopped_at": None, "losses": losses})
    found = dict(zip(Losses.NAMES, student.losses.sums.tolist(), strict=True))
    assert found == {
        "total": 3.0,
        "hard": 1.0,
        "soft": 2.0,
        "hint": 0.0,
        "kept": kept,
        "masked": 0.0,  # of versions since
    }
    assert student.losses.steps == 2
