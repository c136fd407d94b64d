"""FitNet: value and gradient against the definition, sizes that differ, and what is refused."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.losses import FeatureKey, FeatureMap, Outputs, TeacherOutputs, build_objective
from distill.losses.fitnet import Distance, FitNet, fitnet
from distill.recipe.schema import CESpec, FitNetSpec, ObjectiveSpec


def maps(
    sizes: tuple[tuple[int, int], tuple[int, int]], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 6, *size, generator=draw) for size in sizes)
    return student.to(dtype), teacher.to(dtype)


def by_definition(student: Tensor, teacher: Tensor, distance: Distance) -> Tensor:
    """Element by element in float64, for sizes of which one is a multiple of the other."""
    student, teacher = student.double(), teacher.double()
    height, width = (min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True))

    def cells(features: Tensor) -> Tensor:
        b, c, h, w = features.shape
        tiles = features.reshape(b, c, height, h // height, width, w // width)
        return tiles.mean((3, 5))

    difference = cells(student) - cells(teacher)
    terms = difference.abs() if distance == "l1" else difference**2
    return terms.sum() / terms.numel()


@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize(
    "sizes",
    [((4, 4), (4, 4)), ((4, 4), (8, 8)), ((8, 8), (4, 4)), ((2, 8), (6, 4))],
    ids=["equal", "larger teacher", "larger student", "each larger in one side"],
)
def test_equals_its_definition(sizes: tuple[Any, Any], distance: Distance) -> None:
    student, teacher = maps(sizes)
    found, expected = student.clone().requires_grad_(), student.clone().double().requires_grad_()
    value, reference = (
        fitnet(found, teacher, distance),
        by_definition(expected, teacher, distance),
    )
    value.backward()
    reference.backward()
    torch.testing.assert_close(value.double(), reference, rtol=1e-6, atol=0)
    assert found.grad is not None
    torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-5, atol=1e-9)


def test_by_hand() -> None:
    student, teacher = torch.zeros(1, 1, 1, 1), torch.tensor([[[[1.0, 3.0], [5.0, -1.0]]]])
    assert fitnet(student, teacher, "l1") == 2.0
    assert fitnet(student, teacher, "l2") == 4.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_in_float32(dtype: torch.dtype) -> None:
    """Squares of 300 leave fp16's range."""
    student, teacher = (300 * each for each in maps(((4, 4), (4, 4)), dtype))
    value = fitnet(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, fitnet(student.float(), teacher.float()))


def test_the_teacher_gets_no_gradient_and_shapes_must_agree() -> None:
    student, teacher = (each.requires_grad_() for each in maps(((4, 4), (4, 4))))
    fitnet(student, teacher).backward()
    assert teacher.grad is None
    with pytest.raises(ValueError, match=r"are \[4, 6, 4, 4\] and the teacher's \[4, 5, 4, 4\]"):
        fitnet(student, teacher[:, :5])


def test_the_objective_adds_a_weighted_hint_and_builds_its_heads() -> None:
    spec = ObjectiveSpec(
        hard=CESpec(loss="ce"), hint=FitNetSpec(loss="fitnet", weight=0.5, distance="l1")
    )
    two, three = FeatureKey(2), FeatureKey(3)
    shapes = ((FeatureMap(two, 6, 4, 4),), (FeatureMap(three, 5, 2, 2),))
    objective = build_objective(spec, maps=shapes)
    assert objective.hint is not None
    assert (objective.hint.student_features, objective.teacher_features) == ((two,), (three,))
    heads = objective.hint.build_heads()
    assert isinstance(heads, FitNet)
    student, _ = maps(((4, 4), (4, 4)))
    projected = heads((student,), ())
    assert projected[0].shape == (4, 5, 4, 4)
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    batch = SimpleNamespace(label_probs=torch.eye(3)[labels], labels=labels)
    features = {FeatureKey(1): student, three: torch.randn(4, 5, 2, 2)}
    teacher = TeacherOutputs(torch.randn(4, 3), features)
    terms = objective(Outputs(logits, projected), teacher, batch, heads)
    assert terms.hint is not None
    torch.testing.assert_close(terms.hint, fitnet(projected[0], teacher.features[three], "l1"))
    assert terms.hard is not None
    torch.testing.assert_close(terms.total, terms.hard + 0.5 * terms.hint)
    with pytest.raises(ValueError, match="no teacher outputs"):
        objective(Outputs(logits, projected), None, batch, heads)


def test_heads_are_alike_only_for_hints_that_differ_in_their_weight() -> None:
    def key(student: int, teacher: int, **changes: Any) -> object:
        spec = ObjectiveSpec(hard=CESpec(loss="ce"), hint=FitNetSpec(loss="fitnet", **changes))
        shapes = [(FeatureMap(FeatureKey(stage), 6, 4, 4),) for stage in (student, teacher)]
        hint = build_objective(spec, maps=(shapes[0], shapes[1])).hint
        assert hint
        return hint.heads_key

    assert key(1, 2) == key(1, 2, weight=3.0)
    assert len({key(1, 2), key(2, 2), key(1, 1), key(1, 2, distance="l1")}) == 4
