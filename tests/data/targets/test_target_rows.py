"""Logits as bytes and back."""

import math

import pytest
import torch

from distill.data.targets import ALL, RowFormat
from distill.errors import InputError
from distill.losses.kl import kl

CPU = torch.device("cpu")


def some_logits(num_classes: int, count: int = 64) -> torch.Tensor:
    """Logits as peaked as those of a trained teacher."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, num_classes, generator=generator)
    return logits + 8 * torch.rand(count, 1, generator=generator) * torch.nn.functional.one_hot(
        torch.randint(num_classes, (count,), generator=generator), num_classes
    )


def roundtrip(rows: RowFormat, logits: torch.Tensor) -> torch.Tensor:
    return rows.decode(rows.encode(logits), CPU)


@pytest.mark.parametrize(
    ("keep", "num_classes", "dtype", "expected"),
    [
        (14, 1000, "bf16", 48),  # the table of docs/targets.md
        (32, 1000, "fp32", 106),
        (ALL, 1000, "fp16", 2000),
        (ALL, 1000, "fp32", 4000),
        (14, 100, "fp32", 43),
        (14, 21841, "bf16", 57),
        (100, 21841, "bf16", 390),
        (1, 2, "fp32", 5),
    ],
)
def test_bytes_of_a_row(keep: int, num_classes: int, dtype: str, expected: int) -> None:
    rows = RowFormat.chosen(keep, num_classes, dtype)
    assert rows.row_bytes == expected
    stored = rows.encode(some_logits(num_classes, 2).to(torch.bfloat16).float())
    assert sum(tensor[0].nbytes for tensor in stored.values()) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_logits_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    name = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    logits = some_logits(100).to(dtype).float()
    assert torch.equal(roundtrip(RowFormat.chosen(ALL, 100, name), logits), logits)


@pytest.mark.parametrize("num_classes", [2, 3, 64, 65, 1000, 21841, 70000])
def test_the_largest_logits_come_back_with_their_classes(num_classes: int) -> None:
    k = min(14, num_classes - 1)
    logits = some_logits(num_classes, 8)
    found = roundtrip(RowFormat.chosen(k, num_classes, "fp32"), logits)
    top, ids = logits.topk(k, dim=1)
    torch.testing.assert_close(found.gather(1, ids), top, rtol=2e-3, atol=2e-3)
    rest = found.scatter(1, ids, math.inf).topk(num_classes - k, largest=False, dim=1).values
    assert torch.equal(rest, rest[:, :1].expand_as(rest))  # spread evenly


def test_probabilities_at_temperature_1_have_the_right_mass() -> None:
    logits = some_logits(1000)
    found = roundtrip(RowFormat.chosen(14, 1000, "fp32"), logits).softmax(1)
    expected = logits.softmax(1)
    ids = logits.topk(14, dim=1).indices
    torch.testing.assert_close(found.gather(1, ids), expected.gather(1, ids), rtol=4e-3, atol=1e-6)
    mass = [each.scatter(1, ids, 0.0).sum(1) for each in (found, expected)]
    torch.testing.assert_close(*mass, rtol=4e-3, atol=1e-6)


def test_ratios_of_stored_classes_are_right_at_any_temperature() -> None:
    logits = some_logits(1000)
    found = roundtrip(RowFormat.chosen(14, 1000, "fp32"), logits)
    ids = logits.topk(14, dim=1).indices
    for temperature in (0.5, 2.0, 10.0):
        ours, theirs = ((each / temperature).gather(1, ids) for each in (found, logits))
        torch.testing.assert_close(ours.softmax(1), theirs.softmax(1), rtol=5e-3, atol=1e-6)


def test_a_shift_of_large_logits_costs_no_accuracy() -> None:
    # fp16 has steps of 0.5 at 1000; differences are stored, so probabilities do not notice.
    rows, logits = RowFormat.chosen(14, 1000, "fp32"), some_logits(1000)
    near, far = roundtrip(rows, logits), roundtrip(rows, logits + 1000)
    torch.testing.assert_close(near.softmax(1), far.softmax(1), rtol=1e-2, atol=1e-6)


def test_the_gradient_approaches_that_of_all_logits() -> None:
    logits, errors = some_logits(1000), []
    student = torch.randn(64, 1000, generator=torch.Generator().manual_seed(1))

    def gradient(teacher: torch.Tensor) -> torch.Tensor:
        own = student.clone().requires_grad_()
        kl(own, teacher, 1.0).backward()
        assert own.grad is not None
        return own.grad

    exact = gradient(logits)
    for k in (5, 50, 500, 999):
        found = gradient(roundtrip(RowFormat.chosen(k, 1000, "fp32"), logits))
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


@pytest.mark.parametrize("keep", [0, 10, 11])
def test_as_many_logits_as_classes_are_refused(keep: int) -> None:
    with pytest.raises(InputError, match=r"--keep \d+: should be from 1 to 9.*--keep all"):
        RowFormat.chosen(keep, 10, "fp32")


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e6])
def test_logits_that_do_not_fit_are_refused(value: float) -> None:
    logits = some_logits(100)
    logits[3, 5] = value
    with pytest.raises(InputError, match="not finite, or too large"):
        RowFormat.chosen(5, 100, "fp32").encode(logits)
    if not math.isfinite(value):
        with pytest.raises(InputError, match="not finite"):
            RowFormat.chosen(ALL, 100, "fp32").encode(logits)
