"""Minibatches in several views: the same images for each model, decoded once."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from memory import MemorySource

from distill.data.augment import EvalTransform
from distill.data.decode import UnreadableImageError, read_image
from distill.data.loading import views
from distill.data.loading.rank_slice import Unreadable
from distill.data.loading.views import ViewBatch, ViewLoader
from distill.data.records import Source

VIEWS = (EvalTransform(image_size=16, crop_fraction=0.9), EvalTransform(image_size=24))


def batches(
    source: Source,
    order: Sequence[int],
    world: int = 1,
    workers: int = 0,
    unreadable: Unreadable = "error",
) -> list[list[ViewBatch]]:
    """The batches of each process."""
    found = []
    for rank in range(world):
        loader = ViewLoader(
            source,
            np.asarray(order),
            VIEWS,
            4,
            rank=rank,
            world_size=world,
            num_workers=workers,
            device=torch.device("cpu"),
            unreadable=unreadable,
        )
        with loader:
            found.append(list(loader))
    return found


def seen(source: Source, index: int, view: int) -> torch.Tensor:
    pixels = torch.from_numpy(VIEWS[view](read_image(source, index)).copy())
    return pixels.permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("workers", [0, 1])
def test_each_view_has_the_images_of_the_order(
    memory_source: type[MemorySource], workers: int
) -> None:
    source, order = memory_source(11), [7, 3, 10, 0, 2, 9, 1, 5, 4]
    (found,) = batches(source, order, workers=workers)
    assert [len(batch) for batch in found] == [4, 4, 1]
    for view in (0, 1):
        images = torch.cat([batch.views[view] for batch in found])
        assert torch.equal(images, torch.stack([seen(source, i, view) for i in order]))
        assert found[0].views[view].is_contiguous(memory_format=torch.channels_last)


def test_an_image_is_decoded_once_for_all_views(
    memory_source: type[MemorySource], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def counted(source: Source, index: int) -> np.ndarray:
        decoded.append(index)
        return read_image(source, index)

    monkeypatch.setattr(views, "read_image", counted)
    batches(memory_source(6), range(6))
    assert decoded == list(range(6))


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_share_the_same_minibatches(
    memory_source: type[MemorySource], world: int
) -> None:
    source = memory_source(18)
    (alone,) = batches(source, range(18))
    together = batches(source, range(18), world)
    for number, batch in enumerate(alone):
        assert torch.equal(together[number % world][number // world].views[1], batch.views[1])
    assert sum(map(len, together)) == len(alone) == 5


def test_unreadable_images_stop_or_are_left_out(memory_source: type[MemorySource]) -> None:
    source = memory_source(9, broken=(1, 8))
    with pytest.raises(UnreadableImageError, match=r"^memory record 1: unreadable"):
        batches(source, range(9))
    (found,) = batches(source, range(9), unreadable="skip")
    assert [len(batch) for batch in found] == [3, 4, 0]
    assert [batch.num_skipped for batch in found] == [1, 0, 1]
    expected = torch.stack([seen(source, i, 0) for i in (0, 2, 3)])
    assert torch.equal(found[0].views[0], expected)
