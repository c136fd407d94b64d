"""Hinton's KL, and the two ways it usually goes wrong: divided by the classes, not multiplied by T
squared.
"""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from losses_cases import CASES, Case, assert_equals_reference, logits, value_and_gradient
from torch import Tensor

from distill.losses.kl import kl


def kl_by_definition(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    p_student, p_teacher = (
        (z - z.amax(-1, keepdim=True)).div(temperature).exp() for z in (student, teacher)
    )
    p_student, p_teacher = (p / p.sum(-1, keepdim=True) for p in (p_student, p_teacher))
    return (p_teacher * (p_teacher / p_student).log()).sum() / len(student) * temperature**2


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_its_definition(case: Case) -> None:
    student, teacher = logits(case)
    for t in (1.0, 4.0):
        assert_equals_reference(
            partial(kl, temperature=t),
            partial(kl_by_definition, temperature=t),
            student,
            teacher,
            t**2,
        )


def test_sums_classes_and_averages_samples() -> None:
    """ln 2 by hand, for any batch: the teacher is sure of one class, the student wavers between two
    of 1000.
    """
    student = torch.full((6, 1000), -100.0)
    student[:, :2] = 0
    teacher = torch.full((6, 1000), -100.0)
    teacher[:, 0] = 0
    assert kl(student, teacher).item() == pytest.approx(math.log(2), rel=1e-6)
    trap = F.kl_div(
        student.log_softmax(-1), teacher.softmax(-1), reduction="none"
    ).mean()  # reduction="mean"
    assert kl(student, teacher).item() == pytest.approx(1000 * trap.item(), rel=1e-5)


def test_temperature_squared_keeps_the_size_of_the_gradient() -> None:
    """For large T the gradient tends to (z_s - z_t) / K with centred logits, whatever T is (Hinton
    et al., Eq. 4).
    """
    student, teacher = torch.randn(
        2, 4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    student, teacher = (z - z.mean(-1, keepdim=True) for z in (student, teacher))
    for temperature in (1e3, 1e4):
        _, gradient = value_and_gradient(partial(kl, temperature=temperature), student, teacher)
        torch.testing.assert_close(gradient, (student - teacher) / 10 / 4, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_zero_at_equality(dtype: torch.dtype) -> None:
    teacher = (torch.randn(8, 1000, generator=torch.Generator().manual_seed(0)) * 20).to(dtype)
    value, gradient = value_and_gradient(partial(kl, temperature=2.0), teacher, teacher)
    assert value == 0
    assert gradient.abs().max() < 1e-7


def test_teacher_probability_of_exactly_zero() -> None:
    """0 log 0 = 0, where it underflows and where the logit is -inf (a class that the teacher
    masks).
    """
    student = torch.tensor([[0.0, 1.0, 2.0], [0.5, 0.0, -1.0]])
    teacher = torch.tensor([[-torch.inf, 1.0, 1.0], [500.0, 0.0, -500.0]])
    value, gradient = value_and_gradient(kl, student, teacher)
    log_p = student.log_softmax(-1)
    expected = ((math.log(0.5) - log_p[0, 1:]).mean() - log_p[1, 0]) / 2
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        gradient, (student.softmax(-1) - torch.tensor([[0, 0.5, 0.5], [1, 0, 0]])) / 2
    )


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = torch.randn(2, 4, 10, generator=torch.Generator().manual_seed(0))
    student.requires_grad_()
    teacher.requires_grad_()
    kl(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((4, 1000), (4, 21841)), ((4, 10), (1, 10)), ((4, 1), (4, 1)), ((4,), (4,))],
)
def test_refuses_tensors_that_do_not_speak_of_the_same_classes(
    student: tuple[int, ...], teacher: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="classes"):
        kl(torch.zeros(student), torch.zeros(teacher))
