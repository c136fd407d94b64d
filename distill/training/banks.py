"""CRD's banks in a run: which samples they are of, and whether they fit in memory."""

import os
from collections.abc import Hashable, Iterator, Sequence

from distill.engine import Engine
from distill.engine.host_memory import available_bytes
from distill.errors import InputError
from distill.losses.bank import bank_bytes
from distill.losses.hint import Samples
from distill.recipe import schema
from distill.training.plan import StagePlan


def stage_samples(stage: StagePlan, seed: int, engine: Engine) -> Samples:
    """Return the samples that a stage trains on."""
    return Samples(
        seed=seed,
        count=stage.order.num_samples,
        rows_of=stage.order.rows_of,
        key=_key(stage),
        labelled=stage.labelled,
        device=engine.device,
        num_processes=engine.world_size,
    )


def _key(stage: StagePlan) -> Hashable:
    data = stage.recipe.data
    return data.train.model_dump_json(), data.fraction, data.keep_classes


def _banks(stages: Sequence[StagePlan], name: str) -> Iterator[tuple[StagePlan, schema.CRDSpec]]:
    for stage in stages:
        hint = stage.recipe.students[name].objective.hint
        if isinstance(hint, schema.CRDSpec):
            yield stage, hint


def described_banks(stages: Sequence[StagePlan]) -> list[str]:
    """Return the size of each student's bank, a line each.

    Raises:
        InputError: more negatives than samples, stages that keep a bank in different places, or
            banks of several data sets under ZeRO.
    """
    lines = []
    for name in stages[0].recipe.students:
        found = list(_banks(stages, name))
        for stage, spec in found:
            key = f"{stage.key}students.{name}.objective.hint"
            count = stage.order.num_samples
            if spec.reference == "original" and spec.negatives > count:
                raise InputError(
                    f"{key}.negatives: {spec.negatives:,} are drawn without replacement"
                    f" (reference: original), and there are {count:,} training images: set it to"
                    f" {count:,} or less"
                )
            size = shown_bytes(bank_bytes(count, spec.width))
            lines.append(
                f"{name}: {count:,} x {spec.width} x 2, {size} on the {spec.bank}; negatives are"
                f" {'of other classes' if stage.labelled else 'all other images'}"
            )
        if len({spec.bank for _, spec in found}) > 1:
            raise InputError(
                f"students.{name}.objective.hint.bank: differs between the stages, and the bank of"
                " one would be lost at the start of the next: give all stages the same"
            )
        zero_stage = stages[0].recipe.train.zero_stage
        if zero_stage and len({_key(stage) for stage, _ in found}) > 1:
            raise InputError(
                f"students.{name}.objective.hint: the stages train on other images, and CRD needs"
                f" a new bank for them, which is not possible with train.zero_stage {zero_stage}:"
                " use zero_stage: 0"
            )
    return list(dict.fromkeys(lines))


def refuse_large_banks(stages: Sequence[StagePlan], engine: Engine) -> None:
    """Raises InputError if the banks of all students do not fit in the free memory of the device
    or of the host.
    """
    free_on_device = engine.free_memory_bytes()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", engine.world_size))
    for place in ("device", "host"):
        needed, first = 0, ""
        for name in stages[0].recipe.students:
            sizes = {
                (
                    _key(stage),
                    spec.heads,
                    stage.recipe.students[name].objective.hint_teacher,
                ): bank_bytes(stage.order.num_samples, spec.width)
                for stage, spec in _banks(stages, name)
                if spec.bank == place
            }
            # A new bank is made before the one of the previous stage is freed.
            needed += sum(sorted(sizes.values())[-2:])
            first = first or (name if sizes else "")
        if place == "device" and free_on_device is not None:
            free, where, fix = free_on_device, f"the free memory of {engine.device}", "bank: host"
        else:
            free, where, fix = available_bytes() // processes, "the host's available memory", ""
            if processes > 1:
                where += f" for each of {processes} processes"
        if needed > free:
            fix = f"set {fix}, or a smaller width" if fix else "set a smaller width"
            raise InputError(
                f"students.{first}.objective.hint: CRD's bank of all training images takes"
                f" {shown_bytes(needed)} on the {place}, and {where} is {shown_bytes(free)}: {fix}"
            )


def shown_bytes(num_bytes: int) -> str:
    """Return a size as text."""
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:,.2f} MB"
