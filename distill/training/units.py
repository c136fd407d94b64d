"""Durations in another unit than the budget: an epoch has as many iterations as the data say."""

from collections.abc import Iterator

from distill.errors import InputError
from distill.recipe import DurationValue, Recipe, schema
from distill.recipe.duration import InheritedDuration


def refuse_too_long(recipe: Recipe) -> None:
    """Check what needs no data: iterations and samples, and epochs, which have at least one
    iteration.

    Raises:
        InputError: a duration is not shorter than the budget of its stage.
    """
    batch = recipe.train.batch_size_global
    for key, part, budget_key, budget in _in_other_units(recipe):
        if budget.unit == "epochs":
            continue
        least, whole = (
            each.steps(steps_per_epoch=1, batch_size_global=batch) for each in (part, budget)
        )
        if least >= whole:
            at_least = "at least " if part.unit == "epochs" else ""
            raise InputError(
                f"{key}: {part}, {at_least}{least:,} steps, is not shorter than {budget_key},"
                f" {budget}, {whole:,} steps: lower it, or train longer"
            )


def not_compared(recipe: Recipe) -> list[str]:
    """Return a sentence for each duration that only data which are not here compare with the
    budget.
    """
    return [
        f"{key}: {part}, and {budget_key} is {budget}: which is longer is known once the data are"
        for key, part, budget_key, budget in _in_other_units(recipe)
        if "epochs" in (part.unit, budget.unit)
    ]


def _in_other_units(recipe: Recipe) -> Iterator[tuple[str, DurationValue, str, DurationValue]]:
    """Yields the key and value of each duration whose unit is not that of its budget, and those of
    the budget. Warm-ups that follow the budget are left out.
    """
    for index, prefix in enumerate(recipe.stage_keys):
        own = recipe.at_stage(index)
        budget, budget_key = own.train.budget, f"{prefix}budget" if prefix else "train.budget"
        if budget is None:
            continue
        for name, student in own.students.items():
            for key, part in _durations(student):
                if part.amount and part.unit != budget.unit:
                    yield f"{prefix}students.{name}.{key}", part, budget_key, budget


def _durations(student: schema.StudentSpec) -> Iterator[tuple[str, DurationValue]]:
    schedule, hint = student.schedule, student.objective.hint
    if schedule.over == "stage":
        if not isinstance(schedule.warmup, InheritedDuration):
            yield "schedule.warmup", schedule.warmup
        yield "schedule.cooldown", schedule.cooldown
        for milestone in schedule.milestones:
            yield "schedule.milestones", milestone
    if isinstance(hint, schema.ReviewKDSpec):
        epochs = DurationValue(hint.warmup_epochs, "epochs")
        yield "objective.hint.warmup_epochs", epochs
