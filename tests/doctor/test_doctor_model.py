"""The predicted time of a step equals results computed by hand."""

import dataclasses
from typing import Any

import pytest
from profiles_by_hand import (
    EXACT,
    GPU,
    STUDENT_MODEL,
    STUDENT_PASS,
    TEACHER_MODEL,
    TEACHER_PASS,
    cluster,
)

from distill.doctor.model import (
    Assumptions,
    Cluster,
    all_reduce_bytes,
    crossover_images,
    gather_bytes,
    gpu_hours,
    pass_seconds,
    step,
    student_sync_bytes,
    wire_seconds,
)
from distill.doctor.profiles import (
    Layout,
    Line,
    Product,
    through,
)


def test_a_pass_is_bound_by_flops_or_by_traffic_kernel_by_kernel() -> None:
    # Of 10 images: 2e10 FLOP at 2e12 FLOP/s are 10 ms; 1.01e6 bytes at 1e9 B/s 1 ms, so FLOPs
    # decide. The rest: 1e7 bytes, 10 ms.
    assert pass_seconds(TEACHER_PASS, 10, GPU, "bf16", EXACT) == pytest.approx(0.020)
    # A product of few FLOPs waits for memory: 1.01e6 bytes, 1.01 ms.
    thin = dataclasses.replace(
        TEACHER_PASS, products=(Product(Line(0, 1e3), Line(1e6, 1e3)),), other_bytes=Line()
    )
    assert pass_seconds(thin, 10, GPU, "bf16", EXACT) == pytest.approx(0.00101)
    # Half the fraction, twice the time of the products, three passes of them, and the traffic of
    # the other kernels once.
    slow = dataclasses.replace(EXACT, product_fraction=0.5)
    assert pass_seconds(STUDENT_PASS, 10, GPU, "fp32", slow) == pytest.approx(3 * 0.020 + 0.020)
    assert pass_seconds(
        STUDENT_PASS, 10, GPU, "fp32", dataclasses.replace(EXACT, mfu=0.25)
    ) == pytest.approx(3e10 / 0.25e12)


def test_bytes_on_the_wire() -> None:
    assert all_reduce_bytes(100, 4) == 150
    assert gather_bytes(100, 4) == 75
    assert all_reduce_bytes(100, 1) == gather_bytes(100, 1) == 0
    unit = 4e6 * 3 / 4
    for stage, times in ((0, 2), (1, 2), (2, 6), (3, 15)):
        assert (
            student_sync_bytes(STUDENT_MODEL, Layout(4, 2, num_forwards=5, zero_stage=stage))
            == times * unit
        )


def test_a_ring_runs_at_its_slowest_link() -> None:
    one_node = Cluster(GPU, 8, gpus_per_node=8, network_bytes_s=2e7)
    two_nodes = dataclasses.replace(one_node, num_gpus=16)
    assert wire_seconds(1e8, 0, one_node, EXACT, ways=2) == pytest.approx(1.0)
    assert wire_seconds(1e8, 0, two_nodes, EXACT, ways=2) == pytest.approx(5.0)
    assert wire_seconds(
        1e8, 0, dataclasses.replace(two_nodes, network_bytes_s=1e9), EXACT, ways=2
    ) == pytest.approx(1.0)
    hops = dataclasses.replace(EXACT, hop_s=1.0)
    assert wire_seconds(0, 3, two_nodes, hops, ways=2) == 3 * 2 * 4
    assert wire_seconds(1e8, 3, dataclasses.replace(one_node, num_gpus=1), hops, ways=2) == 0


def test_a_step_adds_what_the_device_does() -> None:
    found = step(
        TEACHER_MODEL,
        [STUDENT_MODEL, STUDENT_MODEL],
        Layout(1, 10, num_forwards=2),
        cluster(),
        EXACT,
    )
    assert found.teacher_s == pytest.approx(2 * 0.020)
    assert found.student_s == pytest.approx(2 * 2 * (0.030 + 0.020))
    assert found.gather_s == found.sync_s == 0
    # (3 x 4e6 + 2 x 8e6 + 3 x 4e6 of the average) bytes of each student at 1e9 B/s
    assert found.update_s == pytest.approx(2 * 0.040)
    assert found.seconds == pytest.approx(0.04 + 0.2 + 0.08)
    assert (found.images, found.bound) == (20, "students")
    assert found.images_s == pytest.approx(20 / 0.32)
    assert found.fraction_of_peak == pytest.approx((2 * 2e10 / 2e12 + 4 * 3e10 / 1e12) / 0.32)
    assert gpu_hours(3600, found.seconds, 8) == pytest.approx(8 * 0.32)


@pytest.mark.parametrize(
    ("changes", "assumed", "bound"),
    [
        ({}, EXACT, "students"),
        ({"decode_images_s": 1.0, "decoders": 1}, EXACT, "data"),
        ({}, dataclasses.replace(EXACT, host_s_per_kernel=1.0), "host"),
        ({"num_gpus": 16, "network_bytes_s": 1e3}, EXACT, "communication"),
    ],
)
def test_what_binds_is_named(changes: dict[str, Any], assumed: Assumptions, bound: str) -> None:
    there = cluster(**changes)
    found = step(TEACHER_MODEL, [STUDENT_MODEL], Layout(there.num_gpus, 10), there, assumed)
    assert found.bound == bound
    if bound == "data":
        assert found.seconds == 10
    if bound == "host":
        assert found.seconds == 30


def test_the_teacher_binds_where_it_is_slower() -> None:
    slow = dataclasses.replace(
        TEACHER_MODEL,
        dtype="fp32",
        forward=dataclasses.replace(TEACHER_PASS, products=TEACHER_PASS.products * 9),
    )
    assert step(slow, [STUDENT_MODEL], Layout(1, 10), cluster(), EXACT).bound == "teacher"


def test_communication_hides_behind_computing_but_for_its_last_piece() -> None:
    there = cluster(2, gpus_per_node=2)
    layout = Layout(2, 10, teacher_placement="zero3")
    found = step(TEACHER_MODEL, [STUDENT_MODEL], layout, there, EXACT)
    # 1e6 bytes at 1e8 B/s are 10 ms, behind a forward of 20 ms; the one layer there is cannot hide
    # behind itself.
    assert (found.gather_bytes, found.gather_s) == (1e6, pytest.approx(0.010))
    # 4e6 bytes, 40 ms, behind two thirds of 50 ms; one bucket.
    assert (found.sync_bytes, found.sync_s) == (4e6, pytest.approx(0.040))
    many = dataclasses.replace(
        TEACHER_MODEL,
        forward=dataclasses.replace(TEACHER_PASS, products=TEACHER_PASS.products * 10),
    )
    assert step(many, [STUDENT_MODEL], layout, there, EXACT).gather_s == pytest.approx(0.001)
    bare = dataclasses.replace(EXACT, overlap=0)
    assert step(many, [STUDENT_MODEL], layout, there, bare).gather_s == pytest.approx(0.010)
    assert (
        step(
            many, [STUDENT_MODEL], dataclasses.replace(layout, num_forwards=3), there, bare
        ).gather_bytes
        == 3e6
    )


def test_a_gather_hides_from_the_batch_whose_forward_is_as_long() -> None:
    # 1e6 bytes at 1e8 B/s: 10 ms. An image takes 2 ms: 1 of FLOPs and 1 of other traffic. So five
    # images.
    assert crossover_images(TEACHER_MODEL, cluster(2, gpus_per_node=2), EXACT) == 5
    assert crossover_images(TEACHER_MODEL, cluster(16, network_bytes_s=1e3), EXACT) is None


def test_a_line_goes_through_two_counts() -> None:
    assert through(18, 42, 8, 32) == Line(10, 1)
    assert through(18, 42, 8, 32).at(100) == 110
    assert through(5, 5, 8, 32) == Line(5, 0)
