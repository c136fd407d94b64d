import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data.augment import TrainTransform
from distill.data.fast.view import FastTransform
from distill.rng import seeded

CASES: dict[str, dict[str, Any]] = {
    "a2": {"auto_augment": "rand-m7-mstd0.5-inc1"},
    "plain": {"interpolation": "bicubic", "vertical_flip": 0.3},
    "every operation": {"auto_augment": "rand-m9-n4-p1.0-mstdinf"},
    "weights": {"auto_augment": "rand-m9-n3-p0.5-mstd0.5-mmax12-inc1-tweights"},
    "v0": {"auto_augment": "v0", "random_erasing": 0.4},
    "original": {"auto_augment": "originalr-mstd0.5", "mean": (0.1, 0.9, 0.4)},
    "3a": {"auto_augment": "3a", "color_jitter": 0.3},
    "3aw": {"auto_augment": "rand-m9-n3-t3aw-p1.0"},
    "augmix": {"auto_augment": "augmix-m5-w4-d2"},
    "jitter": {"color_jitter": 0.4, "random_erasing": 0.5},
    "cifar": {"crop": "padded", "padding": 4, "auto_augment": "cifar10"},
    "no crop": {"crop": "none", "auto_augment": "rand-m7-mstd0.5-inc1"},
}


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(1)
    return Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )


def state() -> tuple[object, ...]:
    """Where the global generators are: equal after two pipelines that drew the same."""
    numpy = np.random.get_state()
    return random.getstate(), numpy[1].tolist(), numpy[2:], torch.get_rng_state().tolist()


@pytest.mark.parametrize("case", CASES)
def test_the_same_decisions_as_the_reference(case: str) -> None:
    settings = {"image_size": 48, **CASES[case]}
    reference, fast = TrainTransform(**settings), FastTransform(**settings)
    image = picture(48, 48) if "crop" in settings else picture(90, 70)
    distances = []
    for key in range(40):
        with seeded(key):
            expected, after = reference(image), state()
        with seeded(key):
            pixels = fast(np.array(image))
            assert state() == after
        assert pixels.dtype == np.uint8
        assert pixels.shape == (48, 48, 3)
        distances.append(np.abs(pixels.astype(int) - expected).mean())
    assert np.median(distances) < 0.35, distances
    if case == "cifar":
        assert max(distances) == 0


@pytest.mark.parametrize("crop", ["padded", "none"])
def test_other_sizes_are_fitted_as_in_the_reference(crop: str) -> None:
    settings: dict[str, Any] = {"image_size": 32, "crop": crop}
    reference, fast = TrainTransform(**settings), FastTransform(**settings)
    for key in range(5):
        with seeded(key):
            expected = reference(picture(60, 45))
        with seeded(key):
            assert np.array_equal(fast(np.array(picture(60, 45))), expected)


def test_a_plan_is_what_is_done() -> None:
    fast = FastTransform(
        image_size=32, horizontal_flip=1.0, vertical_flip=1.0, auto_augment="rand-m9-n2-p1.0"
    )
    with seeded(3):
        plan = fast.plan(50, 40)
    assert plan.crop is not None
    assert 0 <= plan.crop.top <= 50 - plan.crop.height
    assert 0 <= plan.crop.left <= 40 - plan.crop.width
    assert plan.flip_horizontally
    assert plan.flip_vertically
    assert plan.operations is not None
    assert len(plan.operations) == 2
    with seeded(4):
        assert fast.plan(50, 40) != plan


def test_an_image_that_several_views_share_is_not_changed() -> None:
    fast = FastTransform(image_size=32, crop="none", auto_augment="v0", random_erasing=1.0)
    pixels = np.array(picture(32, 32))
    before = pixels.copy()
    for key in range(20):
        with seeded(key):
            assert fast(pixels) is not pixels
    assert np.array_equal(pixels, before)
