"""Binary KL (Eq. 3) where probabilities are within 1e-87 of 0 and 1, and the released code's
stand-in for it.
"""

from functools import partial

import pytest
import torch
from losses_cases import CASES, Case, assert_equals_reference, logits, value_and_gradient
from torch import Tensor

from distill.losses.bkl import bce_teacher, bkl


def probability_and_complement(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """p and 1 - p, the latter as the sum of the classes before and after: nothing is ever
    subtracted from 1.
    """
    weight = (z - z.amax(-1, keepdim=True)).div(temperature).exp()
    nothing = torch.zeros_like(weight[:, :1])
    before = torch.cat([nothing, weight.cumsum(-1)[:, :-1]], -1)
    after = torch.cat([weight.flip(-1).cumsum(-1).flip(-1)[:, 1:], nothing], -1)
    total = weight.sum(-1, keepdim=True)
    return weight / total, (before + after) / total


def bkl_by_definition(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    p_s, not_s = probability_and_complement(student, temperature)
    p_t, not_t = probability_and_complement(teacher, temperature)
    terms = -p_t * (p_s / p_t).log() - not_t * (not_s / not_t).log()
    return terms.sum() / len(student) * temperature**2


def bce_teacher_by_definition(student: Tensor, teacher: Tensor) -> Tensor:
    p_t, not_t = probability_and_complement(teacher, 1.0)
    yes, no = 1 / (1 + (-student).exp()), 1 / (1 + student.exp())
    return -(p_t * yes.log() + not_t * no.log()).mean()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equal_to_their_definitions(case: Case) -> None:
    student, teacher = logits(case)
    for t in (1.0, 4.0):
        assert_equals_reference(
            partial(bkl, temperature=t),
            partial(bkl_by_definition, temperature=t),
            student,
            teacher,
            t**2,
        )
    assert_equals_reference(bce_teacher, bce_teacher_by_definition, student, teacher)


def test_two_classes_count_twice() -> None:
    """With K = 2 both classes tell the same binary story, so Eq. 3 is twice the KL: 2 * 200 at a
    gap of 200.
    """
    value = bkl(torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]]))
    assert value.item() == pytest.approx(400.0, rel=1e-6)


def test_zero_at_equality_and_teacher_probability_of_exactly_zero() -> None:
    teacher = torch.tensor([[-torch.inf, 1.0, 1.0], [500.0, 0.0, -500.0]])
    value, gradient = value_and_gradient(
        bkl, torch.tensor([[0.0, 1.0, 2.0], [0.5, 0.0, -1.0]]), teacher
    )
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0.1
    same = torch.tensor([[-3.0, 1.0, 1.0], [500.0, 0.0, -500.0]])
    value, gradient = value_and_gradient(bkl, same, same)
    assert value == 0
    assert gradient.abs().max() < 1e-6


def test_a_thousand_probabilities_of_1e_8_are_not_rounded_away() -> None:
    """log(1 - p) of each is -p; as log of a float32 1 - p, which is 1, the whole tail (1e-5) would
    vanish.
    """
    student, teacher = torch.full((2, 1, 1001), -18.4)
    teacher[:, 1:] -= 3
    student[:, 0] = teacher[:, 0] = 0
    expected = bkl_by_definition(student.double(), teacher.double())
    assert bkl(student, teacher).item() == pytest.approx(expected.item(), rel=0.1)
