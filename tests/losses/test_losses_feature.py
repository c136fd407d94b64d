"""Features of a teacher without classes: value, gradient, sizes that differ, what is refused."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from distill.losses import POOLED, FeatureKey, FeatureMap, build_objective
from distill.losses.feature import Distance, Feature, feature_distance
from distill.recipe.schema import CESpec, FeatureSpec, ObjectiveSpec


def maps(
    student: tuple[int, int], teacher: tuple[int, int], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    one, other = (torch.randn(3, 5, *size, generator=draw) for size in (student, teacher))
    return one.to(dtype), other.to(dtype)


def by_definition(student: Tensor, teacher: Tensor, distance: Distance) -> Tensor:
    ours, theirs = student.double(), teacher.double()
    if distance == "mse":
        return (ours - theirs).square().sum() / ours.numel()
    terms = []
    for b in range(ours.shape[0]):
        for y in range(ours.shape[2]):
            for x in range(ours.shape[3]):
                one, other = ours[b, :, y, x], theirs[b, :, y, x]
                terms.append(1 - (one * other).sum() / (one.norm() * other.norm()))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("distance", ["cosine", "mse"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_equals_its_definition(distance: Distance, size: tuple[int, int]) -> None:
    student, teacher = maps(size, size)
    found, exact = student.clone().requires_grad_(), student.double().requires_grad_()
    value, reference = (
        feature_distance(found, teacher, distance),
        by_definition(exact, teacher, distance),
    )
    value.backward()
    reference.backward()
    torch.testing.assert_close(value.double(), reference, rtol=1e-6, atol=0)
    assert found.grad is not None
    torch.testing.assert_close(found.grad.double(), exact.grad, rtol=1e-5, atol=1e-8)


def test_the_larger_map_is_averaged() -> None:
    student, teacher = maps((4, 4), (2, 2))
    small = torch.nn.functional.avg_pool2d(student, 2)
    assert torch.equal(feature_distance(student, teacher), feature_distance(small, teacher))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_half_precision_computes_in_float32(dtype: torch.dtype, distance: Distance) -> None:
    student, teacher = (300 * each for each in maps((2, 2), (2, 2), dtype))
    value = feature_distance(student, teacher, distance)
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    torch.testing.assert_close(
        value, feature_distance(student.float(), teacher.float(), distance), rtol=1e-6, atol=1e-6
    )


def test_a_recipe_builds_the_projection() -> None:
    spec = ObjectiveSpec(hard=CESpec(loss="ce"), hint=FeatureSpec(loss="feature", distance="mse"))
    shapes = ((FeatureMap(POOLED, 4, 1, 1),), (FeatureMap(POOLED, 5, 1, 1),))
    hint = build_objective(spec, maps=shapes).hint
    assert hint
    assert hint.student_features == (POOLED,)
    heads = hint.build_heads()
    assert isinstance(heads, Feature)
    assert sum(parameter.numel() for parameter in heads.parameters()) == 5 * 4 + 5
    student, teacher = torch.randn(3, 4, 1, 1), torch.randn(3, 5, 1, 1)
    weight, bias = heads.projection.weight[..., 0, 0], heads.projection.bias
    assert bias is not None
    projected = student[..., 0, 0] @ weight.T + bias
    torch.testing.assert_close(
        heads.loss(heads((student,), (teacher,)), (teacher,), None),  # type: ignore[arg-type]
        (projected - teacher[..., 0, 0]).square().mean(),
    )


def test_a_stage_without_dense_is_refused() -> None:
    with pytest.raises(ValidationError, match="student_stage names a feature map: set level"):
        FeatureSpec(loss="feature", student_stage=1)
    dense = FeatureSpec(loss="feature", level="dense", student_stage=1)
    assert dense.heads != FeatureSpec(loss="feature", level="dense").heads
    assert FeatureKey(1) < POOLED
