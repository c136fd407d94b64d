"""The pace of a run: the time left, and losses without a wait for the device."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ticking import Ticking

from distill.training.clock import Clock
from distill.training.live_losses import LiveLosses
from distill.training.plan import StagePlan


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Ticking:
    time = Ticking()
    monkeypatch.setattr("distill.training.clock.time", time)
    monkeypatch.setattr("distill.training.live_losses.time", time)
    return time


def test_the_time_left_follows_recent_steps_and_counts_evaluations_to_come(
    ticking: Ticking,
) -> None:
    clock = Clock(1)
    clock.start(10)
    assert clock.left_s(90, {"evaluating": 3}) is None
    ticking.now += 20  # workers start
    clock.stepped(11)
    assert clock.step_s == 20
    for step in range(12, 15):
        ticking.now += 2
        clock.stepped(step)
    assert clock.step_s == 2, "the first step is left out as soon as there is another"
    assert clock.left_s(86, {"evaluating": 3}) == 172
    with clock.paused("evaluating"):
        ticking.now += 7
    assert clock.step_s == 2, "an evaluation does not make steps slower"
    assert clock.left_s(86, {"evaluating": 3, "saving": 5}) == 172 + 3 * 7
    for step in range(15, 200):
        ticking.now += 1
        clock.stepped(step)
    assert clock.step_s == 1, "the last half minute counts"
    assert clock.trained_s == 20 + 6 + 185


@pytest.mark.parametrize("every", [1, 3, 4, 10, 99])
def test_what_is_still_due_is_counted(every: int) -> None:
    stage: Any = SimpleNamespace(first_step=5, last_step=15)
    for step in range(20):
        later = [
            other
            for other in range(step + 1, 20)
            if other <= 15 and StagePlan.due(stage, every, other)
        ]
        assert StagePlan.num_due(stage, every, step) == len(later), step


class SumOfLosses:
    """A student as far as its losses go."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.take()

    def take(self) -> None:
        self.losses = SimpleNamespace(sums=torch.zeros(5), steps=0)

    def learn(self, loss: float) -> None:
        self.losses.sums[0] += loss
        self.losses.steps += 1


def test_losses_are_shown_from_the_first_step_as_the_mean_since_the_log(ticking: Ticking) -> None:
    """Of two processes this one adds half of each global batch's loss; what a resume brought is not
    its own.
    """
    engine: Any = SimpleNamespace(device=torch.device("cpu"), world_size=2)
    a: Any = SumOfLosses("a")
    b: Any = SumOfLosses("b")
    a.learn(100)  # before the resume, of all processes
    live = LiveLosses(engine, [a, b])
    assert live.poll([a, b]) == {}
    a.learn(0.5)
    b.learn(1.5)
    assert live.poll([a, b]) == {"a": 1.0, "b": 3.0}
    a.learn(1.5)
    assert live.poll([a]) == {}, "four times a second"
    ticking.now += 1
    assert live.poll([a]) == {"a": 2.0}
    a.take()
    a.learn(4.0)
    ticking.now += 1
    assert live.poll([a]) == {"a": 8.0}


@pytest.mark.gpu
def test_reading_losses_waits_for_no_device() -> None:
    """A poll returns while the device is busy, and what it asked for is there when the device has
    come to it.
    """
    device = torch.device("cuda")
    engine: Any = SimpleNamespace(device=device, world_size=1)
    student: Any = SumOfLosses("a")
    student.losses.sums = student.losses.sums.to(device)
    live = LiveLosses(engine, [student])
    matrix = torch.rand(4096, 4096, device=device)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.current_stream()):
        torch.cuda.set_sync_debug_mode("error")
        try:
            student.losses.sums += 2.0
            student.losses.steps += 1
            for _ in range(50):
                matrix = matrix @ matrix
            student.losses.sums += matrix[0, 0] * 0
            assert live.poll([student]) == {}
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert "a" in live.poll([student])
