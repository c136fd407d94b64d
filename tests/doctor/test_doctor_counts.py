"""Counted bytes, FLOPs and kernels equal those of real models."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from profiles_by_hand import STUDENT_MODEL
from torch import nn

from distill.doctor.measure import measure, measure_student, measure_teacher
from distill.doctor.meter import Meter, autocast, fake, forward_pass, training_pass
from distill.doctor.profiles import (
    Line,
)
from distill.models.origin import origin_of_teacher
from distill.recipe import load_recipe, schema
from distill.student.optimizer import build_optimizer


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
