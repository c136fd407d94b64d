import dataclasses
import io

import numpy as np
import pytest
import torch
from memory import MemorySource
from PIL import Image

from distill.data import pipelines
from distill.data.augment import TrainTransform
from distill.data.decode import UnreadableImageError
from distill.data.loading.loader import Batch, RankSlice, TrainLoader
from distill.data.mixing import Mixing
from distill.data.order.shuffled import Order
from distill.data.pipelines import TrainView, train_view
from distill.errors import InputError
from distill.recipe import Recipe, recipe_fingerprint
from distill.recipe.data import AugmentSpec, Pipeline
from distill.recipe.load import find_recipe, load_recipe

SIDE, B = 32, 12
AUGMENT = AugmentSpec(auto_augment="rand-m7-mstd0.5-inc1", random_erasing=0.3)


@pytest.fixture(scope="module")
def source() -> MemorySource:
    """60 images, four of five are JPEGs of 80 to 120 pixels; record 7 is cut."""
    source, rng = MemorySource(60), np.random.default_rng(0)
    for index in range(60):
        if index % 5:
            size = tuple(int(side) for side in rng.integers(80, 120, 2))
            pixels = rng.integers(0, 255, (6, 6, 3), np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG")
            source.records[index] = buffer.getvalue()
    source.records[7] = source.records[7][:400]
    return source


def batches(
    source: MemorySource,
    pipeline: Pipeline,
    steps: range = range(5),
    workers: int = 0,
    world: int = 1,
    mixup: float = 0.2,
) -> list[list[Batch]]:
    """For each step the micro-batches of all ranks."""
    mixing = Mixing(
        num_classes=5,
        image_size=SIDE,
        seed=3,
        mixup=mixup,
        cutmix=0.0,
        probability=1.0,
        switch_probability=0.5,
        group_size=4,
    )
    found = []
    for rank in range(world):
        with TrainLoader(
            source,
            Order(len(source), B, seed=5, repeats=2),
            train_view(pipeline, SIDE, AUGMENT),
            mixing,
            RankSlice(rank, world, B // world, 1),
            num_workers=workers,
            prefetch_batches=2,
            device="cpu",
            unreadable="skip",
            first_step=steps.start,
            last_step=steps.stop,
        ) as loader:
            found.append(list(loader))
    return [list(parts) for parts in zip(*found, strict=True)]


def images(parts: list[Batch]) -> torch.Tensor:
    return torch.cat([part.images for part in parts])


@pytest.fixture(scope="module")
def whole(source: MemorySource) -> list[list[Batch]]:
    return batches(source, "fast")


@pytest.mark.parametrize(
    ("first", "workers", "world"), [(0, 2, 1), (0, 0, 2), (3, 0, 1), (2, 1, 2)]
)
def test_the_same_bits_with_any_workers_ranks_and_resumed(
    source: MemorySource, whole: list[list[Batch]], first: int, workers: int, world: int
) -> None:
    again = batches(source, "fast", range(first, 5), workers, world)
    for found, expected in zip(again, whole[first:], strict=True):
        assert torch.equal(images(found), images(expected))


def test_the_same_samples_labels_and_substitutes_as_the_reference(
    source: MemorySource, whole: list[list[Batch]]
) -> None:
    for (found,), (expected,) in zip(whole, batches(source, "reference"), strict=True):
        for field in dataclasses.fields(Batch):
            value, other = getattr(found, field.name), getattr(expected, field.name)
            if isinstance(value, int):
                assert value == other, field.name
            elif field.name != "images":
                assert np.array_equal(np.asarray(value), np.asarray(other)), field.name
        assert not torch.equal(found.images, expected.images)
        assert (found.images - expected.images).abs().mean() * 255 < 1
    assert sum(part.num_skipped for (part,) in whole) > 0


def test_views_of_an_image_differ_and_it_is_decoded_once(
    source: MemorySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    monkeypatch.setattr(source, "read", lambda index: reads.append(index) or source.records[index])
    ((batch,),) = batches(source, "fast", range(1), mixup=0.0)
    assert len(set(reads)) == len(reads) >= B // 2
    first, second = np.flatnonzero(batch.indices == batch.indices[0])
    assert not torch.equal(batch.images[first], batch.images[second])


def test_an_unreadable_image_is_the_same_error(source: MemorySource) -> None:
    messages = []
    for pipeline in ("fast", "reference"):
        loader = TrainLoader(
            source,
            Order(len(source), 60, seed=5, repeats=1),
            train_view(pipeline, SIDE, AUGMENT),
            Mixing(
                num_classes=5,
                image_size=SIDE,
                seed=3,
                mixup=0.0,
                cutmix=0.0,
                probability=0.0,
                switch_probability=0.5,
                group_size=4,
            ),
            RankSlice(0, 1, 60, 1),
            num_workers=0,
            prefetch_batches=2,
            device="cpu",
        )
        with loader, pytest.raises(UnreadableImageError) as info:
            next(loader)
        messages.append(str(info.value))
    assert messages[0] == messages[1]
    assert "memory record 7" in messages[0]


def recipe_with(pipeline: Pipeline) -> Recipe:
    recipe = load_recipe(find_recipe("quickstart/teacher"))
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"pipeline": pipeline})})


def test_the_pipeline_is_part_of_a_run() -> None:
    assert load_recipe(find_recipe("quickstart/teacher")).data.pipeline == "reference"
    assert recipe_fingerprint(recipe_with("fast")) != recipe_fingerprint(recipe_with("reference"))


def test_a_missing_package_is_named_and_the_reference_needs_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(pipelines._PACKAGES, "no_such_module", "no-such-package")
    with pytest.raises(
        InputError, match=r"data\.pipeline: .*no-such-package: pip install 'vanillakd\[fast\]'"
    ):
        train_view("fast", SIDE, AUGMENT)
    view: TrainView = train_view("reference", SIDE, AUGMENT)
    assert isinstance(view, TrainTransform)
