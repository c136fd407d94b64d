"""What a device computes is what the CPU computes, within the rounding of float32: losses, mixing,
pixels, BatchNorm, banks; and batches arrive there.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from distill.data.augment import TrainTransform
from distill.data.fashion import EmbeddedFashionMnist
from distill.data.loading.loader import RankSlice, TrainLoader
from distill.data.mixing import Mixing
from distill.data.order.shuffled import Order
from distill.engine import Engine
from distill.losses.all_reduce import all_reduce
from distill.losses.bank import Bank
from distill.losses.bkl import bce_teacher, bkl
from distill.losses.dist import dist as dist_loss
from distill.losses.dkd import dkd
from distill.losses.hard import binary_cross_entropy, cross_entropy
from distill.losses.hint import Samples
from distill.losses.kl import kl
from distill.models.batch_norm import synchronise
from distill.models.pixels import Pixels
from distill.models.teacher import Teacher
from distill.models.view import ModelView, view_of_config

Loss = Callable[[Tensor, Tensor], Tensor]
BATCH = 16


# ---- losses --------------------------------------------------------------------------------------


def with_probabilities(loss: Loss) -> Loss:
    return lambda student, other: loss(student, other.softmax(-1))


def dkd_of_argmax(student: Tensor, teacher: Tensor) -> Tensor:
    return dkd(student, teacher, teacher.argmax(-1), temperature=2.0)


LOSSES: dict[str, Loss] = {
    "ce": with_probabilities(cross_entropy),
    "bce": with_probabilities(binary_cross_entropy),
    "kl": partial(kl, temperature=4.0),
    "bkl": bkl,
    "bce-teacher": bce_teacher,
    "dkd": dkd_of_argmax,
    "dist": partial(dist_loss, temperature=2.0),
}


@pytest.mark.parametrize("num_classes", [10, 1000])
@pytest.mark.parametrize("gap", [0.0, 30.0])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_losses(loss: Loss, gap: float, num_classes: int, device: torch.device) -> None:
    """Value and gradient in float32 against float64 on the CPU: 2e-5 of the value, and of the
    gradient's largest entry.
    """
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, BATCH, num_classes, generator=draw)
    teacher[torch.arange(BATCH), torch.arange(BATCH) % 7] += gap
    found = []
    for place, dtype in ((device, torch.float32), (torch.device("cpu"), torch.float64)):
        logits = student.to(place, dtype).requires_grad_()
        value = loss(logits, teacher.to(place, dtype))
        (gradient,) = torch.autograd.grad(value, logits)
        found.append((value.detach().cpu().double(), gradient.cpu().double()))
    (value, gradient), (expected, expected_gradient) = found
    assert abs(value - expected) <= 2e-5 * max(abs(expected), 1e-3)
    scale = max(float(expected_gradient.abs().max()), 1e-2 / student.numel())
    assert float((gradient - expected_gradient).abs().max()) <= 2e-5 * scale


# ---- batches -------------------------------------------------------------------------------------

ULP = 2**-24  # of numbers in [0.5, 1]


def test_mixing(device: torch.device) -> None:
    """Pixels and label distributions within a few roundings: CUDA multiplies by 1/255 to divide by
    255.
    """
    values = {"mixup": 0.2, "cutmix": 1.0, "probability": 1.0, "switch_probability": 0.5}
    mixing = Mixing(**values, group_size=4, num_classes=5, image_size=12, seed=3)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (BATCH, 12, 12, 3), dtype=torch.uint8, generator=draw)
    labels = torch.randint(0, 5, (BATCH,), generator=draw)
    for step in range(4):
        plan = mixing.plan(step, np.arange(BATCH))
        assert plan is not None
        expected_images, expected_labels = mixing.apply(images, labels, plan)
        there = plan._replace(lam=plan.lam.to(device), boxes=plan.boxes.to(device))
        mixed, label_probs = mixing.apply(images.to(device), labels.to(device), there)
        assert mixed.device.type == device.type
        assert float((label_probs.cpu() - expected_labels).abs().max()) <= 4 * ULP
        assert float((mixed.cpu() - expected_images).abs().max()) <= 4 * ULP


@pytest.mark.parametrize("image_size", [None, 20, 40])
def test_pixels(image_size: int | None, device: torch.device) -> None:
    """Normalised, and resized with antialiasing, within 1e-5."""
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pixels = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), image_size)
    expected = pixels(images)
    assert float((pixels.to(device)(images.to(device)).cpu() - expected).abs().max()) <= 1e-5


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_arrive_and_close_ends_the_workers(num_workers: int, device: torch.device) -> None:
    """Those of a loader for the CPU, through pinned memory where the device has its own; a loader
    that is closed in the middle leaves no process.
    """
    source = EmbeddedFashionMnist("train")
    mixing = Mixing(
        mixup=0.2,
        cutmix=1.0,
        probability=1.0,
        switch_probability=0.5,
        group_size=4,
        num_classes=10,
        image_size=16,
        seed=0,
    )

    def loader(place: torch.device, workers: int) -> TrainLoader:
        order = Order(len(source), batch_size_global=8, seed=0)
        shard = RankSlice(0, 1, 8, 1)
        return TrainLoader(
            source,
            order,
            TrainTransform(image_size=16),
            mixing,
            shard,
            num_workers=workers,
            prefetch_batches=2,
            device=place,
        )

    before = set(multiprocessing.active_children())
    with loader(torch.device("cpu"), 0) as expected, loader(device, num_workers) as found:
        assert found._loader.pin_memory == (device.type == "cuda")
        for _ in range(4):
            ours, theirs = next(found), next(expected)
            assert all(each.device.type == device.type for each in ours.tensors())
            assert float((ours.label_probs.cpu() - theirs.label_probs).abs().max()) <= 4 * ULP
            assert torch.equal(ours.positions.cpu(), theirs.positions)
            assert float((ours.images.cpu() - theirs.images).abs().max()) <= 4 * ULP
        assert len(set(multiprocessing.active_children()) - before) == num_workers
    assert set(multiprocessing.active_children()) == before


# ---- models --------------------------------------------------------------------------------------

VIEW: ModelView = view_of_config(
    {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3}, "a test"
)


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float32, 1e-3), (torch.bfloat16, 5e-2), (torch.float16, 1e-2)],
    ids=str,
)
def test_a_teacher(dtype: torch.dtype, bound: float, device: torch.device) -> None:
    """Its logits against float64, relative to the largest: TF32 has 10 bits, as fp16, bf16 7."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten())
    net.append(nn.Linear(16 * 14 * 14, 10))
    images = torch.rand(8, 3, 16, 16)
    exact = net.double().eval()(2 * images.double() - 1).detach()
    teacher = Teacher(net.float(), VIEW, num_classes=10, dtype=dtype).to(device)
    logits = teacher(images.to(device))
    assert logits.dtype == torch.float32
    assert float((logits.cpu() - exact).abs().max() / exact.abs().max()) <= bound


@pytest.mark.parametrize("on_host", [False, True])
def test_a_bank(on_host: bool, device: torch.device) -> None:
    """What is written is read, wherever the bank is; in host memory it is pinned for CUDA."""
    samples = Samples(
        seed=0,
        count=50,
        rows_of=lambda indices: indices,
        key="a test",
        labelled=True,
        device=device,
        num_processes=1,
    )
    bank = Bank(samples, 8, on_host=on_host)
    assert bank.student.is_pinned() == (on_host and device.type == "cuda")
    rows = np.array([3, 7, 49])
    old = bank.read(rows)
    assert old.student.device.type == device.type
    new = old._replace(labels=old.labels + 5, student=old.student * 2)
    bank.write(new)
    for ours, expected in zip(bank.read(rows), new, strict=True):
        assert torch.equal(ours, expected)
    assert torch.equal(bank.read(np.array([4])).labels.cpu(), torch.tensor([-1]))


# ---- one process of a group ----------------------------------------------------------------------


@pytest.fixture
def group(device: torch.device) -> Iterator[dist.ProcessGroup]:
    """NCCL's group of one process, or gloo's on the CPU."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert dist.group.WORLD is not None
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def test_a_collective_of_one(group: dist.ProcessGroup, device: torch.device) -> None:
    value = torch.arange(6.0, device=device).view(2, 3).t().requires_grad_()
    total = all_reduce(value, group)
    (gradient,) = torch.autograd.grad((total * total).sum(), value)
    assert torch.equal(total, value)
    assert torch.equal(gradient, 2 * value)


def test_batch_norm_of_a_group_of_one(group: dist.ProcessGroup, device: torch.device) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)).to(device)
    own = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)).to(device)
    own.load_state_dict(plain.state_dict())
    own = synchronise(own, device, group)
    images = torch.randn(8, 3, 6, 6, device=device)
    for module in (plain, own):
        (module(images) ** 3).sum().backward()
    for (name, ours), expected in zip(own.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None, name
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-3, atol=1e-3)
    for ours, expected in zip(own.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_an_engine_s_device(device: torch.device) -> None:
    engine = Engine(precision="fp16")
    try:
        assert engine.device.type == device.type
        assert engine.new_scaler() is not None
        assert engine.peak_memory_bytes() >= 0
        engine.seed_forward(7)
        first = torch.rand(3, device=engine.device)
        engine.seed_forward(7)
        assert torch.equal(torch.rand(3, device=engine.device), first)
    finally:
        engine.close()
