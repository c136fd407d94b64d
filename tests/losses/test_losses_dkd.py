"""DKD: value and gradient where `log(softmax)` fails, the identity with KL, and the target class of
mixed labels.
"""

from functools import partial

import pytest
import torch
from losses_cases import CASES, Case, assert_equals_reference, logits
from torch import Tensor

from distill.losses.dkd import dkd, target_class, teachers_class
from distill.losses.kl import kl


def dkd_by_definition(
    student: Tensor, teacher: Tensor, target: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    """Sample by sample, the other classes as a list of their own."""
    total = student.new_zeros(())
    for s, t, y in zip(student, teacher, target.tolist(), strict=True):
        weights = [(z - z.max()).div(temperature).exp() for z in (s, t)]
        (s_y, s_rest), (t_y, t_rest) = ((w[y], torch.cat([w[:y], w[y + 1 :]])) for w in weights)
        b_s, b_t = (
            torch.stack([y_, r.sum()]) / (y_ + r.sum()) for y_, r in ((s_y, s_rest), (t_y, t_rest))
        )
        q_s, q_t = (r / r.sum() for r in (s_rest, t_rest))
        total = (
            total + alpha * (b_t * (b_t / b_s).log()).sum() + beta * (q_t * (q_t / q_s).log()).sum()
        )
    return total / len(student) * temperature**2


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_its_definition(case: Case) -> None:
    student, teacher = logits(case)
    target = teacher.argmax(-1)
    target[::2] = torch.arange(8)[::2] % case.num_classes  # the teacher's class, and others
    for alpha, beta, t in ((1.0, 2.0, 1.0), (0.5, 8.0, 4.0)):
        values = {"target": target, "alpha": alpha, "beta": beta, "temperature": t}
        assert_equals_reference(
            partial(dkd, **values),
            partial(dkd_by_definition, **values),
            student,
            teacher,
            (alpha + beta) * t**2,
        )


def test_is_kl_when_nckd_is_weighted_by_the_teachers_doubt() -> None:
    """KL = TCKD + (1 - p^t_y) NCKD (the DKD paper's Eq. 7)."""
    student, teacher = torch.randn(
        2, 1, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    doubt = 1 - teacher.softmax(-1)[0, 3].item()
    torch.testing.assert_close(
        dkd(student, teacher, torch.tensor([3]), 1.0, doubt), kl(student, teacher)
    )


def test_target_class_is_the_largest_share_and_ties_are_the_images_own() -> None:
    label_probs = torch.tensor(
        [[0.0, 0.3, 0.7], [0.3, 0.7, 0.0], [0.5, 0.0, 0.5], [0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]
    )
    labels = torch.tensor([1, 1, 0, 2, 1])
    assert target_class(label_probs, labels).tolist() == [2, 1, 0, 2, 1]


@pytest.mark.parametrize("case", [case for case in CASES if case.gap in (0.0, 200.0)], ids=str)
def test_the_teachers_own_class_in_the_place_of_a_label(case: Case) -> None:
    student, teacher = logits(case)
    target = teachers_class(teacher)
    assert target.dtype == torch.int64
    assert target.tolist() == [row.tolist().index(row.max().item()) for row in teacher]
    values = {"alpha": 1.0, "beta": 2.0, "temperature": 4.0}
    assert_equals_reference(
        lambda s, t: dkd(s, t, teachers_class(t), **values),
        lambda s, t: dkd_by_definition(s, t, target, **values),
        student,
        teacher,
        3 * 4**2,
    )
