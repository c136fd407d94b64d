"""Stored rows are as near to the live teacher as rounding explains, or are found out."""

import pytest
import torch
from test_target_rows import some_logits

from distill.data.targets import ALL, RowFormat, gaps


def is_right(rows: RowFormat, stored: torch.Tensor, live: torch.Tensor) -> list[bool]:
    found = gaps(rows, rows.encode(stored), live, "fp32")
    return (found.gap <= found.allowed).tolist()


@pytest.mark.parametrize(("keep", "num_classes"), [(ALL, 100), (5, 100), (1, 2), (14, 21841)])
def test_rows_of_the_same_logits_are_right(keep: int, num_classes: int) -> None:
    rows, logits = RowFormat.chosen(keep, num_classes, "fp32"), some_logits(num_classes)
    found = gaps(rows, rows.encode(logits), logits, "fp32")
    assert found.same.all()
    assert (found.gap <= found.allowed / 4).all()
    assert (found.gap == 0).all() == (keep == ALL)


@pytest.mark.parametrize("keep", [ALL, 5])
def test_last_digits_may_differ(keep: int) -> None:
    rows, logits = RowFormat.chosen(keep, 100, "fp32"), some_logits(100)
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    found = gaps(rows, rows.encode(logits), logits + 1e-4 * noise, "fp32")
    assert not found.same.all()
    assert (found.gap <= found.allowed).all()


def test_of_nearly_equal_logits_either_may_be_stored() -> None:
    rows, logits = RowFormat.chosen(2, 10, "fp32"), torch.zeros(2, 10)
    logits[:, 3], logits[0, 5], logits[1, 7] = 2, 1e-5, 1e-5
    assert is_right(rows, logits, logits.flip(0)) == [True, True]


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("keep", [ALL, 5])
def test_other_rows_are_found(keep: int, dtype: str) -> None:
    rows, logits = RowFormat.chosen(keep, 100, dtype), some_logits(100).to(torch.bfloat16).float()
    found = gaps(rows, rows.encode(logits), logits.roll(1, 0), dtype)
    assert not found.same.any()
    assert (found.gap > found.allowed).all()


def test_one_wrong_number_is_found() -> None:
    rows, live = RowFormat.chosen(5, 100, "fp32"), some_logits(100)
    top = live.topk(6, dim=1).indices
    largest, moved, rest = live.clone(), live.clone(), live.clone()
    largest[0].scatter_add_(0, top[0, :1], torch.tensor([0.5]))
    moved[1, top[1, 4]] = live[1, top[1, 5]] - 1  # another class is the fifth
    rest[2].scatter_(0, top[2, 5:], torch.tensor([-20.0]))
    expected = [[row != each for row in range(3)] for each in range(3)]
    for stored, right in zip((largest, moved, rest), expected, strict=True):
        assert is_right(rows, stored[:3], live[:3]) == right


def test_what_is_not_finite_is_not_right() -> None:
    rows, logits = RowFormat.chosen(ALL, 10, "fp32"), some_logits(10)
    stored = {"logits": logits.clone()}
    stored["logits"][0, 0] = torch.nan
    found = gaps(rows, stored, logits, "fp32")
    assert found.gap.isnan().tolist() == [True, *[False] * 63]
    assert not found.gap[0] <= found.allowed[0]
