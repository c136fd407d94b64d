"""DIST on one process: its definition, constant rows and columns, and classes of tiny
probability.
"""

import math
from functools import partial

import pytest
import torch
from losses_cases import CASES, HALVES, Case, assert_equals_reference, logits, value_and_gradient
from torch import Tensor

from distill.losses.dist import dist


def dist_by_definition(
    student: Tensor,
    teacher: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    p_student, p_teacher = ((z / temperature).softmax(-1) for z in (student, teacher))

    def correlation(a: Tensor, b: Tensor) -> Tensor:  # along the last axis, no eps
        a, b = (x - x.mean(-1, keepdim=True) for x in (a, b))
        return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))

    inter = 1 - correlation(p_student, p_teacher).mean()
    intra = 1 - correlation(p_student.T, p_teacher.T).mean()
    return (beta * inter + gamma * intra) * temperature**2


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_its_definition(case: Case) -> None:
    student, teacher = logits(case)
    for beta, gamma, t in ((1.0, 1.0, 1.0), (2.0, 0.5, 4.0), (0.0, 1.0, 1.0)):
        values = {"beta": beta, "gamma": gamma, "temperature": t}
        assert_equals_reference(
            partial(dist, **values),
            partial(dist_by_definition, **values),
            student,
            teacher,
            magnitude=t**2,
            tolerance=2e-5,  # a log-probability of -200 is rounded to 8e-6
        )


@pytest.mark.parametrize("probability", [1e-5, 1e-30, 1e-60])
def test_tiny_columns_are_alive_at_21841_classes(probability: float) -> None:
    """Two classes take turns at nearly all the mass; the gradient of all others stays right, where
    eps = 1e-8 kills it.
    """
    student, teacher = torch.randn(2, 8, 21841, generator=torch.Generator().manual_seed(0))
    student[::2, 0] -= math.log(probability)
    student[1::2, 1] -= math.log(probability)
    _, gradient = value_and_gradient(partial(dist, beta=0.0), student, teacher)
    _, expected = value_and_gradient(
        partial(dist_by_definition, beta=0.0), student.double(), teacher.double()
    )
    tiny, expected_tiny = gradient[:, 2:].double(), expected[:, 2:]
    assert expected_tiny.abs().max() > 1e-6
    assert (tiny - expected_tiny).norm() < 1e-4 * expected_tiny.norm()


def test_constant_columns_count_as_uncorrelated_and_give_no_gradient() -> None:
    """Rows 0 to 2 of [p, 0.5 - p, 0.25, 0.25]: two columns vary, two are constant in
    the student.
    """
    p = torch.tensor([0.1, 0.2, 0.4])
    student = torch.stack([p, 0.5 - p, torch.full((3,), 0.25), torch.full((3,), 0.25)], -1).log()
    teacher = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    value, gradient = value_and_gradient(partial(dist, beta=0.0), student, teacher)
    r = torch.corrcoef(torch.stack([p, teacher.softmax(-1)[:, 0]]))[0, 1]
    r_other = torch.corrcoef(torch.stack([0.5 - p, teacher.softmax(-1)[:, 1]]))[0, 1]
    torch.testing.assert_close(value, 1 - (r + r_other) / 4)
    assert torch.isfinite(gradient).all()
    assert (
        0.01 < gradient.abs().max() < 10
    )  # rounding in a constant column, divided by its norm, would be 1e5


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_nothing_varies(dtype: torch.dtype) -> None:
    """A head at zero, a batch of one, a constant teacher: distance 1 each, gradient 0,
    never NaN.
    """
    noise = torch.randn(8, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    zeros = torch.zeros(8, 10, dtype=dtype)
    for student, teacher in ((zeros, noise), (noise, zeros)):
        value, gradient = value_and_gradient(dist, student, teacher)
        assert value == 2
        assert (gradient == 0).all()
    value, gradient = value_and_gradient(partial(dist, beta=0.0), noise[:1], noise[1:2])
    assert value == 1
    assert (gradient == 0).all()


def test_shifts_of_whole_rows_are_not_mistaken_for_variation() -> None:
    """Logits equal up to a shift a row have constant columns; float32 makes them vary by 1e-7."""
    shift = torch.randn(8, 1, generator=torch.Generator().manual_seed(0)) * 5
    student = torch.randn(1, 100, generator=torch.Generator().manual_seed(1)) + shift
    teacher = torch.randn(8, 100, generator=torch.Generator().manual_seed(2))
    assert (student.softmax(-1).amax(0) > student.softmax(-1).amin(0)).any()
    value, gradient = value_and_gradient(partial(dist, beta=0.0), student, teacher)
    assert value == 1
    assert (gradient == 0).all()


def test_masked_teacher_classes_count_as_constant() -> None:
    student, teacher = torch.randn(2, 8, 10, generator=torch.Generator().manual_seed(0))
    teacher[:, 3] = -torch.inf
    value, gradient = value_and_gradient(dist, student, teacher)
    assert torch.isfinite(gradient).all()
    student_p, teacher_p = student.softmax(-1), teacher.softmax(-1)
    inter = torch.stack(
        [torch.corrcoef(torch.stack(rows))[0, 1] for rows in zip(student_p, teacher_p, strict=True)]
    )
    intra = torch.stack(
        [torch.corrcoef(torch.stack(c))[0, 1] for c in zip(student_p.T, teacher_p.T, strict=True)]
    )
    torch.testing.assert_close(value, 2 - inter.mean() - intra.nan_to_num().mean())
