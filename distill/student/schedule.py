"""The learning rate as a function of the step."""

import math
from collections.abc import Callable
from functools import partial

import torch

from distill.errors import InputError
from distill.recipe import schema


def lr_at(
    step: int,
    *,
    name: str,
    base_lr: float,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_lr: float = 0.0,
    min_lr: float = 0.0,
    cooldown_steps: int = 0,
    power: float = 1.0,
    milestones_steps: tuple[int, ...] = (),
    decay_factor: float = 0.1,
) -> float:
    """Return the learning rate of the update after `step` updates; 0 is the first.

    Decay counts from step 0 (timm's `warmup_prefix=False`); warm-up, linear from `warmup_lr`,
    replaces its first steps. With t = step / total_steps:

    - cosine: min_lr + (base_lr - min_lr) (1 + cos(pi t)) / 2
    - linear, polynomial: min_lr + (base_lr - min_lr) (1 - t)^power, power 1 for linear
    - step: base_lr * decay_factor^(number of milestones at or before `step`), never below min_lr.
      This is torch's MultiStepLR; timm's drops one step earlier.
    - constant: base_lr; in the last c = `cooldown_steps` steps
      min_lr + (base_lr - min_lr) (total_steps - step) / c

    From `total_steps` on, cosine, linear, polynomial and a constant one with a cool-down stay at
    `min_lr`.
    """
    if step < warmup_steps:
        return warmup_lr + step * (base_lr - warmup_lr) / warmup_steps
    progress = min(step / total_steps, 1.0)
    match name:
        case "cosine":
            return min_lr + 0.5 * (base_lr - min_lr) * (1 + math.cos(math.pi * progress))
        case "linear":
            return min_lr + (base_lr - min_lr) * (1 - progress)
        case "polynomial":
            return min_lr + (base_lr - min_lr) * float((1 - progress) ** power)
        case "step":
            passed = sum(milestone <= step for milestone in milestones_steps)
            return max(min_lr, base_lr * float(decay_factor**passed))
        case "constant":
            left = max(total_steps - step, 0)
            if left >= cooldown_steps:
                return base_lr
            return min_lr + (base_lr - min_lr) * left / cooldown_steps
    raise AssertionError(f"no schedule {name!r}")


def resolve_schedule(
    spec: schema.ScheduleSpec,
    base_lr: float,
    total_steps: int,
    steps_per_epoch: int,
    batch_size_global: int,
    *,
    key: str = "students.*.schedule",
    budget_key: str = "train.budget",
) -> Callable[[int], float]:
    """Return `lr_at` as a function of the step alone, with the durations of `spec` in steps.

    Args:
        total_steps: optimizer steps of the stage.
        key, budget_key: where `spec` and the budget stand in the recipe, for messages.

    Raises:
        InputError: warm-up fills the budget, warm-up and cool-down overlap, or `min_lr` lies above
            `base_lr`.
    """
    lengths = {"steps_per_epoch": steps_per_epoch, "batch_size_global": batch_size_global}
    warmup_steps = spec.warmup.steps(**lengths)
    if warmup_steps >= total_steps:
        raise InputError(
            f"{key}.warmup: {spec.warmup} is {warmup_steps} steps and the whole budget is"
            f" {total_steps}: write {key}.warmup='{total_steps // 20} iterations', or lengthen"
            f" {budget_key}"
        )
    cooldown_steps = spec.cooldown.steps(**lengths)
    if warmup_steps + cooldown_steps > total_steps:
        raise InputError(
            f"{key}.cooldown: {spec.cooldown} is {cooldown_steps} steps, and of {budget_key},"
            f" {total_steps} steps, {total_steps - warmup_steps} are left after the warm-up: write"
            f" {key}.cooldown='{(total_steps - warmup_steps) // 5} iterations', or lengthen"
            f" {budget_key}"
        )
    late = [milestone for milestone in spec.milestones if milestone.steps(**lengths) >= total_steps]
    if late:
        raise InputError(
            f"{key}.milestones: {late[0]} lies at or beyond {budget_key}, {total_steps} steps, and"
            " would never come"
        )
    if spec.min_lr > base_lr:
        raise InputError(
            f"{key}.min_lr: {spec.min_lr:g} lies above optimizer.lr {base_lr:g}: lower one or raise"
            " the other"
        )
    return partial(
        lr_at,
        name=spec.name,
        base_lr=base_lr,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        warmup_lr=spec.warmup_lr,
        min_lr=spec.min_lr,
        cooldown_steps=cooldown_steps,
        power=spec.power,
        milestones_steps=tuple(milestone.steps(**lengths) for milestone in spec.milestones),
        decay_factor=spec.decay_factor,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every parameter group to `lr` times its `lr_scale` (timm's layer-wise decay), as a Python
    float, so that no device is waited for.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"] if "lr_scale" in group else lr
