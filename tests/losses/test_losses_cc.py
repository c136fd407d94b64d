"""CC of the released code and of the original paper: value and gradient against loops."""

import math

import pytest
import torch
from torch import Tensor

from distill.losses import POOLED, FeatureMap, build_objective
from distill.losses.cc import (
    CC,
    CorrelationCongruence,
    correlation_congruence,
    neighbour_congruence,
)
from distill.recipe.schema import CCSpec, CESpec, ObjectiveSpec


def features(batch: int, student: int, teacher: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return tuple(torch.randn(batch, width, generator=draw) for width in (student, teacher))  # type: ignore[return-value]


def test_neighbours_equal_their_definition() -> None:
    both = [each.requires_grad_() for each in features(5, 4, 4)]
    exact = [each.detach().double().requires_grad_() for each in both]
    value = neighbour_congruence(*both)
    s, t = exact
    terms = [
        sum((s[i, d] - t[i, d]).abs() * (s[i + 1, d] - t[i + 1, d]).abs() for d in range(4))
        for i in range(4)
    ]
    reference = 0.02 * torch.stack(terms).sum() / 4
    value.backward()
    reference.backward()
    torch.testing.assert_close(value.double(), reference, rtol=1e-6, atol=0)
    for one, other in zip(both, exact, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-5, atol=1e-9)


def test_the_original_equals_its_definition() -> None:
    student, teacher = features(5, 4, 6)
    found, exact = student.clone().requires_grad_(), student.double().requires_grad_()
    value = correlation_congruence(found, teacher)

    def correlations(points: Tensor) -> list[Tensor]:
        unit = points.double() / points.double().norm(dim=1, keepdim=True)
        result = []
        for i in range(5):
            for j in range(5):
                cosine = (unit[i] * unit[j]).sum()
                series = sum((0.8 * cosine) ** p / math.factorial(p) for p in range(3))
                result.append(math.exp(-0.8) * series)
        return result

    pairs = zip(correlations(exact), correlations(teacher), strict=True)
    reference = torch.stack([(one - other) ** 2 for one, other in pairs]).sum() / 25
    value.backward()
    reference.backward()
    torch.testing.assert_close(value.double(), reference, rtol=1e-5, atol=0)
    assert found.grad is not None
    torch.testing.assert_close(found.grad.double(), exact.grad, rtol=1e-4, atol=1e-8)


def test_the_original_is_close_to_the_gaussian_kernel() -> None:
    """Its Taylor series of order 2, at cosines from -1 to 1; the next term is 0.8^3 / 6."""
    points, _ = features(30, 3, 3)
    unit = torch.nn.functional.normalize(points, dim=1)
    kernel = torch.exp(-0.4 * torch.cdist(unit, unit).square())
    # Against samples that are all orthogonal, whose correlations are exp(-0.8), and 1 with itself.
    other = math.exp(-0.8) * (1 + 0.8 * torch.eye(30) + 0.32 * torch.eye(30))
    exact = (kernel - other).square().mean().sqrt().item()
    found = correlation_congruence(points, torch.eye(30)).sqrt().item()
    assert found == pytest.approx(exact, abs=math.exp(-0.8) * 0.8**3 / 6 * 1.5)


@pytest.mark.parametrize("reference", ["paper_code", "original"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_recipe_builds_each(reference: str, dtype: torch.dtype) -> None:
    spec = ObjectiveSpec(
        hard=CESpec(loss="ce"), hint=CCSpec.model_validate({"loss": "cc", "reference": reference})
    )
    maps = ((FeatureMap(POOLED, 4, 1, 1),), (FeatureMap(POOLED, 6, 1, 1),))
    hint = build_objective(spec, maps=maps).hint
    assert hint
    heads = hint.build_heads()
    count = {"paper_code": 128 * (4 + 1) + 128 * (6 + 1), "original": 0}[reference]
    assert sum(parameter.numel() for parameter in heads.parameters()) == count
    student, teacher = ((100 * each)[..., None, None] for each in features(5, 4, 6))
    student = student.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        projected = heads((student,), (teacher.to(dtype),))
    value = heads.loss(projected, (teacher.to(dtype),), None)  # type: ignore[arg-type]
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    value.backward()
    assert student.grad is not None
    assert student.grad.abs().max() > 0


def test_both_maps_of_the_released_code_are_trained() -> None:
    heads = CC(4, 6, None)
    student, teacher = (each[..., None, None] for each in features(5, 4, 6))
    heads.loss(heads((student,), (teacher,)), (teacher,), None).backward()  # type: ignore[arg-type]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in heads.parameters())
    assert not list(CorrelationCongruence(None).parameters())
