"""After its distinct epochs a loader repeats them in turn: order, augmentation and mixing."""

import pytest
import torch
from test_data_loader import B, assert_same, global_batches, loader, mixing

from distill.data.sources import Source

PERIOD = 2  # epochs of 4 steps


@pytest.fixture(scope="module")
def source(memory_source: type) -> Source:
    found: Source = memory_source(70)
    return found


@pytest.mark.parametrize(("world", "accumulation", "workers"), [(1, 1, 0), (2, 2, 2)])
def test_later_epochs_are_the_distinct_ones_in_turn(
    source: Source, world: int, accumulation: int, workers: int
) -> None:
    cut = {"world": world, "accumulation": accumulation, "workers": workers}
    endless = global_batches(source, 8)
    found = global_batches(source, 9, first_step=7, distinct_epochs=PERIOD, **cut)
    assert_same(found, {step: endless[step % 8] for step in range(7, 16)})
    assert not torch.equal(endless[0][0], endless[4][0])


def test_identities_follow_the_run(source: Source) -> None:
    """Generators of students and epochs of schedules do not repeat."""
    with loader(source, first_step=19, last_step=21, distinct_epochs=PERIOD) as batches:
        found = [(each.step, each.epoch, int(each.positions[0])) for each in batches]
    assert found == [(19, 4, 19 * B), (20, 5, 20 * B)]


def test_a_stage_repeats_its_own_epochs(source: Source) -> None:
    plain = {"probability": 0.0}  # mixing is keyed by the step of the run
    first = global_batches(source, 4, mix=mixing(**plain))
    found = global_batches(
        source, 2, first_step=8, order_starts=3, distinct_epochs=1, mix=mixing(**plain)
    )
    assert_same(found, {8: first[1], 9: first[2]})
