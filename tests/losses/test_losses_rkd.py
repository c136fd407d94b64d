"""RKD: value and gradient against loops over pairs and triples, and what it needs in memory."""

import math

import pytest
import torch
from torch import Tensor

from distill.losses.rkd import RKD, rkd


def features(batch: int, student: int, teacher: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(batch, student, generator=draw), 3 + torch.randn(
        batch, teacher, generator=draw
    )


def huber(difference: Tensor) -> Tensor:
    return torch.where(difference.abs() < 1, difference**2 / 2, difference.abs() - 0.5)


def distances(points: Tensor) -> Tensor:
    """Each divided by the mean over pairs of different samples."""
    size = len(points)
    rows = [
        torch.stack([(points[i] - points[j]).square().sum() for j in range(size)])
        for i in range(size)
    ]
    squared = torch.stack(rows)
    found = torch.where(squared > 0, squared, 1).sqrt() * (squared > 0)
    return found / (found.sum() / (found > 0).sum())


def angle(points: Tensor, i: int, j: int, k: int) -> Tensor:
    one, two = points[j] - points[i], points[k] - points[i]
    lengths = one.norm() * two.norm()
    return (one * two).sum() / lengths if lengths > 0 else torch.zeros((), dtype=points.dtype)


def by_definition(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student, teacher = student.double(), teacher.double()
    size = range(len(student))
    distance = huber(distances(student) - distances(teacher)).mean()
    triples = [
        huber(angle(student, i, j, k) - angle(teacher, i, j, k))
        for i in size
        for j in size
        for k in size
        if i not in (j, k)
    ]
    return distance, torch.stack(triples).sum() / len(student) ** 3


@pytest.mark.parametrize("weights", [(25.0, 50.0), (1.0, 0.0), (0.0, 1.0)])
def test_equals_its_definition(weights: tuple[float, float]) -> None:
    student, teacher = features(6, 5, 7)
    found, expected = student.clone().requires_grad_(), student.double().requires_grad_()
    value = rkd(found, teacher, *weights)
    distance, angles = by_definition(expected, teacher)
    reference = weights[0] * distance + weights[1] * angles
    value.backward()
    reference.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), reference, rtol=1e-6, atol=0)
    assert found.grad is not None
    torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-5, atol=1e-8)


def test_by_hand() -> None:
    """A right-angled triangle with legs of 3 and 4 against one with equal sides."""
    student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])
    expected = 2 * sum((side / 4 - 1) ** 2 / 2 for side in (3, 4, 5)) / 9
    assert rkd(student, teacher, 1, 0).item() == pytest.approx(expected, rel=1e-6)
    cosines = (0.0, 3 / 5, 4 / 5)
    # Each angle occurs twice, as (i, j, k) and (i, k, j); j = k gives a cosine of 1 on both sides.
    expected = 2 * sum((cosine - 0.5) ** 2 / 2 for cosine in cosines) / 27
    assert rkd(student, teacher, 0, 1).item() == pytest.approx(expected, rel=1e-6)


def test_scale_shift_and_rotation_change_nothing() -> None:
    student, _ = features(8, 5, 5)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))[0]
    assert rkd(student, 100 + 7 * student @ rotation).item() < 1e-9


def test_samples_that_coincide_give_no_gradient_and_no_nan() -> None:
    student, teacher = features(6, 5, 7)
    student[3] = student[0]
    teacher[3] = teacher[0]
    found, expected = student.clone().requires_grad_(), student.double().requires_grad_()
    rkd(found, teacher, 1, 0).backward()
    by_definition(expected, teacher)[0].backward()
    assert found.grad is not None
    torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-5, atol=1e-8)
    same = torch.ones(4, 3, requires_grad=True)
    value = rkd(same, teacher[:4])
    value.backward()
    assert same.grad is not None
    assert torch.isfinite(value)
    assert torch.equal(same.grad, torch.zeros(4, 3))


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_close_samples_keep_their_distances(offset: float) -> None:
    """In float32 a Gram matrix loses differences of 1e-3 beside a norm of 1,000."""
    draw = torch.Generator().manual_seed(0)
    near = 1e-3 * torch.randn(5, 16, generator=draw, dtype=torch.float64)
    student = (near + offset).float()
    expected = by_definition(student, near)
    found = rkd(student, near.float(), 1, 0), rkd(student, near.float(), 0, 1)
    for one, other in zip(found, expected, strict=True):
        assert one.item() == pytest.approx(other.item(), rel=1e-3, abs=1e-9)


def test_chunks_of_anchors_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = features(7, 5, 7)
    values = []
    for numbers in (1, 2**20):
        monkeypatch.setattr("distill.losses.rkd._CHUNK", numbers)
        one = student.clone().requires_grad_()
        value = rkd(one, teacher)
        value.backward()
        values.append((value, one.grad))
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_by_the_heads(dtype: torch.dtype) -> None:
    student, teacher = ((200 * each).to(dtype)[..., None, None] for each in features(8, 16, 32))
    heads = RKD(25.0, 50.0, None)
    value = heads.loss(heads((student,), (teacher,)), (teacher,), None)  # type: ignore[arg-type]
    expected = rkd(student.flatten(1).float(), teacher.flatten(1).float())
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


def test_a_batch_of_256_needs_less_than_300_mb() -> None:
    """The usual code needs 1.6 GB for the differences of 256 samples of 2,048 features alone."""
    student = torch.randn(256, 2048, requires_grad=True)
    teacher = torch.randn(256, 1024)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        rkd(student, teacher).backward()
    held = most = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert 10e6 < most < 300e6
