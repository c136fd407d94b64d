import multiprocessing

import numpy as np
import pytest
import torch
from memory import MemorySource

from distill.data.augment import EvalTransform
from distill.data.decode import UnreadableImageError, read_image
from distill.data.loading.loader import EvalLoader
from distill.data.loading.rank_slice import Unreadable
from distill.data.records import Source

VIEW = EvalTransform(image_size=16, crop_fraction=0.9)


def loaders(
    source: Source, world: int, batch_size: int, workers: int = 0, unreadable: Unreadable = "error"
) -> list[EvalLoader]:
    return [
        EvalLoader(
            source,
            VIEW,
            batch_size,
            rank=r,
            world_size=world,
            num_workers=workers,
            device="cpu",
            unreadable=unreadable,
        )
        for r in range(world)
    ]


@pytest.mark.parametrize(
    ("count", "world", "batch_size"),
    [
        (1, 1, 4),
        (1, 4, 4),
        (3, 4, 2),
        (8, 2, 4),
        (9, 2, 4),
        (23, 3, 4),
        (23, 1, 23),
        (23, 1, 64),
        (24, 3, 1),
    ],
)
def test_every_sample_is_valid_exactly_once(
    memory_source: type[MemorySource], count: int, world: int, batch_size: int
) -> None:
    source = memory_source(count)
    seen, lengths = [], set()
    for loader in loaders(source, world, batch_size):
        batches = list(loader)
        assert len(batches) == len(loader)
        lengths.add(len(batches))
        for batch in batches:
            assert batch.images.shape == (batch_size, 3, 16, 16)
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert batch.labels.tolist() == source.labels[batch.indices.numpy()].tolist()
            assert torch.isfinite(batch.images).all()
            seen += batch.indices[batch.valid].tolist()
    assert sorted(seen) == list(range(count))
    assert len(lengths) == 1  # the same number of batches on every process, or collectives hang
    assert lengths == {-(-count // (world * batch_size))}


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_the_evaluation_view_and_passes_repeat(
    memory_source: type[MemorySource], workers: int
) -> None:
    source = memory_source(11)
    expected = (
        torch.from_numpy(np.stack([VIEW(read_image(source, i)) for i in range(11)]))
        .permute(0, 3, 1, 2)
        .float()
        / 255
    )
    (loader,) = loaders(source, 1, 4, workers)
    with loader:
        next(iter(loader))  # a pass that is broken off
        for _ in range(2):
            images = torch.cat([batch.images[batch.valid] for batch in loader])
            assert torch.equal(images, expected)
        workers_alive = multiprocessing.active_children()
        assert len(workers_alive) == workers
    assert not multiprocessing.active_children()
    with loader:
        assert sum(int(batch.valid.sum()) for batch in loader) == 11  # and it starts again


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_stop_or_are_counted_once(
    memory_source: type[MemorySource], workers: int
) -> None:
    source = memory_source(10, broken=(2, 9))
    (loader,) = loaders(source, 1, 4, workers)
    with loader, pytest.raises(UnreadableImageError, match=r"^memory record 2: unreadable"):
        list(loader)
    skipped, valid = 0, []
    for loader in loaders(source, 2, 4, workers, unreadable="skip"):
        with loader:
            for batch in loader:  # record 9 is also what the padding repeats
                skipped += batch.num_skipped
                valid += batch.indices[batch.valid].tolist()
    assert skipped == 2
    assert sorted(valid) == [0, 1, 3, 4, 5, 6, 7, 8]
    assert not multiprocessing.active_children()
