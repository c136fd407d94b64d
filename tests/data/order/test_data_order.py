import numpy as np
import pytest

from distill.data.order.lanes import LaneOrder
from distill.data.order.shuffled import Order, TrainOrder
from distill.errors import InputError
from distill.rng import hash64, permute


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16, 17, 31, 97, 128, 129, 1000, 4096, 4097, 10007])
def test_permute_is_a_bijection(n: int) -> None:
    for key in (0, 1, hash64(5)):
        assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


def test_permute_needs_no_more_than_the_positions_asked_for() -> None:
    n = 14_197_122  # ImageNet-21K
    whole_batches = permute(np.arange(4096), n, 9)
    assert np.array_equal(permute(np.arange(1000, 1100), n, 9), whole_batches[1000:1100])
    assert len(set(whole_batches.tolist())) == 4096
    assert whole_batches.max() > 0.99 * n


@pytest.mark.parametrize("n", [3, 5, 6, 11])
def test_permute_is_uniform_over_positions_and_successive_pairs(n: int) -> None:
    trials = 2500
    cells, pairs = np.zeros((n, n)), np.zeros((n, n))
    for key in range(trials):
        p = permute(np.arange(n), n, hash64("test", key))
        cells[np.arange(n), p] += 1
        pairs[p[0], p[1]] += 1
    chi_square = ((cells - trials / n) ** 2 / (trials / n)).sum()
    freedom = (n - 1) ** 2
    assert abs(chi_square - freedom) < 4.5 * np.sqrt(2 * freedom)
    expected = trials / (n * (n - 1))
    off_diagonal = pairs[~np.eye(n, dtype=bool)]
    freedom = n * (n - 1) - 1
    assert abs(((off_diagonal - expected) ** 2 / expected).sum() - freedom) < 4.5 * np.sqrt(
        2 * freedom
    )


def test_permute_has_no_fixed_structure() -> None:
    n = 5000
    a, b = permute(np.arange(n), n, 1), permute(np.arange(n), n, 2)
    for order in (a, b):
        assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.06
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.06
        assert (
            order == np.arange(n)
        ).sum() < 8  # a random permutation has one fixed point on average
    assert (a == b).sum() < 8
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.06


def test_an_epoch_shows_every_sample_once_and_drops_the_tail() -> None:
    order = Order(103, 10, seed=3)
    assert order.steps_per_epoch == 10
    epochs = []
    for epoch in range(2):
        plans = [order.batch(epoch * 10 + i) for i in range(10)]
        assert {plan.epoch for plan in plans} == {epoch}
        indices = np.concatenate([plan.indices for plan in plans])
        assert len(set(indices.tolist())) == 100
        assert all((plan.views == 0).all() for plan in plans)
        epochs.append(indices)
    assert not np.array_equal(*epochs)
    assert np.array_equal(order.batch(13).positions, np.arange(130, 140))
    assert np.array_equal(order.batch(13).indices, Order(103, 10, seed=3).batch(13).indices)
    assert not np.array_equal(order.batch(13).indices, Order(103, 10, seed=4).batch(13).indices)


def test_a_batch_larger_than_the_data_is_an_error_that_says_how_large() -> None:
    with pytest.raises(
        InputError, match=r"batch_size_global is 64 .* 50 training samples.*set it to 50 or less"
    ):
        Order(50, 64, seed=0)
    with pytest.raises(
        InputError,
        match=r"10 training samples \(a part of 50, by data.fraction or data.keep_classes\)",
    ):
        Order(50, 64, seed=0, subset=np.arange(10))


@pytest.mark.parametrize(
    ("n", "batch", "repeats"), [(1000, 96, 3), (1000, 64, 3), (500, 32, 2), (300, 50, 4)]
)
def test_repeated_augmentation_keeps_the_length_of_an_epoch(
    n: int, batch: int, repeats: int
) -> None:
    order = Order(n, batch, seed=1, repeats=repeats)
    assert order.steps_per_epoch == n // batch
    plans = [order.batch(i) for i in range(order.steps_per_epoch)]
    seen = np.concatenate([np.stack([plan.indices, plan.views], 1) for plan in plans])
    assert len(np.unique(seen, axis=0)) == len(seen)  # no view of an image twice
    images, counts = np.unique(seen[:, 0], return_counts=True)
    assert len(images) == -(-len(seen) // repeats)  # a third of the images at 3 repeats
    assert (counts != repeats).sum() <= 1
    if batch % repeats == 0:
        for plan in plans:
            assert (np.unique(plan.indices, return_counts=True)[1] == repeats).all()


@pytest.mark.parametrize("repeats", [2, 3, 4, 5])
@pytest.mark.parametrize("batch", [4, 6, 8, 10, 12, 14, 16, 18, 32, 256])
def test_neighbours_are_different_images_wherever_possible(batch: int, repeats: int) -> None:
    order = Order(1000, batch, seed=2, repeats=repeats)
    for step in range(min(order.steps_per_epoch, 40)):
        indices = order.batch(step).indices
        same = (indices[0::2] == indices[1::2]).sum()
        crowd = np.unique(indices, return_counts=True)[1].max()
        assert same == 0 or crowd > batch // 2, (batch, repeats, step, indices)


def test_repeats_lie_far_apart_so_that_processes_share_them() -> None:
    indices = Order(10_000, 192, seed=0, repeats=3).batch(5).indices
    for rank in range(4):
        own = indices[rank * 48 : (rank + 1) * 48]
        assert len(set(own.tolist())) == 48


def test_a_subset_is_all_that_is_drawn_from() -> None:
    subset = np.array([3, 10, 11, 40, 77, 90, 95, 99])
    order = Order(100, 4, seed=0, subset=subset)
    assert order.num_samples == 8
    drawn = np.concatenate([order.batch(0).indices, order.batch(1).indices])
    assert np.array_equal(np.sort(drawn), subset)
    assert [order.successor(i) for i in (3, 40, 99)] == [10, 77, 3]
    assert [Order(100, 4, seed=0).successor(i) for i in (3, 99)] == [4, 0]


@pytest.mark.parametrize("lanes", [False, True])
def test_rows_number_the_samples_that_are_drawn(lanes: bool) -> None:
    subset = np.array([1, 2, 5, 8, 9, 14, 17, 19])
    sizes = np.array([6, 6, 8])
    for chosen in (subset, None):
        order: TrainOrder = (
            LaneOrder(sizes, 4, 3, lanes=2, block=3, subset=chosen)
            if lanes
            else Order(20, 4, 3, subset=chosen)
        )
        indices = np.concatenate([order.batch(step).indices for step in range(6)])
        known = np.arange(20) if chosen is None else chosen
        assert np.array_equal(known[order.rows_of(indices)], indices)
