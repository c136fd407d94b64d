"""The confidence filter: who stays, values and gradients against float64, and that a batch may be
split anyhow.
"""

from functools import partial

import pytest
import torch
from losses_cases import (
    BATCH,
    CASES,
    Case,
    Loss,
    assert_equals_reference,
    logits,
    value_and_gradient,
)
from test_losses_bkl import bkl_by_definition
from test_losses_kl import kl_by_definition
from torch import Tensor

from distill.losses.bkl import bkl
from distill.losses.confidence import confident
from distill.losses.kl import kl

LOSSES = {"kl": (kl, kl_by_definition), "bkl": (bkl, bkl_by_definition)}
each_loss = pytest.mark.parametrize("name", LOSSES)
SURE = torch.arange(BATCH) % 2 == 0


def half_unsure(case: Case) -> tuple[Tensor, Tensor, float]:
    """Student, teacher, and a threshold between its sure rows (even) and its unsure ones, which are
    all but uniform.
    """
    student, teacher = logits(case)
    teacher[~SURE] = (teacher[~SURE].double() * 1e-3).to(case.dtype)
    largest = teacher.double().softmax(-1).amax(-1)
    low, high = largest[~SURE].max().item(), largest[SURE].min().item()
    assert low < 0.99 * high
    return student, teacher, (low + high) / 2


def of_sure_samples(definition: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    """Half of the batch by the definition, over the size of all of it."""
    return definition(student[SURE], teacher[SURE]) * SURE.sum() / BATCH


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_sure_samples_are_those_of_the_definition(case: Case) -> None:
    _, teacher, threshold = half_unsure(case)
    assert confident(teacher, threshold).tolist() == SURE.tolist()


@pytest.mark.parametrize("case", CASES, ids=str)
@each_loss
def test_unsure_samples_count_zero_and_the_mean_is_over_all(name: str, case: Case) -> None:
    loss, definition = LOSSES[name]
    student, teacher, threshold = half_unsure(case)
    for t in (1.0, 4.0):
        assert_equals_reference(
            partial(loss, temperature=t, min_confidence=threshold),
            partial(of_sure_samples, partial(definition, temperature=t)),
            student,
            teacher,
            t**2,
        )


@each_loss
def test_unsure_samples_have_no_gradient_at_all(name: str) -> None:
    student, teacher, threshold = half_unsure(Case(1000, 0.0, torch.float32))
    _, gradient = value_and_gradient(
        partial(LOSSES[name][0], min_confidence=threshold), student, teacher
    )
    assert (gradient[~SURE] == 0).all()
    assert (gradient[SURE].abs().amax(-1) > 0).all()
    value, gradient = value_and_gradient(
        partial(LOSSES[name][0], min_confidence=0.5), student, teacher / 1e4
    )
    assert value == 0
    assert (gradient == 0).all()


@each_loss
def test_a_batch_may_be_split_anyhow(name: str) -> None:
    """Parts with three, one and no sure samples of two, four and two: their mean, by size, is that
    of the batch.
    """
    student, teacher, threshold = half_unsure(Case(10, 18.0, torch.float64))
    order = torch.tensor([0, 2, 4, 1, 3, 5, 7, 6])
    loss = partial(LOSSES[name][0], min_confidence=threshold)
    whole, gradient = value_and_gradient(loss, student, teacher)
    values, gradients = torch.zeros((), dtype=torch.float64), torch.zeros_like(student)
    for part in order.split([2, 4, 2]):
        value, own = value_and_gradient(loss, student[part], teacher[part])
        values += value * len(part) / BATCH
        gradients[part] = own * len(part) / BATCH
    torch.testing.assert_close(values, whole)
    torch.testing.assert_close(gradients, gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@each_loss
def test_without_a_filter_and_with_one_that_keeps_all_the_bits_are_the_same(
    name: str, dtype: torch.dtype
) -> None:
    loss = LOSSES[name][0]
    student, teacher = logits(Case(1000, 18.0, dtype))
    plain = value_and_gradient(partial(loss, temperature=2.0), student, teacher)
    for min_confidence in (None, 1e-9):
        kept = value_and_gradient(
            partial(loss, temperature=2.0, min_confidence=min_confidence), student, teacher
        )
        assert all(torch.equal(a, b) for a, b in zip(plain, kept, strict=True))


def test_confidence_is_at_temperature_1_whatever_the_loss_has() -> None:
    teacher = torch.tensor(
        [[2.0, 0.0], [0.5, 0.0]]
    )  # largest probabilities 0.88 and 0.62; at T = 4 0.62 and 0.53
    student = torch.zeros(2, 2)
    for temperature in (0.25, 1.0, 4.0):
        _, gradient = value_and_gradient(
            partial(kl, temperature=temperature, min_confidence=0.7), student, teacher
        )
        assert (gradient != 0).all(-1).tolist() == [True, False]


def test_a_sample_right_at_the_threshold_stays() -> None:
    assert confident(torch.zeros(1, 2), 0.5).tolist() == [True]
    masked = torch.tensor([[-torch.inf, 0.0, -torch.inf], [-torch.inf, 0.0, 0.0]])
    assert confident(masked, 0.9).tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_half_precision_logits_are_widened_first(dtype: torch.dtype) -> None:
    """0.99909 is 1 in half precision's 8 or 11 bits."""
    assert confident(torch.tensor([[7.0, 0.0]], dtype=dtype), 0.9995).tolist() == [False]
