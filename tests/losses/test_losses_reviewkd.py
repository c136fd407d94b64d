"""ReviewKD: value and gradient against loops from the definition, sizes, scales, and precision."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.losses import POOLED, FeatureKey, FeatureMap, build_objective
from distill.losses.reviewkd import Fusion, ReviewKD, hcl, rescaled
from distill.recipe.schema import CESpec, ObjectiveSpec, ReviewKDSpec

Shape = tuple[int, int, int]


def levels(*shapes: Shape, scales: tuple[float, ...] | None = None) -> tuple[FeatureMap, ...]:
    """Levels of these shapes; the last one is that of the pooled features."""
    keys = [*(FeatureKey(stage) for stage in range(len(shapes) - 1)), POOLED]
    return tuple(
        FeatureMap(key, *shape, scale)
        for key, shape, scale in zip(keys, shapes, scales or (1.0,) * len(shapes), strict=True)
    )


def drawn(maps: tuple[FeatureMap, ...], batch: int = 3, seed: int = 0) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(each.channels, each.height, each.width) for each in maps]
    return tuple(torch.randn(batch, *shape, generator=draw) for shape in shapes)


def batch(epoch: int = 1) -> Any:
    return SimpleNamespace(epoch=epoch)


# ---- the definition, in float64 ------------------------------------------------------------------


def window(index: int, count: int, length: int) -> slice:
    """Cells of the index-th of `count` windows on a line: from the floor to the ceiling."""
    return slice(index * length // count, -(-(index + 1) * length // count))


def hcl_by_definition(student: Tensor, teacher: Tensor) -> Tensor:
    height, width = student.shape[2:]
    terms = [(1.0, (student - teacher).square().mean())]
    weight = 1.0
    for size in (4, 2, 1):
        if size >= max(height, width):
            continue
        high, wide = min(size, height), min(size, width)
        squares = []
        for i in range(high):
            for j in range(wide):
                rows, columns = window(i, high, height), window(j, wide, width)
                mean_s, mean_t = (
                    each[:, :, rows, columns].mean((2, 3)) for each in (student, teacher)
                )
                squares.append((mean_s - mean_t).square().mean())
        weight /= 2
        terms.append((weight, torch.stack(squares).mean()))
    total = sum(weight for weight, _ in terms)
    return torch.stack([weight * term for weight, term in terms]).sum() / total


def nearest(features: Tensor, size: tuple[int, int]) -> Tensor:
    rows = [i * features.shape[2] // size[0] for i in range(size[0])]
    columns = [i * features.shape[3] // size[1] for i in range(size[1])]
    return features[:, :, rows][:, :, :, columns]


def normalised(features: Tensor) -> Tensor:
    mean = features.mean((0, 2, 3), keepdim=True)
    variance = (features - mean).square().mean((0, 2, 3), keepdim=True)
    return (features - mean) / (variance + 1e-5).sqrt()


def convolved(features: Tensor, weight: Tensor) -> Tensor:
    """A 3x3 convolution with a border of zeros, tap by tap."""
    b, _, h, w = features.shape
    padded = torch.zeros(b, features.shape[1], h + 2, w + 2, dtype=features.dtype)
    padded[:, :, 1:-1, 1:-1] = features
    taps = [
        torch.einsum("bchw,oc->bohw", padded[:, :, i : i + h, j : j + w], weight[:, :, i, j])
        for i in range(3)
        for j in range(3)
    ]
    return torch.stack(taps).sum(0)


def by_definition(heads: ReviewKD, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """The loss from the weights of the heads; the gate as one convolution of both features."""
    total = torch.zeros((), dtype=torch.float64)
    deeper: Tensor | None = None
    for level in reversed(range(len(student))):
        fusion = heads.fusions[level]
        assert isinstance(fusion, Fusion)
        x = torch.einsum("bchw,oc->bohw", student[level], fusion.reduce.weight[:, :, 0, 0])
        x = normalised(x)
        if deeper is not None:
            size = tuple(x.shape[2:])
            y = nearest(deeper, (size[0], size[1]))
            weight = torch.cat([fusion.gate.weight, fusion.deeper_gate.weight], 1)[:, :, 0, 0]
            z = torch.einsum("bchw,oc->bohw", torch.cat([x, y], 1), weight)
            z = 1 / (1 + (-z - fusion.gate.bias.view(1, 2, 1, 1)).exp())
            x = x * z[:, :1] + y * z[:, 1:]
        height, width = teacher[level].shape[2:]
        deeper = nearest(x, (height, width))
        found = normalised(convolved(deeper, fusion.project.weight))
        total = total + hcl_by_definition(found, teacher[level])
    return total


PAIRS = {
    "equal sizes": (
        levels((4, 8, 8), (6, 4, 4), (7, 2, 2), (7, 1, 1)),
        levels((3, 8, 8), (5, 4, 4), (4, 2, 2), (9, 1, 1)),
    ),
    "larger teacher": (levels((4, 7, 7), (6, 1, 1)), levels((3, 14, 14), (5, 1, 1))),
    "larger student": (
        levels((4, 12, 12), (6, 5, 5), (6, 1, 1)),
        levels(*[(3, 6, 6)] * 2, (5, 1, 1)),
    ),
    "not square": (
        levels((4, 6, 10), (3, 3, 5), (8, 1, 1)),
        levels((3, 8, 3), (2, 4, 2), (5, 1, 1)),
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_equals_its_definition(pair: str) -> None:
    torch.manual_seed(0)
    ours, theirs = PAIRS[pair]
    heads = ReviewKD(ours, theirs, warmup_epochs=0)
    student, teacher = drawn(ours), drawn(theirs, seed=1)
    inputs = [each.clone().requires_grad_() for each in student]
    value = heads.loss(heads(tuple(inputs), teacher), teacher, batch())
    value.backward()
    found = [*inputs, *(p for n, p in heads.named_parameters() if "norm" not in n)]

    exact = ReviewKD(ours, theirs, warmup_epochs=0).double()
    exact.load_state_dict(heads.state_dict())
    doubles = [each.double().requires_grad_() for each in student]
    reference = by_definition(exact, doubles, [each.double() for each in teacher])
    reference.backward()
    expected = [*doubles, *(p for n, p in exact.named_parameters() if "norm" not in n)]
    torch.testing.assert_close(value.double(), reference, rtol=1e-5, atol=0)
    for one, two in zip(found, expected, strict=True):
        assert one.grad is not None
        assert two.grad is not None
        largest = float(two.grad.abs().max())
        torch.testing.assert_close(one.grad.double(), two.grad, rtol=1e-4, atol=1e-4 * largest)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (14, 7), (56, 56)])
def test_the_context_loss_equals_its_definition(size: tuple[int, int]) -> None:
    one, two = (torch.randn(2, 3, *size, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(hcl(one, two), hcl_by_definition(one, two), rtol=1e-12, atol=0)


def test_the_context_loss_by_hand() -> None:
    """2x2: the mean of 1, 9, 25, 1 is 9, the square of the mean is 4 and weighs 1/2."""
    student, teacher = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 3.0], [5.0, -1.0]]]])
    assert float(hcl(student, teacher)) == pytest.approx((9 + 4 / 2) / 1.5)
    assert float(hcl(student[:, :, :1, :1], teacher[:, :, :1, 1:])) == 9.0
    ramp = torch.arange(16.0).view(1, 1, 4, 4)
    quarters = torch.tensor([2.5, 4.5, 10.5, 12.5])
    expected = (ramp.square().mean() + quarters.square().mean() / 2 + 7.5**2 / 4) / 1.75
    assert float(hcl(torch.zeros(1, 1, 4, 4), ramp)) == pytest.approx(float(expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite(dtype: torch.dtype) -> None:
    """Squares of 300 leave fp16's range."""
    ours, theirs = PAIRS["equal sizes"]
    student = tuple((300 * each).to(dtype).requires_grad_() for each in drawn(ours))
    teacher = tuple((300 * each).to(dtype) for each in drawn(theirs, seed=1))
    for one, two in zip(drawn(theirs), teacher, strict=True):
        exact = hcl(300 * one, two.float())
        torch.testing.assert_close(hcl((300 * one).to(dtype), two), exact, rtol=1e-2, atol=0)
    heads = ReviewKD(ours, theirs, warmup_epochs=0)
    with torch.autocast("cpu", dtype=dtype):
        projected = heads(student, teacher)
    value = heads.loss(projected, teacher, batch())
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    value.backward()
    for each in (*student, *heads.parameters()):
        assert each.grad is not None
        assert torch.isfinite(each.grad).all()


def test_the_loss_begins_after_its_warmup_and_the_teacher_gets_no_gradient() -> None:
    ours, theirs = PAIRS["equal sizes"]
    student = drawn(ours)
    teacher = tuple(each.requires_grad_() for each in drawn(theirs, seed=1))

    def value(warmup_epochs: int, epoch: int) -> float:
        torch.manual_seed(0)
        heads = ReviewKD(ours, theirs, warmup_epochs)
        loss = heads.loss(heads(student, teacher), teacher, batch(epoch))
        loss.backward()
        return float(loss.detach())

    full = value(0, 0)
    assert full > 0
    assert [value(1, epoch) for epoch in (0, 1, 7)] == [0.0, full, full]
    found = [value(20, epoch) / full for epoch in (0, 5, 19, 20, 21)]
    assert found == pytest.approx([0.0, 0.25, 0.95, 1.0, 1.0])
    assert all(each.grad is None for each in teacher)


def test_channels_become_pixels_in_the_order_of_the_released_code() -> None:
    """Its einsum is nhwpqc->nchpwq of tokens whose channels are p, q, c."""
    side, height, width, channels = 2, 3, 2, 5
    tokens = torch.randn(2, height * width, side * side * channels)
    features = tokens.transpose(1, 2).reshape(2, -1, height, width)
    found = rescaled(features, 2.0)
    assert found.shape == (2, channels, height * side, width * side)
    split = tokens.view(2, height, width, side, side, channels)
    for i in range(height * side):
        for j in range(width * side):
            pixel = split[:, i // side, j // side, i % side, j % side]
            assert torch.equal(found[:, :, i, j], pixel)
    halved = rescaled(features[:, :, :2], 0.5)
    torch.testing.assert_close(halved, features[:, :, :2].mean((2, 3), keepdim=True))
    assert rescaled(features, 1.0) is features
    assert rescaled(features[:, :, :1, :1], 0.5).shape[2:] == (1, 1)


def test_scaled_levels_of_both_sides_are_compared() -> None:
    ours = levels((4, 8, 8), (16, 4, 4), (16, 2, 2), (16, 1, 1), scales=(2.0, 1.0, 0.5, 1.0))
    theirs = levels((3, 8, 8), (12, 4, 4), (12, 2, 2), (12, 1, 1), scales=(2.0, 1.0, 0.5, 1.0))
    torch.manual_seed(0)
    heads = ReviewKD(ours, theirs, warmup_epochs=0)
    raw_student = (*(torch.randn(3, 16, 4, 4) for _ in range(3)), torch.randn(3, 16, 1, 1))
    raw_teacher = (*(torch.randn(3, 12, 4, 4) for _ in range(3)), torch.randn(3, 12, 1, 1))
    value = heads.loss(heads(raw_student, raw_teacher), raw_teacher, batch())
    exact = ReviewKD(ours, theirs, warmup_epochs=0).double()
    exact.load_state_dict(heads.state_dict())
    student, teacher = (
        [
            rescaled(each, scale).double()
            for each, scale in zip(side, (2.0, 1.0, 0.5, 1.0), strict=True)
        ]
        for side in (raw_student, raw_teacher)
    )
    reference = by_definition(exact, student, teacher)
    torch.testing.assert_close(value.double(), reference, rtol=1e-5, atol=0)


def test_the_first_weights_are_those_of_the_released_code() -> None:
    """kaiming_uniform with a=1: within sqrt(3 / fan_in); the gate is torch's default for 2 * width
    inputs. The width is at most 512 and at most the student's last one.
    """
    for last, width in ((6, 6), (600, 512)):
        ours = levels((40, 2, 2), (last, 1, 1))
        theirs = levels((30, 2, 2), (30, 1, 1))
        heads = ReviewKD(ours, theirs, warmup_epochs=0)
        largest, deepest = heads.fusions
        assert isinstance(largest, Fusion)
        bounds = {
            largest.reduce.weight: (3 / 40) ** 0.5,
            largest.project.weight: (3 / (9 * width)) ** 0.5,
            largest.gate.weight: (2 * width) ** -0.5,
            largest.deeper_gate.weight: (2 * width) ** -0.5,
        }
        for weight, bound in bounds.items():
            assert 0.7 * bound < float(weight.detach().abs().max()) <= bound
        assert largest.project.weight.shape == (30, width, 3, 3)
        assert not hasattr(deepest, "gate")


def test_the_objective_takes_as_many_levels_as_both_sides_have() -> None:
    ours = levels((4, 8, 8), (6, 4, 4), (7, 1, 1))
    theirs = levels((3, 16, 16), (5, 8, 8), (4, 4, 4), (9, 1, 1))
    spec = ObjectiveSpec(hard=CESpec(loss="ce"), hint=ReviewKDSpec(loss="reviewkd"))
    hint = build_objective(spec, maps=(ours, theirs)).hint
    assert hint
    assert hint.student_features == (FeatureKey(0), FeatureKey(1), POOLED)
    assert hint.teacher_features == (FeatureKey(1), FeatureKey(2), POOLED)
    heads = hint.build_heads()
    teacher = drawn(theirs[1:], seed=1)
    shapes = [each.shape for each in heads(drawn(ours), teacher)]
    assert shapes == [each.shape for each in teacher]
    longer = build_objective(spec, maps=(ours, theirs[1:])).hint
    other = build_objective(spec, maps=(ours[1:], theirs)).hint
    assert longer
    assert other
    assert hint.heads_key == longer.heads_key != other.heads_key
