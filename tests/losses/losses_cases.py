"""Logits on which every loss is compared with its definition in float64, values and gradients."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

BATCH = 8
SIZES = (2, 10, 1000, 21841)
GAPS = (0.0, 18.0, 110.0, 200.0)  # naive DKD fails at 18 in fp16 and at 110 in fp32
HALVES = (torch.bfloat16, torch.float16)

Loss = Callable[[Tensor, Tensor], Tensor]


class Case(NamedTuple):
    num_classes: int
    gap: float
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"K{self.num_classes}-gap{self.gap:.0f}-{str(self.dtype)[6:]}"


CASES = [Case(k, gap, torch.float32) for k in SIZES for gap in GAPS]
CASES += [Case(k, gap, dtype) for k in (10, 21841) for gap in (18.0, 200.0) for dtype in HALVES]
CASES += [Case(k, gap, torch.float64) for k in (10, 1000) for gap in (0.0, 200.0)]


def logits(case: Case, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Student and teacher [8, K]: one class a row leads by `gap`. They agree on it in half the
    rows, and nearly on all else.
    """
    draw = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, BATCH, case.num_classes, generator=draw, dtype=torch.float64)
    half = BATCH // 2
    teacher[:half] = student[:half] + 0.1 * teacher[:half]
    lead = torch.randint(case.num_classes, (2, BATCH), generator=draw)
    lead[:, 0], lead[:, 1] = 0, 1  # no class leads in every row
    lead[1, :half] = lead[0, :half]
    for side, classes in zip((student, teacher), lead, strict=True):
        side[torch.arange(BATCH), classes] += case.gap
    return student.to(case.dtype), teacher.to(case.dtype)


def distributions(num_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Mixed label distributions [8, K] and own labels [8]; shares 0.5 (ties) to 0.9."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (BATCH,), generator=draw)
    share = torch.tensor([0.5, 0.7, 0.9, 1.0, 1.0, 0.1, 0.3, 0.5])
    label_probs = torch.zeros(BATCH, num_classes)
    label_probs[torch.arange(BATCH), labels] += share
    label_probs[torch.arange(BATCH), labels.flip(0)] += 1 - share
    return label_probs, labels


def value_and_gradient(loss: Loss, student: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    student = student.detach().clone().requires_grad_()
    value = loss(student, other)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def assert_equals_reference(
    loss: Loss,
    reference: Loss,
    student: Tensor,
    other: Tensor,
    magnitude: float = 1.0,
    tolerance: float = 4e-6,
) -> None:
    """Same value and gradient as `reference` has in float64 on the same (already rounded) inputs.

    `tolerance` is relative. For the value, to itself or to `magnitude`, the factor that stands
    before log-probabilities. For the gradient, to its largest entry, or to 0.01 / (B K), so that a
    gradient of 1e-40 may come out as 0. Torch's float32 log_softmax on the CPU is off by up to
    3.4e-5 when 21,840 classes share a tail (measured, AVX2), hence 1e-4 there.
    """
    value, gradient = value_and_gradient(loss, student, other)
    expected, expected_gradient = value_and_gradient(reference, student.double(), other.double())
    assert torch.isfinite(expected), "the reference itself must be sound"
    assert torch.isfinite(expected_gradient).all(), "the reference itself must be sound"
    assert gradient.dtype == student.dtype
    assert value.dtype == (torch.float64 if student.dtype == torch.float64 else torch.float32)
    if student.dtype == torch.float64:
        tolerance = 1e-9
    elif student.shape[1] > 1000:
        tolerance = max(tolerance, 1e-4)
    error = (value - expected).abs()
    assert error <= tolerance * expected.abs().clamp(min=magnitude), (
        f"value {value}, expected {expected}"
    )

    info = torch.finfo(student.dtype)
    scale = expected_gradient.abs().max()
    allowed = tolerance * scale.clamp(min=0.01 / student.numel())
    if student.dtype in HALVES:  # the gradient is handed back in the dtype of the logits
        allowed = allowed + info.eps * expected_gradient.abs() + info.tiny * info.eps
    worst = ((gradient.double() - expected_gradient).abs() - allowed).max()
    assert worst <= 0, f"gradient off by {worst:.1e} more than allowed; largest entry {scale:.1e}"
