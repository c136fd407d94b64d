import multiprocessing
import os
import random
import subprocess
import time
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from memory import MemorySource
from PIL import Image

from distill.data.augment import TrainTransform, sample_key
from distill.data.decode import UnreadableImageError, read_image
from distill.data.loading.loader import Batch, RankSlice, TrainLoader
from distill.data.mixing import Mixing
from distill.data.order.shuffled import Order
from distill.data.records import Source
from distill.errors import InputError
from distill.rng import seeded

SIDE = 16
B = 16
# step -> (images, label_probs, labels, num_skipped)
Batches = dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]]


def everything_on() -> TrainTransform:
    return TrainTransform(image_size=SIDE, auto_augment="rand-m7-mstd0.5-inc1", random_erasing=0.5)


def mixing(**changes: float) -> Mixing:
    values: dict[str, Any] = {
        "mixup": 0.2,
        "cutmix": 1.0,
        "probability": 0.9,
        "switch_probability": 0.5,
        "group_size": 4,
        "num_classes": 5,
        "image_size": SIDE,
        "seed": 11,
    }
    return Mixing(**values | changes)


def loader(
    source: Source,
    *,
    rank: int = 0,
    world: int = 1,
    micro: int = B,
    accumulation: int = 1,
    workers: int = 0,
    repeats: int = 3,
    mix: Mixing | None = None,
    subset: np.ndarray | None = None,
    transform: TrainTransform | None = None,
    **options: Any,
) -> TrainLoader:
    order = Order(len(source), B, seed=5, repeats=repeats, subset=subset)
    return TrainLoader(
        source,
        order,
        transform or everything_on(),
        mix or mixing(),
        RankSlice(rank, world, micro, accumulation),
        num_workers=workers,
        prefetch_batches=2,
        device="cpu",
        **options,
    )


def global_batches(
    source: Source,
    num_steps: int,
    *,
    world: int = 1,
    accumulation: int = 1,
    first_step: int = 0,
    **options: Any,
) -> Batches:
    """The batches of all ranks, ordered by position."""
    micro = B // (world * accumulation)
    parts: dict[int, dict[int, Batch]] = {}
    for rank in range(world):
        shape = {"rank": rank, "world": world, "micro": micro, "accumulation": accumulation}
        with loader(
            source, first_step=first_step, last_step=first_step + num_steps, **shape, **options
        ) as batches:
            got = list(batches)
        assert [(b.step, b.micro) for b in got] == [
            (s, a) for s in range(first_step, first_step + num_steps) for a in range(accumulation)
        ]
        for batch in got:
            start = batch.step * B + (batch.micro * world + rank) * micro
            assert batch.positions.tolist() == list(range(start, start + micro))
            parts.setdefault(batch.step, {})[start] = batch
    result = {}
    for step, slices in parts.items():
        ordered = [slices[start] for start in sorted(slices)]
        images, label_probs, labels = (
            torch.cat([getattr(b, name) for b in ordered])
            for name in ("images", "label_probs", "labels")
        )
        result[step] = (images, label_probs, labels, sum(b.num_skipped for b in ordered))
    return result


def assert_same(a: Batches, b: Batches) -> None:
    assert a.keys() == b.keys()
    for step in a:
        assert all(torch.equal(x, y) for x, y in zip(a[step][:3], b[step][:3], strict=True)), step
        assert a[step][3] == b[step][3]


@pytest.fixture(scope="module")
def source(memory_source: type[MemorySource]) -> MemorySource:
    return memory_source(70)


@pytest.fixture(scope="module")
def reference(source: MemorySource) -> Batches:
    return global_batches(source, 7)  # past the end of an epoch, which has 4 steps


@pytest.mark.parametrize(
    ("world", "accumulation", "workers"),
    [(1, 1, 2), (1, 4, 0), (2, 1, 0), (2, 2, 2), (4, 2, 0), (8, 1, 0)],
)
def test_the_global_batch_is_the_same_bits_however_it_is_cut(
    source: MemorySource, reference: Batches, world: int, accumulation: int, workers: int
) -> None:
    assert_same(
        global_batches(source, 7, world=world, accumulation=accumulation, workers=workers),
        reference,
    )


@pytest.mark.parametrize(("first", "workers"), [(3, 0), (5, 2)])
def test_a_resumed_run_is_the_tail_of_a_whole_one(
    source: MemorySource, reference: Batches, first: int, workers: int
) -> None:
    tail = global_batches(source, 7 - first, first_step=first, workers=workers)
    assert_same(tail, {step: reference[step] for step in range(first, 7)})


def test_a_batch_is_what_its_parts_say(source: MemorySource) -> None:
    """Against the definition: decode, seed, transform, mix, one sample at a time."""
    order, transform, mix = Order(70, B, seed=5, repeats=3), everything_on(), mixing()
    with loader(source) as batches:
        batch = next(batches)
    plan = order.batch(0)
    views = []
    for index, view in zip(plan.indices, plan.views, strict=True):
        with seeded(sample_key(5, 0, int(index), int(view))):
            views.append(transform(read_image(source, int(index))))
    labels = torch.from_numpy(source.labels[plan.indices])
    images, label_probs = mix.apply(
        torch.from_numpy(np.stack(views)), labels, mix.plan(0, np.arange(B))
    )
    assert torch.equal(batch.images, images)
    assert torch.equal(batch.label_probs, label_probs)
    assert torch.equal(batch.labels, labels)
    assert (batch.epoch, batch.indices.tolist()) == (0, plan.indices.tolist())
    assert batch.views.tolist() == plan.views.tolist()
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.images.min() >= 0
    assert batch.images.max() <= 1
    assert len(np.unique(np.stack(views), axis=0)) == B  # repeats of an image are different views


def test_epoch_sample_and_view_determine_the_pixels(source: MemorySource) -> None:
    """On a process of two, in the second epoch of a stage that began at step 3, with workers."""
    order, transform = Order(70, B, seed=5, repeats=3), everything_on()
    plain = mixing(mixup=0.0, cutmix=0.0)
    with TrainLoader(
        source,
        order,
        transform,
        plain,
        RankSlice(1, 2, B // 2, 1),
        num_workers=1,
        prefetch_batches=2,
        device="cpu",
        first_step=8,
        order_starts=3,
    ) as batches:
        batch = next(batches)
    assert batch.epoch == 1
    assert set(batch.views.tolist()) <= {0, 1, 2}
    assert len({*zip(batch.indices.tolist(), batch.views.tolist(), strict=True)}) == B // 2
    for i, (index, view) in enumerate(zip(batch.indices, batch.views, strict=True)):
        with seeded(sample_key(5, batch.epoch, int(index), int(view))):
            pixels = torch.from_numpy(transform(read_image(source, int(index))))
        assert torch.equal(batch.images[i], pixels.permute(2, 0, 1) / 255)
        assert batch.labels[i] == source.labels[index]


def test_an_image_is_decoded_once_for_its_views(memory_source: type[MemorySource]) -> None:
    source = memory_source(70)
    reads = []
    read = source.read
    source.read = lambda index: reads.append(index) or read(index)
    with loader(source) as batches:
        next(batches)
    assert len(reads) == len(set(reads)) == 6  # 16 views, 3 an image


def test_epochs_differ(source: MemorySource, reference: Batches) -> None:
    assert not torch.equal(reference[0][0], reference[4][0])
    order = Order(70, B, seed=5, repeats=3)
    again = set(order.batch(4).indices.tolist()) & set(order.batch(0).indices.tolist())
    assert order.batch(4).epoch == 1
    keys = [sample_key(5, epoch, index, 0) for epoch in (0, 1) for index in again]
    assert len(set(keys)) == len(keys)


def test_global_generators_are_left_alone(source: MemorySource) -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    for workers in (0, 1):
        with loader(source, workers=workers) as batches:
            next(batches)
        assert random.getstate() == before[0]
        assert np.random.get_state()[1].tolist() == before[1]
        assert torch.equal(torch.get_rng_state(), before[2])


def test_without_mixing_targets_are_one_hot_and_odd_sizes_work(source: MemorySource) -> None:
    plain = mixing(mixup=0.0, cutmix=0.0)
    order = Order(70, 15, seed=5)
    with TrainLoader(
        source,
        order,
        everything_on(),
        plain,
        RankSlice(0, 1, 5, 3),
        num_workers=0,
        prefetch_batches=1,
        device="cpu",
        last_step=1,
    ) as batches:
        got = list(batches)
    assert len(got) == 3
    for batch in got:
        assert torch.equal(batch.label_probs, torch.nn.functional.one_hot(batch.labels, 5).float())


def test_a_subset_is_all_that_is_seen(source: MemorySource) -> None:
    subset = np.arange(0, 70, 2)
    seen = global_batches(source, 4, repeats=1, subset=subset)
    order = Order(70, B, seed=5, subset=subset)
    for step, (_, _, labels, _) in seen.items():
        indices = order.batch(step).indices
        assert (indices % 2 == 0).all()
        assert labels.tolist() == source.labels[indices].tolist()


# ---- unreadable images ---------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_stops_the_run_and_is_named(
    memory_source: type[MemorySource], workers: int
) -> None:
    source = memory_source(70, broken=(33,))
    with pytest.raises(UnreadableImageError, match=r"^memory record 33: unreadable image") as info:
        global_batches(source, 5, repeats=1, workers=workers)
    assert "Traceback" not in str(info.value)
    assert not multiprocessing.active_children()


def test_skipping_is_deterministic_and_counted(memory_source: type[MemorySource]) -> None:
    broken = (4, 5, 6, 20, 69)
    source = memory_source(70, broken=broken)
    order = Order(70, B, seed=5, repeats=3)
    whole = global_batches(source, 6, unreadable="skip")
    for step, (_, _, labels, num_skipped) in whole.items():
        wanted = order.batch(step).indices
        shown = np.select(
            [np.isin(wanted, (4, 5, 6)), wanted == 20, wanted == 69], [7, 21, 0], wanted
        )
        assert labels.tolist() == source.labels[shown].tolist()
        assert num_skipped == np.isin(wanted, broken).sum()
    assert sum(count for *_, count in whole.values()) > 0
    for options in ({"world": 4}, {"world": 2, "accumulation": 2, "workers": 2}):
        assert_same(global_batches(source, 6, unreadable="skip", **options), whole)


def test_a_substitute_takes_the_place_but_not_the_randomness(
    memory_source: type[MemorySource],
) -> None:
    source = memory_source(40, broken=(8,))
    transform = everything_on()
    plain = mixing(mixup=0.0, cutmix=0.0)
    order = Order(40, B, seed=5, repeats=3)
    step, slot = next(
        (s, int(i)) for s in range(99) for i in np.flatnonzero(order.batch(s).indices == 8)
    )
    plan = order.batch(step)
    images = global_batches(source, 1, first_step=step, unreadable="skip", mix=plain)[step][0]
    with seeded(sample_key(5, plan.epoch, 8, int(plan.views[slot]))):
        expected = transform(read_image(source, 9))
    assert torch.equal(
        (images[slot].permute(1, 2, 0) * 255).round().byte(), torch.from_numpy(expected.copy())
    )


def test_substitutes_stay_in_the_subset_and_come_to_an_end(
    memory_source: type[MemorySource],
) -> None:
    source = memory_source(40, broken=(8, 20))
    subset = np.array([2, 8, 15, *range(20, 34)])
    seen = global_batches(source, 1, repeats=1, subset=subset, unreadable="skip")[0]
    indices = Order(40, B, seed=5, subset=subset).batch(0).indices
    shown = np.select([indices == 8, indices == 20], [15, 21], indices)
    assert seen[2].tolist() == source.labels[shown].tolist()
    with pytest.raises(InputError, match="100 images in a row are unreadable") as error:
        global_batches(memory_source(40, broken=tuple(range(40))), 1, unreadable="skip")
    assert "set data.unreadable to skip" not in str(error.value), "it is set"


# ---- sizes, workers ------------------------------------------------------------------------------


def test_sizes_that_do_not_fit_are_refused(source: MemorySource) -> None:
    with pytest.raises(
        InputError,
        match="batch_size_global is 16, but 2 processes x 4 samples x 1 micro-batches make 8",
    ):
        loader(source, world=2, micro=4)
    order = Order(70, 15, seed=5)
    with pytest.raises(InputError, match="micro_batch_size: 5 a process is odd"):
        TrainLoader(
            source,
            order,
            everything_on(),
            mixing(),
            RankSlice(0, 1, 5, 3),
            num_workers=0,
            prefetch_batches=1,
            device="cpu",
        )


def test_workers_have_one_thread_survive_signals_and_end_on_close() -> None:
    class Counting(MemorySource):
        def read(self, index: int) -> bytes:
            assert torch.get_num_threads() == 1
            return super().read(index)

    batches = loader(Counting(70), workers=2)
    for _ in range(2):  # one from each, so that both are up
        next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        # From another process, as SLURM and the terminal send them.
        for signal in ("TERM", "INT", "USR1", "USR2"):
            subprocess.run(["kill", f"-{signal}", str(worker.pid)], check=True)
    time.sleep(0.1)
    for _ in range(10):  # more than was prefetched
        batch = next(batches)
    assert batch.step == 11
    assert all(worker.is_alive() for worker in workers)
    batches.close()
    assert not multiprocessing.active_children()
    with pytest.raises(StopIteration):
        next(batches)


class Mistake(TrainTransform):
    def __call__(self, image: Image.Image) -> NoReturn:
        raise ZeroDivisionError("a mistake of ours")


def test_a_mistake_of_ours_keeps_its_traceback_and_leaves_no_workers(source: MemorySource) -> None:
    with (
        pytest.raises(ZeroDivisionError, match="in __call__") as info,
        loader(source, workers=1, transform=Mistake(image_size=SIDE)) as batches,
    ):
        next(batches)
    assert not multiprocessing.active_children()  # though `info` still refers to torch's iterator
    assert info.tb is not None


def test_the_parent_can_still_end_a_worker(source: MemorySource) -> None:
    batches = loader(source, workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, 15)
    worker.join(5)
    assert worker.exitcode == 0
    batches.close()
