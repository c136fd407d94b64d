"""Classes drawn from the tail: the expectation is the teacher, whatever one draw says."""

import numpy as np
import pytest
import torch
from test_target_rows import CPU, some_logits

from distill.data.targets import ALL, RowFormat, draw_keys, gaps
from distill.data.targets.draws import cumulative, draw
from distill.errors import InputError
from distill.losses.bkl import bce_teacher, bkl
from distill.losses.kl import kl

K, KEPT, DRAWS, ROWS = 40, 3, 12, 20_000
KEYS = draw_keys(0, 0, np.arange(ROWS))


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    logits = torch.randn(1, K, generator=torch.Generator().manual_seed(3)) * 1.5
    logits[0, 4] = logits.topk(KEPT).values.min() - 0.1
    logits[0, 8] = -20
    return logits


def test_every_class_comes_in_proportion_to_its_probability(logits: torch.Tensor) -> None:
    ids = logits.topk(KEPT, dim=1).indices
    many = logits.expand(ROWS, K)
    drawn = draw(many, ids.expand(ROWS, KEPT), KEYS, DRAWS)
    counts = torch.zeros(ROWS, K, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    tail = logits.double().scatter(1, ids, -torch.inf).softmax(1)[0]
    expected, fraction = DRAWS * tail, (DRAWS * tail) % 1
    variance = fraction * (1 - fraction)
    assert expected.max() > 1  # at least one class comes once or twice
    assert ((counts - expected).abs() < 1).all()
    assert ((counts.mean(0) - expected).abs() <= 5 * (variance / ROWS).sqrt() + 1e-12).all()
    assert (variance <= DRAWS * tail * (1 - tail) + 1e-12).all()
    torch.testing.assert_close(counts.var(0), variance, rtol=0.1, atol=1e-3)
    assert counts[:, ids[0]].sum() == 0


@pytest.mark.parametrize("loss", [kl, bkl, bce_teacher])
def test_the_mean_gradient_is_that_of_the_live_teacher(logits: torch.Tensor, loss: object) -> None:
    """In float64; the even spread of the k largest alone is biased."""
    student = torch.randn(1, K, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def gradient(teacher: torch.Tensor) -> torch.Tensor:
        own = student.expand(len(teacher), K).clone().requires_grad_()
        loss(own, teacher.double()).backward()  # type: ignore[operator]
        assert own.grad is not None
        return own.grad * len(teacher)

    exact = gradient(logits)[0]
    many = logits.expand(ROWS, K)
    sampled = RowFormat.chosen(KEPT, K, "fp32", DRAWS)
    single = gradient(sampled.decode(sampled.encode(many, KEYS), CPU))
    # fp16 rounds what is stored, by 2^-11 of a difference.
    noise = 5 * single.std(0) / ROWS**0.5 + 1e-3 * exact.abs().max()
    assert ((single.mean(0) - exact).abs() <= noise).all()
    top = RowFormat.chosen(KEPT, K, "fp32")
    biased = gradient(top.decode(top.encode(logits), CPU))[0]
    assert (biased - exact).norm() > 10 * (single.mean(0) - exact).norm()


def test_the_largest_logits_and_the_mass_of_the_rest_are_exact() -> None:
    logits = some_logits(1000)
    keys = draw_keys(0, 0, np.arange(64))
    rows = RowFormat.chosen(14, 1000, "bf16", 8)
    assert rows.row_bytes == 58
    stored = rows.encode(logits, keys)
    assert sum(tensor[0].nbytes for tensor in stored.values()) == 58
    found, ids = rows.decode(stored, CPU), logits.topk(14, dim=1).indices
    torch.testing.assert_close(found.gather(1, ids), logits.gather(1, ids), rtol=2e-3, atol=2e-3)
    mass = [each.softmax(1).gather(1, ids).sum(1) for each in (found, logits)]
    torch.testing.assert_close(*mass, rtol=4e-3, atol=1e-6)
    assert ((found.double().softmax(1) > 0).sum(1) <= 22).all()
    assert found.isfinite().all()


def test_draws_follow_from_seed_epoch_and_row() -> None:
    logits, rows = some_logits(1000), np.arange(64)
    ids = logits.topk(14, dim=1).indices

    def drawn(seed: int, epoch: int, first: int = 0) -> torch.Tensor:
        return draw(logits, ids, draw_keys(seed, epoch, rows + first), 8)

    found = drawn(0, 0)
    assert torch.equal(found, drawn(0, 0))
    half = draw(logits[32:], ids[32:], draw_keys(0, 0, rows[32:]), 8)
    assert torch.equal(half, found[32:])  # however many are encoded together
    for other in (drawn(1, 0), drawn(0, 1), drawn(0, 0, 64)):
        assert not (other == found).all(1).any()


def test_the_last_class_is_drawn_and_kept_ones_are_not() -> None:
    logits = torch.tensor([[9.0, 0.0, -1000.0, 8.0, -1000.0]])
    ids = torch.tensor([[0, 3]])
    assert cumulative(logits, ids)[0].tolist() == [0.0, *[1.0] * 4]
    drawn = draw(logits.expand(100, 5), ids.expand(100, 2), KEYS[:100], 7)
    assert drawn.unique().tolist() == [1]
    only_last = torch.tensor([[9.0, 7.0, 8.0, -5.0]])
    drawn = draw(only_last.expand(100, 4), torch.tensor([[0, 1, 2]]).expand(100, 3), KEYS[:100], 7)
    assert drawn.unique().tolist() == [3]


def test_draws_of_another_row_are_found() -> None:
    logits, keys = some_logits(100), draw_keys(0, 0, np.arange(64))
    rows = RowFormat.chosen(5, 100, "fp32", 4)
    stored = rows.encode(logits, keys)
    found = gaps(rows, stored, logits, "fp32", keys)
    assert found.same.all()
    noise = 1e-4 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    near = gaps(rows, stored, logits + noise, "fp32", keys)
    assert (near.gap <= near.allowed).all()
    moved = {**stored, "drawn": stored["drawn"].roll(1, 0)}
    found = gaps(rows, moved, logits, "fp32", keys)
    assert (found.gap > found.allowed).float().mean() > 0.95


def test_draws_of_another_class_are_found_at_any_precision() -> None:
    """Class 2 has nearly all of the rest, and class 3 is stored as drawn."""
    logits = torch.tensor([[20.0, 15.0, 5.0, 2.5, -20.0]])
    keys = draw_keys(0, 0, np.arange(1))
    other = logits[:, [0, 1, 3, 2, 4]]
    rows = RowFormat.chosen(2, 5, "bf16", 4)
    stored = {**rows.encode(logits, keys), "drawn": rows.encode(other, keys)["drawn"]}
    for dtype in ("fp32", "fp16", "bf16"):
        found = gaps(rows, stored, logits, dtype, keys)
        assert (found.gap > found.allowed).all(), dtype


def test_a_move_of_logits_explains_how_far_draws_move() -> None:
    """Half of the classes move up and half down, which moves the points of the sum furthest."""
    move, logits = 0.02, torch.zeros(64, 100)
    logits[:, 0] = 5
    keys, rows = draw_keys(0, 0, np.arange(64)), RowFormat.chosen(1, 100, "fp32", 50)
    moved = logits.clone()
    moved[:, 1:50] += move
    moved[:, 50:] -= move
    found = gaps(rows, rows.encode(logits, keys), moved, "fp32", keys)
    assert 0.5 * move < float(found.gap.amax()) <= move


def test_there_is_a_rest_to_draw_from() -> None:
    with pytest.raises(InputError, match="--sampled: draws from the logits that are not kept"):
        RowFormat.chosen(ALL, 10, "fp32", 2)
    assert "num_draws" not in RowFormat.chosen(3, 10, "fp32").to_dict()  # as earlier manifests
