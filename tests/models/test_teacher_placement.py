"""Placement of the teacher on one process; tests/distributed/test_zero.py has several."""

from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from tiny import sees

from distill.engine import Engine
from distill.errors import InputError
from distill.models.teacher import Teacher
from distill.training.teachers import place_teacher


def teacher(dtype: torch.dtype = torch.float32) -> Teacher:
    net = timm.create_model("test_vit", num_classes=10, patch_size=4, img_size=32)
    return Teacher(net, sees(32), num_classes=10, dtype=dtype, source="test_vit, random weights")


def device_with(free: int, num_processes: int = 1) -> Any:
    """The part of an engine that placing a teacher uses."""
    return SimpleNamespace(
        world_size=num_processes,
        device=torch.device("cpu"),
        free_memory_bytes=lambda: free,
        place=lambda module, partitioned=False: module,
        compile_=lambda module: None,
        partition_frozen=lambda net, offload, dtype: net,
    )


def test_a_teacher_that_outgrows_the_device_is_refused_with_what_would_fit() -> None:
    size = sum(tensor.nbytes for tensor in (*teacher().parameters(), *teacher().buffers()))
    with pytest.raises(
        InputError,
        match=r"teacher: test_vit, random weights takes .* set teacher\.dtype: bf16 or .*zero3",
    ):
        place_teacher(teacher(), device_with(size - 1))
    with pytest.raises(
        InputError, match=r"set teacher\.placement: zero3 on several processes; `distill doctor"
    ):
        place_teacher(teacher(torch.bfloat16), device_with(size // 4))
    assert place_teacher(teacher(), device_with(size)) is not None
    assert (
        place_teacher(teacher(), device_with(size // 2 + 1, num_processes=2), placement="zero3")
        is not None
    )
    with pytest.raises(InputError, match=r"teacher\.dtype: bf16 or teacher\.offload: true"):
        place_teacher(teacher(), device_with(size // 2 - 1, num_processes=2), placement="zero3")
    assert place_teacher(teacher(), device_with(0), placement="zero3", offload=True) is not None
    with pytest.raises(InputError, match=r"teacher\.dtype: bf16 or teacher\.offload: true"):
        place_teacher(teacher(), device_with(0), placement="zero3")


def test_one_process_partitions_nothing() -> None:
    """Without DeepSpeed and a group the teacher computes the same."""
    engine = Engine(precision="fp32", zero_stage=3)
    try:
        assert not engine.partitioned
        placed = place_teacher(teacher(), engine, placement="zero3")
        assert placed is not None
        assert placed.model.net is placed.net
    finally:
        engine.close()
