"""`distill doctor`: its arithmetic against cases worked by hand, its counts against real models,
and the command as a user types it.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from command import Cli
from torch import nn

from distill.doctor.findings import Diagnosis
from distill.doctor.hardware import GPUS, Gpu, find_gpu, recognise
from distill.doctor.interconnect import Timing, report_interconnect
from distill.doctor.measure import measure, measure_student, measure_teacher
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
from distill.doctor.meter import Meter, autocast, fake, forward_pass, training_pass
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
    Pass,
    Product,
    StudentProfile,
    TeacherProfile,
    through,
)
from distill.doctor.reach import checkpoint_bytes, shared_memory_bytes
from distill.engine import zero
from distill.errors import InputError
from distill.models.origin import origin_of_teacher
from distill.recipe import load_recipe, schema
from distill.student.optimizer import build_optimizer

ROOT = Path(__file__).resolve().parents[1]

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


# ---- seconds -------------------------------------------------------------------------------------


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


def cluster(num_gpus: int = 1, **changes: Any) -> Cluster:
    return Cluster(GPU, num_gpus, **{"decoders": 1000, "decode_images_s": 1e6, **changes})


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


# ---- bytes ---------------------------------------------------------------------------------------

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


# ---- counts against real models ------------------------------------------------------------------


def real_saved_bytes(model: nn.Module, images: torch.Tensor, precision: str) -> int:
    """Bytes of the storages that autograd really keeps between forward and backward, weights and
    images left out.
    """
    known = {
        tensor.untyped_storage().data_ptr()
        for tensor in (*model.parameters(), *model.buffers(), images)
    }
    found: dict[int, int] = {}
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)  # an address must not be used twice
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast(precision):
        model(images)
    return sum(found.values())


@contextmanager
def as_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without what autocast does on CUDA alone, since what it is compared with runs on the CPU."""
    from contextlib import nullcontext

    with monkeypatch.context() as patch:
        patch.setattr("distill.doctor.meter._AsOnCuda", lambda half: nullcontext())
        yield


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "arguments", "checkpointing"),
    [
        ("resnet18", {}, False),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 4}, False),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 4}, True),
        ("convnextv2_atto", {}, False),
        ("beit_base_patch16_224", {"img_size": 64, "depth": 2}, False),
    ],
)
def test_kept_activations_are_those_that_autograd_keeps(
    name: str,
    arguments: dict[str, Any],
    checkpointing: bool,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build() -> nn.Module:
        model = timm.create_model(name, num_classes=10, **arguments).train()
        model.set_grad_checkpointing(checkpointing)
        return model

    real = real_saved_bytes(build(), torch.rand(16, 3, 64, 64), precision)
    with torch.device("meta"):
        model = build()
    with as_on_the_cpu(monkeypatch), fake(model):
        _, kept, working = training_pass(model, 64, precision, checkpointing=checkpointing)
    assert kept.at(16) == pytest.approx(real, rel=0.02)
    assert working.at(16) >= kept.at(16)


@pytest.mark.filterwarnings("ignore:TF32")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_peak_is_that_of_the_allocator(
    precision: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a transformer without oneDNN: inside its products in bf16, as inside convolutions, kernels
    of the CPU allocate for themselves, which no count of tensors sees: nothing with AVX2, 6 % with
    AVX-512, 1 % where AVX-512 has bf16.
    """

    def build() -> nn.Module:
        model = timm.create_model(
            "vit_tiny_patch16_224", num_classes=10, img_size=64, depth=4
        ).train()
        model.set_grad_checkpointing(checkpointing)
        return model

    model, images = build(), torch.rand(16, 3, 64, 64)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with (
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profiler,
        torch.backends.mkldnn.flags(enabled=False),
    ):
        with autocast(precision):
            logits = model(images)
        logits.float().log_softmax(-1).sum().backward()
    events = [
        event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    peak = max(
        accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    )
    with torch.device("meta"):
        model = build()
    with as_on_the_cpu(monkeypatch), fake(model):
        _, _, working = training_pass(model, 64, precision, checkpointing=checkpointing)
    assert working.at(16) == pytest.approx(peak, rel=0.03)


def test_on_cuda_autocast_keeps_norms_in_float32() -> None:
    """Of a normalisation of half-precision inputs CUDA keeps a float32 copy, the CPU does not."""

    def kept(precision: str) -> float:
        model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(2), nn.LayerNorm(64), nn.Flatten())
        with fake(model):
            return training_pass(model, 8, precision, checkpointing=False)[1].per_image

    conv, norm = 8 * 64, 8 * 64
    # fp32: the convolution's output, kept for the norm; bf16: images cast, output in half, and its
    # float32 copy.
    assert kept("fp32") == pytest.approx(4 * conv + 2 * 4 * 8 + 4 * norm, rel=0.05)
    assert kept("bf16") == pytest.approx(2 * 3 * 64 + 4 * conv + 2 * 4 * 8 + 4 * norm, rel=0.05)


def test_flops_and_traffic_of_one_product() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10, bias=False), nn.ReLU())
    with fake(model):
        forward, working = forward_pass(model, 8)
    assert forward.flops(1) == 2 * 192 * 10
    assert forward.products[0].traffic == Line(4 * 1920, 4 * (192 + 10))
    assert forward.other_bytes == Line(0, 2 * 4 * 10)
    assert forward.num_kernels == 2
    assert working == Line(0, 2 * 4 * 10)  # the product, and what ReLU makes of it
    with fake(model):
        train, _, _ = training_pass(model, 8, "fp32", checkpointing=False)
    assert train.flops(1) == 3 * forward.flops(1)


def test_the_backward_makes_two_products_of_each() -> None:
    """The rule of three, held against a count of the real backward."""
    from torch.utils.flop_counter import FlopCounterMode

    model = timm.create_model("resnet18", num_classes=10)
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.rand(2, 3, 64, 64)).sum().backward()
    with fake(model):
        train, _, _ = training_pass(model, 64, "fp32", checkpointing=False)
    assert train.flops(2) == pytest.approx(
        counter.get_total_flops(), rel=0.04
    )  # the first layer needs no gradient of images


def test_the_meter_sees_memory_come_and_go() -> None:
    with Meter() as meter:
        first = torch.ones(1000)
        second = first + 1
        view = second.view(10, 100)
        assert (meter.live, meter.kernels) == (8000, 2)
        del first
        assert meter.live == 4000
        del second
        assert meter.live == 4000  # the view holds it
        del view
    assert (meter.live, meter.peak) == (0, 8000)


@pytest.mark.parametrize(
    ("name", "moments"), [("momentum", 1), ("adamw", 2), ("lamb", 2), ("lion", 1)]
)
def test_bytes_of_weights_and_optimizer_are_exact(name: str, moments: int) -> None:
    spec = schema.StudentSpec(
        model="resnet18",
        objective=schema.ObjectiveSpec(hard=schema.CESpec(loss="ce")),
        optimizer=schema.OptimizerSpec(name=name, lr=0.1, weight_decay=0.01),
    )
    found = measure_student("s", spec, 10, 32, "bf16")
    real = timm.create_model("resnet18", num_classes=10)
    assert found.weight_bytes == sum(p.numel() * p.element_size() for p in real.parameters())
    assert found.buffer_bytes == sum(b.numel() * b.element_size() for b in real.buffers())
    optimizer = build_optimizer(real, spec.optimizer)
    for parameter in real.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = [
        v
        for s in optimizer.state.values()
        for v in s.values()
        if isinstance(v, torch.Tensor) and v.dim()
    ]
    assert found.state_bytes == sum(tensor.numel() * tensor.element_size() for tensor in state)
    assert found.state_bytes == moments * found.weight_bytes


def test_bytes_of_a_teacher_in_half_precision_leave_batch_norm_wide() -> None:
    spec = schema.TeacherSpec(model="resnet18", weights="pretrained", dtype="bf16")
    found = measure_teacher(
        spec, origin_of_teacher(spec, Path()), None, 96
    )  # timm's own weights keep their size
    real = timm.create_model("resnet18")
    norms = sum(
        p.numel() for m in real.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()
    )
    buffers = sum(b.numel() * b.element_size() for b in real.buffers())
    parameters = sum(p.numel() for p in real.parameters())
    assert found.weight_bytes == 2 * (parameters - norms) + 4 * norms + buffers
    assert (found.parameters, found.num_classes) == (parameters, 1000)


def test_students_that_differ_in_their_loss_are_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = []
    monkeypatch.setattr(
        "distill.doctor.measure.measure_student",
        lambda name, *_: counted.append(name) or STUDENT_MODEL,
    )
    found = measure(load_recipe("quickstart/students", ["teacher.model=cifar_resnet20"]), 10)
    assert counted == ["alone"]
    assert [student.name for student in found.students] == ["alone", "kd", "dkd", "dist"]


# ---- GPUs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("Matrox G200", None),
    ],
)
def test_a_driver_s_name_is_recognised(name: str, gpu: str | None) -> None:
    found = recognise(name)
    assert (found and found.name) == gpu


def test_a_gpu_without_bf16_says_so() -> None:
    assert find_gpu("A100_80") is GPUS["a100-80"]
    with pytest.raises(InputError, match="has no fast bf16"):
        GPUS["v100"].peak("bf16")


# ---- the command ---------------------------------------------------------------------------------

L_TO_50 = "imagenet1k/res50_beitv2l_a2_300ep"


def doctor(cli: Cli, *arguments: object) -> tuple[int, dict[str, Any]]:
    outcome = cli("doctor", *arguments, "--json")
    return outcome.code, json.loads(outcome.out)


def findings(found: dict[str, Any], level: str) -> str:
    return "\n".join(
        f"{f['about']}: {f['says']} -> {f['mend']}"
        for f in found["findings"]
        if f["level"] == level
    )


def test_without_a_recipe_only_the_machine_is_looked_at(cli: Cli) -> None:
    outcome = cli("doctor")
    assert outcome.code == 0
    assert "torch" in outcome.out
    assert "not measured: this is one process" in outcome.out
    assert "Memory of a process" not in outcome.out


def test_the_quickstart_is_read_and_decoded(cli: Cli) -> None:
    code, found = doctor(
        cli, "quickstart/students", "teacher.model=cifar_resnet20", "--gpus", 2, "output=nowhere"
    )
    assert code == 0
    assert found["sections"]["Data"]["data.train"]["value"] == "6,000 images, 10 classes"
    assert found["sections"]["Assumed"]["decoding"]["source"].startswith("measured here")
    assert [row["gpus"] for row in found["forecast"]] == [1, 2, 8, 64]
    placements = [row["placement"] for row in found["memory"]]
    assert len(placements) == 8  # two of the teacher, four of the students, whose optimizer is SGD
    assert found["step"]["seconds"] > 0


def test_a_recipe_is_judged_without_its_data(cli: Cli) -> None:
    outcome = cli("doctor", L_TO_50, "--gpus", 8, "--gpu", "h100")
    assert outcome.code == 0
    for says in (
        "304.4 M parameters",
        "replicated + DDP *",
        "zero3 + DDP",
        "vendor data sheet",
        "assumed; measured on a GPU: not run",
        "300 epochs, 187,500 steps",
        "64",
        "bound it",
    ):
        assert says in outcome.out, says


def test_a_batch_that_does_not_divide_is_certain_to_fail(cli: Cli) -> None:
    code, found = doctor(cli, L_TO_50, "--gpus", 3)
    assert code == 2
    assert "does not divide" in findings(found, "problem")
    assert "forecast" not in found


def test_what_does_not_fit_is_told_with_a_mend(cli: Cli) -> None:
    """512 images of a ViT-S with 34 MB each are more than a card of 24 GB; its gradients can be had
    for less.
    """
    name = "imagenet1k/vit_s_beitv2b_a1_600ep"
    batch = ("train.micro_batch_size=1024", "train.batch_size_global=2048")
    code, found = doctor(cli, name, *batch, "--gpus", 2, "--gpu", "rtx4090")
    assert code == 0
    assert "are needed" in findings(found, "warning")
    assert "grad_checkpointing" in findings(found, "warning")
    code, found = doctor(
        cli, name, *batch, "student.grad_checkpointing=true", "--gpus", 2, "--gpu", "rtx4090"
    )
    assert "are needed" not in findings(found, "warning")


def test_a_dtype_that_the_gpu_lacks(cli: Cli) -> None:
    code, found = doctor(cli, L_TO_50, "--gpu", "v100", "--gpus", 8)
    assert code == 2
    assert "V100" in findings(found, "problem")


def test_options_reach_the_forecast(cli: Cli) -> None:
    _, slow = doctor(cli, L_TO_50, "--gpus", 8, "--decode", 1, "--workers", 1, "--mfu", 0.5)
    assert slow["step"]["bound"] == "data"
    assert slow["step"]["data_s"] == 256
    assert slow["step"]["student_s"] == pytest.approx(
        slow["step"]["student_flops"] / (0.5 * 989.4e12)
    )
    assert "data.num_workers" in findings(slow, "warning")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("quickstart/teacher", "--gpu", "h10"), "did you mean 'h100'"),
        (("quickstart/teacher", "--nodes", 2, "--gpus", 3), "2 nodes of 8 have 16"),
        (("quickstart/teacher", "--mfu", 35), "at most 1"),
        (("quickstart/teacher", "--network", -1), "should be above 0"),
        (("quickstart/teechers",), "no recipe"),
    ],
)
def test_bad_input_is_one_message(arguments: tuple[object, ...], says: str, cli: Cli) -> None:
    outcome = cli("doctor", *arguments)
    assert outcome.code == 2
    assert says in outcome.err
    assert outcome.out == ""


def test_a_contradicting_environment_is_a_problem(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    code, found = doctor(cli)
    assert code == 2
    assert "ACCELERATE_MIXED_PRECISION" in findings(found, "problem")


def test_two_processes_measure_their_interconnect() -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        "-m",
        "distill",
        "doctor",
        "--json",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["interconnect"]  # one report, of the first process
    assert (found["processes"], found["backend"]) == (2, "gloo")
    assert [timing["size"] for timing in found["all_reduce"]] == [2**20, 2**24]
    for timing in found["all_reduce"]:
        assert timing["bus_bytes_s"] == pytest.approx(
            timing["size"] / timing["seconds"]
        )  # 2 (N - 1) / N is 1


def test_what_was_measured_is_shown() -> None:
    diagnosis = Diagnosis()
    report_interconnect(diagnosis, [Timing(2**24, 0.01, 1.5e9)], 4, "nccl")
    assert diagnosis.sections[0].tables[0].rows == (("16 MiB", "10.00", "1.50"),)


# ---- docs/scaling.md -----------------------------------------------------------------------------


def test_the_tables_of_the_document_are_those_that_the_benchmark_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    scaling = import_module("benchmarks.scaling")
    assert scaling.main([]) == 0
    printed = capsys.readouterr().out
    document = (ROOT / "docs" / "scaling.md").read_text()
    names = [line.split()[2] for line in document.splitlines() if line.startswith("<!-- table ")]
    assert names == ["counted", "assumed", "weak", "crossover", "runs", "paper"]
    for name in names:
        table = (
            document.split(f"<!-- table {name} -->\n")[1].split(f"<!-- end {name} -->")[0].strip()
        )
        assert len(table.splitlines()) > 3
        assert f"{name}\n\n{table}\n" in printed, (
            f"{name}: python -m benchmarks.scaling --write docs/scaling.md"
        )


def test_a_document_without_a_place_for_a_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    filled: Callable[..., str] = import_module("benchmarks.scaling").filled
    assert (
        filled("<!-- table a -->\nold\n<!-- end a -->", {"a": "new"})
        == "<!-- table a -->\nnew\n<!-- end a -->"
    )
    with pytest.raises(AssertionError):
        filled("", {"a": "new"})


def test_the_bucket_is_the_engines() -> None:
    assert BUCKET_SCALARS == zero.BUCKET_SCALARS
