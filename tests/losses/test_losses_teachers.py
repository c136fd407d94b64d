"""Several teachers for one soft loss: against float64, and at extreme logits."""

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from distill.losses import Combination, Lessons, Outputs, TeacherOutputs, build_objective
from distill.losses.objective import combination_of
from distill.losses.teachers import combined_logits
from distill.recipe import schema
from distill.recipe.teachers import Combine

ROWS = ("teacher/a", "teacher/b", "teacher/c")
WEIGHTS = (0.5, 0.3, 0.2)


def some_logits(*, scale: float = 3.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(6, 5, generator=generator) for _ in ROWS]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_mean_of_probabilities_is_that_of_float64(temperature: float) -> None:
    logits = some_logits()
    found = combined_logits(logits, WEIGHTS, "probabilities", temperature)
    assert found.dtype == torch.float32
    expected = sum(
        weight * (each.double() / temperature).softmax(-1)
        for weight, each in zip(WEIGHTS, logits, strict=True)
    )
    torch.testing.assert_close(
        (found / temperature).softmax(-1).double(), expected, rtol=1e-5, atol=1e-7
    )
    # The logarithm too, and not up to a constant: the probabilities already add up to 1.
    torch.testing.assert_close(
        (found / temperature).double(), torch.as_tensor(expected).log(), rtol=1e-5, atol=1e-5
    )


def test_the_mean_of_logits_is_that_of_float64() -> None:
    logits = some_logits()
    expected = sum(w * z.double() for w, z in zip(WEIGHTS, logits, strict=True))
    found = combined_logits([each.bfloat16().float() for each in logits], WEIGHTS, "logits")
    torch.testing.assert_close(found.double(), torch.as_tensor(expected), rtol=2e-2, atol=5e-2)
    torch.testing.assert_close(
        combined_logits(logits, WEIGHTS, "logits").double(),
        torch.as_tensor(expected),
        rtol=1e-6,
        atol=1e-6,
    )


def test_a_gap_of_two_hundred_stays_finite() -> None:
    """exp(-200) is 0 in float32, and its logarithm would be -inf."""
    sure = torch.tensor([[0.0, -200.0, -400.0]])
    found = combined_logits([sure, sure.flip(1)], (0.5, 0.5))
    half = -math.log(2)
    torch.testing.assert_close(found, torch.tensor([[half, -200.0, half]]))
    assert combined_logits([sure, sure], (0.25, 0.75)).isfinite().all()


@pytest.mark.parametrize("how", ["probabilities", "logits", "losses"])
def test_one_teacher_is_itself(how: Combine) -> None:
    (only, *_) = some_logits()
    assert combined_logits([only], (1.0,), how, 2.0) is only


def taught(**objective: Any) -> Any:
    """The soft loss of a student of three teachers, and its gradient."""
    spec = TypeAdapter(schema.ObjectiveSpec).validate_python(objective)
    built = build_objective(spec, teachers=ROWS)
    lessons = Lessons(
        {row: TeacherOutputs(each) for row, each in zip(ROWS, some_logits(), strict=True)}
    )
    student = torch.linspace(-2, 2, 30).reshape(6, 5).requires_grad_()
    batch: Any = None
    terms = built(Outputs(student), built.read(lessons), batch)
    (gradient,) = torch.autograd.grad(terms.total, student)
    return terms, gradient, built, lessons


def test_a_loss_of_each_is_the_weighted_sum() -> None:
    soft = {"loss": "kl", "temperature": 2.0, "min_confidence": 0.6, "weight": 3.0}
    weights = {"a": 2.0, "b": 1.0, "c": 0.0}
    terms, gradient, built, _ = taught(soft=soft, soft_teachers=weights, combine="losses")
    alone = [taught(soft=soft, soft_teachers={name: 1.0}) for name in ("a", "b")]
    shares = (2 / 3, 1 / 3)
    torch.testing.assert_close(
        terms.soft, sum(share * each[0].soft for share, each in zip(shares, alone, strict=True))
    )
    torch.testing.assert_close(
        terms.kept, sum(share * each[0].kept for share, each in zip(shares, alone, strict=True))
    )
    torch.testing.assert_close(
        gradient, sum(share * each[1] for share, each in zip(shares, alone, strict=True))
    )
    assert list(built.teachers) == ["teacher/a", "teacher/b"], "a weight of 0 needs no forward"


@pytest.mark.parametrize("loss", ["kl", "bkl", "bce_teacher", "dkd", "dist"])
def test_every_soft_loss_reads_the_mean(loss: str) -> None:
    """The gradient is that of one teacher with the mean probabilities at the loss's temperature."""
    temperature = {} if loss == "bce_teacher" else {"temperature": 2.0}
    target = {"target": "teacher"} if loss == "dkd" else {}
    soft = {"loss": loss, **temperature, **target}
    terms, gradient, _, _ = taught(soft=soft)
    t = temperature.get("temperature", 1.0)
    mean = torch.stack([(each.double() / t).softmax(-1) for each in some_logits()]).mean(0)
    spec = TypeAdapter(schema.ObjectiveSpec).validate_python({"soft": soft})
    student = torch.linspace(-2, 2, 30).reshape(6, 5).requires_grad_()
    batch: Any = None
    one = build_objective(spec)(Outputs(student), TeacherOutputs((t * mean.log()).float()), batch)
    (expected,) = torch.autograd.grad(one.total, student)
    torch.testing.assert_close(terms.soft, one.soft)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    # Kullback and Leibler would be blind to an error that moves all teachers alike.
    assert not torch.allclose(gradient, taught(soft=soft, combine="logits")[1], rtol=1e-2)


def test_students_of_one_combination_share_it() -> None:
    lessons = Lessons(
        {row: TeacherOutputs(each) for row, each in zip(ROWS, some_logits(), strict=True)}
    )
    combination = Combination(tuple(zip(ROWS, WEIGHTS, strict=True)))
    again = Combination(tuple(zip(ROWS, WEIGHTS, strict=True)))
    assert lessons.logits(combination)[0][1] is lessons.logits(again)[0][1]


def test_the_order_of_keys_changes_nothing() -> None:
    """Sums of float32 depend on their order, and the fingerprint of a recipe does not."""
    objectives = [
        TypeAdapter(schema.ObjectiveSpec).validate_python(
            {"soft": {"loss": "kl"}, "soft_teachers": weights}
        )
        for weights in (None, None, {"a": 0.1, "b": 0.2, "c": 0.3}, {"c": 0.3, "b": 0.2, "a": 0.1})
    ]
    rows = (ROWS, ROWS[::-1], ROWS, ROWS)
    equal, again, weighted, turned = map(combination_of, objectives, rows)
    assert equal == again
    assert weighted == turned


def test_a_teacher_without_classes_has_no_soft_loss() -> None:
    lessons = Lessons({row: TeacherOutputs(None) for row in ROWS})
    with pytest.raises(ValueError, match="teacher/a has none"):
        lessons.logits(Combination(((ROWS[0], 1.0),)))
