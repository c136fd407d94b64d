"""The learning rate by step, against timm's and torch's schedulers."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from optimizer_cases import net, spec
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler
from torch import nn

from distill.errors import InputError
from distill.recipe import schema
from distill.student.optimizer import build_optimizer
from distill.student.schedule import lr_at, resolve_schedule, set_lr

TOTAL, WARMUP = 200, 30


def timm_lrs(make: Callable[[torch.optim.Optimizer], Any], steps: Iterable[int]) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=5e-3)
    scheduler = make(optimizer)
    lrs = []
    for step in steps:
        scheduler.step_update(step)
        lrs.append(optimizer.param_groups[0]["lr"])
    return lrs


def our_lrs(steps: Iterable[int], **keys: Any) -> list[float]:
    values = {
        "base_lr": 5e-3,
        "total_steps": TOTAL,
        "warmup_steps": WARMUP,
        "warmup_lr": 1e-6,
        **keys,
    }
    return [lr_at(step, **values) for step in steps]


def test_cosine_is_timms() -> None:
    steps = range(TOTAL + 20)
    timm = timm_lrs(
        lambda o: CosineLRScheduler(
            o,
            TOTAL,
            lr_min=1e-5,
            warmup_t=WARMUP,
            warmup_lr_init=1e-6,
            warmup_prefix=False,
            t_in_epochs=False,
        ),
        steps,
    )
    assert our_lrs(steps, name="cosine", min_lr=1e-5) == pytest.approx(timm, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize(("name", "power"), [("linear", 1.0), ("polynomial", 2.5)])
def test_polynomials_are_timms(name: str, power: float) -> None:
    steps = range(TOTAL + 20)
    timm = timm_lrs(
        lambda o: PolyLRScheduler(
            o,
            TOTAL,
            power=power,
            lr_min=1e-5,
            warmup_t=WARMUP,
            warmup_lr_init=1e-6,
            t_in_epochs=False,
        ),
        steps,
    )
    assert our_lrs(steps, name=name, power=power, min_lr=1e-5) == pytest.approx(
        timm, rel=1e-9, abs=1e-18
    )


def test_steps_are_torchs_and_timms_one_step_later() -> None:
    steps, milestones = range(TOTAL), (60, 120, 150)
    ours = our_lrs(steps, name="step", milestones_steps=milestones, decay_factor=0.2)
    timm = timm_lrs(
        lambda o: MultiStepLRScheduler(
            o,
            [m + 1 for m in milestones],
            0.2,
            WARMUP,
            1e-6,
            warmup_prefix=False,
            t_in_epochs=False,
        ),
        steps,
    )
    assert ours == pytest.approx(timm, rel=1e-12)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=5e-3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(milestones), gamma=0.2)
    torchs = []
    for _ in steps:
        torchs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert ours[WARMUP:] == pytest.approx(torchs[WARMUP:], rel=1e-12)


def test_min_lr_bounds_the_steps_and_constant_is_constant() -> None:
    assert our_lrs([199], name="step", milestones_steps=(50, 100), min_lr=1e-3) == [1e-3]
    assert our_lrs([0, 29, 30, 500], name="constant") == pytest.approx(
        [1e-6, 1e-6 + 29 * (5e-3 - 1e-6) / 30, 5e-3, 5e-3]
    )


def test_a_cooldown_falls_linearly_to_min_lr() -> None:
    lrs = our_lrs([0, 30, 160, 161, 180, 199, 200, 500], name="constant", cooldown_steps=40)
    down = [5e-3 * left / 40 for left in (39, 20, 1, 0, 0)]
    assert lrs == pytest.approx([1e-6, 5e-3, 5e-3, *down])
    ends = our_lrs([160, 199, 200], name="constant", cooldown_steps=40, min_lr=1e-3)
    assert ends == pytest.approx([5e-3, 1e-3 + 4e-3 / 40, 1e-3])


def test_two_budgets_have_one_rate_up_to_the_first_cooldown() -> None:
    keys = {"name": "constant", "base_lr": 0.3, "warmup_steps": 7, "min_lr": 0.01}
    short = [lr_at(step, total_steps=100, cooldown_steps=20, **keys) for step in range(100)]
    long = [lr_at(step, total_steps=300, cooldown_steps=60, **keys) for step in range(100)]
    assert short[:81] == long[:81]  # exactly
    assert short[81] < long[81]


def schedule(**keys: Any) -> schema.ScheduleSpec:
    return schema.ScheduleSpec.model_validate(keys)


def test_durations_become_steps() -> None:
    keys = {"total_steps": 1000, "steps_per_epoch": 100, "batch_size_global": 64}
    lr = resolve_schedule(schedule(warmup="2 epochs", warmup_lr=0.1), 0.5, **keys)
    assert [lr(0), lr(100)] == pytest.approx([0.1, 0.3])
    assert lr(200) == lr_at(200, name="cosine", base_lr=0.5, total_steps=1000)
    assert lr(199) == pytest.approx(0.498)
    step = resolve_schedule(
        schedule(name="step", milestones=["32000 samples", "600 iterations"]), 0.5, **keys
    )
    assert [step(499), step(500), step(600)] == pytest.approx([0.5, 0.05, 0.005])


def test_impossible_schedules_are_refused() -> None:
    keys = {"total_steps": 500, "steps_per_epoch": 100, "batch_size_global": 64}
    with pytest.raises(
        InputError,
        match=r"students\.a\.schedule\.warmup: 5 epochs is 500 steps and the whole budget is 500",
    ):
        resolve_schedule(schedule(warmup="5 epochs"), 0.5, **keys, key="students.a.schedule")
    with pytest.raises(InputError, match=r"schedule\.min_lr: 0\.7 lies above optimizer\.lr 0\.5"):
        resolve_schedule(schedule(min_lr=0.7), 0.5, **keys)
    overlapping = schedule(name="constant", warmup="1 epochs", cooldown="401 iterations")
    with pytest.raises(InputError, match=r"cooldown: 401 iterations .* 400 are left .*'80 iterat"):
        resolve_schedule(overlapping, 0.5, **keys)
    with pytest.raises(ValueError, match=r"cooldown goes with name: constant; cosine decays"):
        schedule(cooldown="2 epochs")


def test_set_lr_keeps_layer_scales_and_plain_floats() -> None:
    module = net()
    optimizer = build_optimizer(module, spec("adamw", lr=0.4, args={"layer_decay": 0.5}))
    scales = [group["lr_scale"] for group in optimizer.param_groups]
    assert len(set(scales)) > 1
    set_lr(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2 * scale for scale in scales]
    assert all(type(group["lr"]) is float for group in optimizer.param_groups)
