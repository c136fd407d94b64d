"""The predicted memory of a process equals results computed by hand."""

import dataclasses
from typing import Any

import pytest
from profiles_by_hand import (
    STUDENT_MODEL,
    TEACHER_MODEL,
)

from distill.doctor.memory import (
    BUCKET_SCALARS,
    COPY,
    EMA,
    GATHERED,
    GRADIENTS,
    OPTIMIZER,
    RESERVE,
    TEACHER,
    WEIGHTS,
    WORKING,
    Reserve,
    estimate,
    student_bytes,
)
from distill.doctor.profiles import (
    Layout,
    Line,
    StudentProfile,
)
from distill.doctor.reach import checkpoint_bytes, shared_memory_bytes
from distill.engine import zero
from distill.recipe import load_recipe

NO_RESERVE = Reserve(0, 0)


@pytest.mark.parametrize(
    ("stage", "offload", "device", "host"),
    [
        (
            0,
            False,
            {WEIGHTS: 4_000_500, GRADIENTS: 4e6, OPTIMIZER: 8e6, COPY: 0, EMA: 4_000_500},
            {},
        ),
        (
            1,
            False,
            {WEIGHTS: 4_000_500, GRADIENTS: 4e6, OPTIMIZER: 2e6, COPY: 1e6, EMA: 1_000_500},
            {},
        ),
        (
            2,
            False,
            {WEIGHTS: 4_000_500, GRADIENTS: 1e6, OPTIMIZER: 2e6, COPY: 1e6, EMA: 1_000_500},
            {},
        ),
        (
            3,
            False,
            {WEIGHTS: 1_000_500, GRADIENTS: 1e6, OPTIMIZER: 2e6, COPY: 0, EMA: 1_000_500},
            {},
        ),
        (1, True, {WEIGHTS: 4_000_500, GRADIENTS: 4e6}, {OPTIMIZER: 2e6, COPY: 1e6}),
        (2, True, {WEIGHTS: 4_000_500}, {OPTIMIZER: 2e6, COPY: 1e6, GRADIENTS: 1e6}),
        (3, True, {WEIGHTS: 500}, {OPTIMIZER: 2e6, COPY: 1e6, GRADIENTS: 1e6, WEIGHTS: 1e6}),
    ],
)
def test_what_each_stage_shards(
    stage: int, offload: bool, device: dict[str, float], host: dict[str, float]
) -> None:
    found_device, found_host = student_bytes(
        STUDENT_MODEL, Layout(4, 2, zero_stage=stage, zero_offload=offload)
    )
    assert {part: found_device[part] for part in device} == device
    assert found_host == host
    assert not {OPTIMIZER, COPY} & set(found_device) if offload else True


def test_over_one_process_nothing_is_sharded() -> None:
    whole, _ = student_bytes(STUDENT_MODEL, Layout(1, 2))
    assert student_bytes(STUDENT_MODEL, Layout(1, 2, zero_stage=3))[0] == whole


def needed(layout: Layout, *students: StudentProfile, reserve: Reserve = NO_RESERVE) -> Any:
    return estimate(
        TEACHER_MODEL,
        students or [STUDENT_MODEL],
        layout,
        image_size=8,
        num_classes=10,
        reserve=reserve,
    )


def test_a_replicated_teacher_is_whole_and_a_sharded_one_gathered() -> None:
    assert needed(Layout(4, 2)).device[TEACHER] == 2e6
    sharded = needed(Layout(4, 2, teacher_placement="zero3"))
    assert (sharded.device[TEACHER], sharded.device[GATHERED]) == (
        5e5,
        2e6,
    )  # all of it is within the prefetch bucket
    offloaded = needed(Layout(4, 2, teacher_placement="zero3", teacher_offload=True))
    assert TEACHER not in offloaded.device
    assert offloaded.host == {TEACHER: 5e5}


def test_students_add_up_and_activations_do_not() -> None:
    wide = dataclasses.replace(STUDENT_MODEL, working=Line(0, 1e7))
    found = needed(Layout(1, 10), STUDENT_MODEL, wide)
    assert found.device[WORKING] == 1e8
    assert found.device[OPTIMIZER] == 16e6
    assert needed(Layout(1, 10)).device[WORKING] == 1e6 + 3e6
    plain = needed(Layout(1, 10)).total
    assert needed(Layout(1, 10), reserve=Reserve(7, 0.5)).device[RESERVE] == pytest.approx(
        7 + 0.5 * plain
    )
    assert found.lasting == 2e6 + 2 * (4_000_500 + 4e6 + 8e6 + 4_000_500)


def test_checkpoints_and_shared_memory() -> None:
    assert checkpoint_bytes((STUDENT_MODEL,)) == 2 * 4_000_500 + 8_000_000
    recipe = load_recipe("imagenet1k/res50_beitv2b_a1_4800ep")
    sample = 3 * 224 * 224 + 16
    assert shared_memory_bytes(recipe, Layout(8, 256, 4), 16, 8) == 8 * 16 * 3 * 256 * sample
    streamed = load_recipe("imagenet21k/res50_beitv2b_a1_187p5k_187p5k")
    assert (
        shared_memory_bytes(streamed, Layout(8, 256, 4), 16, 8) == 8 * (16 * 3 + 4) * 256 * sample
    )
    assert shared_memory_bytes(streamed, Layout(8, 2, 500), 16, 8) == 8 * (16 * 3 + 64) * 2 * sample


def test_the_bucket_is_the_engines() -> None:
    assert BUCKET_SCALARS == zero.BUCKET_SCALARS
