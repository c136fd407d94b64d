"""A GPU and two models with round numbers, for results that can be computed by hand."""

from typing import Any

from distill.doctor.hardware import Gpu
from distill.doctor.model import (
    Assumptions,
    Cluster,
)
from distill.doctor.profiles import (
    Line,
    Pass,
    Product,
    StudentProfile,
    TeacherProfile,
)

# Round numbers, so that every expected value below can be worked out by hand.
GPU = Gpu(
    "test",
    "a test GPU",
    {"fp32": 1e12, "bf16": 2e12},
    memory_bytes=1e9,
    memory_bytes_s=1e9,
    link_bytes_s=1e8,
    link="wire",
)


EXACT = Assumptions(
    product_fraction=1, traffic_fraction=1, link_fraction=1, hop_s=0, overlap=1, host_s_per_kernel=0
)


TEACHER_PASS = Pass((Product(Line(0, 2e9), Line(1e6, 1e3)),), 1, Line(0, 1e6), 10)


STUDENT_PASS = Pass((Product(Line(0, 1e9), Line(0, 1e3)),), 3, Line(0, 2e6), 20)


TEACHER_MODEL = TeacherProfile(
    "t",
    parameters=1_000_000,
    weight_bytes=2_000_000,
    largest_bytes=400_000,
    dtype="bf16",
    forward=TEACHER_PASS,
    working=Line(0, 1e5),
    num_classes=10,
)


STUDENT_MODEL = StudentProfile(
    "s",
    "s",
    parameters=1_000_000,
    buffer_bytes=500,
    state_bytes=8_000_000,
    num_emas=1,
    largest_bytes=4_000_000,
    precision="fp32",
    train=STUDENT_PASS,
    kept=Line(0, 2e5),
    working=Line(1e6, 3e5),
    checkpointing=False,
    can_checkpoint=True,
    elementwise=True,
)


def cluster(num_gpus: int = 1, **changes: Any) -> Cluster:
    return Cluster(GPU, num_gpus, **{"decoders": 1000, "decode_images_s": 1e6, **changes})
