from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from torchvision import transforms

from distill.data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EvalTransform,
    TrainTransform,
    sample_key,
)
from distill.errors import InputError
from distill.rng import seeded

Pixels = TypeVar("Pixels")


def picture(width: int = 60, height: int = 45) -> Image.Image:
    rng = np.random.default_rng(1)
    return Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )


@pytest.fixture
def old_posterize(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow before 13, where 0 bits make black; timm needs it, and our transforms must not."""
    new = ImageOps.posterize
    monkeypatch.setattr(
        ImageOps,
        "posterize",
        lambda image, bits: new(image, bits) if bits > 0 else Image.new("RGB", image.size),
    )


def run(
    transform: Callable[[Image.Image], Pixels], key: int, image: Image.Image | None = None
) -> Pixels:
    with seeded(key):
        return transform(image or picture())


TIMM_CASES = {
    "a2": ({"auto_augment": "rand-m7-mstd0.5-inc1"}, {"auto_augment": "rand-m7-mstd0.5-inc1"}),
    "bicubic and flips": (
        {"interpolation": "bicubic", "vertical_flip": 0.3, "auto_augment": "v0"},
        {"interpolation": "bicubic", "vflip": 0.3, "auto_augment": "v0"},
    ),
    "mean": (
        {"auto_augment": "rand-m9-n3-p1.0", "mean": (0.1, 0.9, 0.4), "std": (0.2, 0.2, 0.2)},
        {"auto_augment": "rand-m9-n3-p1.0", "mean": (0.1, 0.9, 0.4), "std": (0.2, 0.2, 0.2)},
    ),
    "jitter": (
        {"color_jitter": 0.4, "scale": (0.3, 1.0)},
        {"color_jitter": 0.4, "scale": (0.3, 1.0)},
    ),
    "original": (
        {"auto_augment": "original", "interpolation": "bilinear"},
        {"auto_augment": "original", "interpolation": "bilinear"},
    ),
}


@pytest.mark.parametrize("case", TIMM_CASES)
@pytest.mark.usefixtures("old_posterize")
def test_same_seeds_give_timms_pixels(case: str) -> None:
    ours, theirs = TIMM_CASES[case]
    transform = TrainTransform(image_size=32, **ours)
    settings = {"interpolation": "random", "color_jitter": None, "use_prefetcher": True} | theirs
    reference = create_transform(32, is_training=True, **settings)
    for key in range(25):
        pixels = run(transform, key)
        assert pixels.shape == (32, 32, 3)
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, run(reference, key).permute(1, 2, 0).numpy())


@pytest.mark.parametrize("policy", ["rand-m10-n2-p1.0-inc1", "v0", "augmix-m10"])
def test_posterizing_to_no_bits_is_black_with_any_pillow(policy: str) -> None:
    transform = TrainTransform(image_size=32, auto_augment=policy)
    black = sum(not run(transform, key).any() for key in range(150))
    assert black > 0 or policy.startswith("augmix")


def test_random_erasing_is_timms_requantised() -> None:
    transform = TrainTransform(image_size=32, random_erasing=0.6)
    reference = create_transform(
        32,
        is_training=True,
        interpolation="random",
        color_jitter=None,
        re_prob=0.6,
        re_mode="pixel",
    )
    plain = TrainTransform(image_size=32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    num_erased = 0
    for key in range(30):
        normalised = run(reference, key)
        expected = (
            ((normalised * std + mean) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        )
        pixels = run(transform, key)
        assert np.array_equal(pixels, expected)
        num_erased += not np.array_equal(pixels, run(plain, key))
    assert 10 <= num_erased <= 26


def test_padded_crop_is_the_cifar_one() -> None:
    image = picture(32, 32)
    transform = TrainTransform(
        image_size=32, crop="padded", padding=4, horizontal_flip=0.5, auto_augment="cifar10"
    )
    reference = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10),
        ]
    )
    for key in range(25):
        assert np.array_equal(run(transform, key, image), np.asarray(run(reference, key, image)))
    padded = TrainTransform(image_size=32, crop="padded", padding=4, horizontal_flip=0.0)
    white = Image.new("RGB", (32, 32), (255, 255, 255))
    assert any((run(padded, key, white) == 0).any() for key in range(5))  # the padding is zero
    assert run(padded, 0, picture()).shape == (32, 32, 3)  # other sizes are fitted first


def test_no_crop_leaves_the_image_or_fits_it() -> None:
    transform = TrainTransform(image_size=32, crop="none", horizontal_flip=0.0)
    image = picture(32, 32)
    assert np.array_equal(run(transform, 0, image), np.asarray(image))
    assert run(transform, 0, picture(60, 45)).shape == (32, 32, 3)


def test_eval_view_is_timms() -> None:
    for size, crop, mode in ((32, 0.95, "bicubic"), (24, 0.875, "bilinear"), (28, 1.0, "bicubic")):
        reference = create_transform(
            size, is_training=False, crop_pct=crop, interpolation=mode, use_prefetcher=True
        )
        pixels = EvalTransform(image_size=size, crop_fraction=crop, interpolation=mode)(picture())
        assert np.array_equal(pixels, reference(picture()).permute(1, 2, 0).numpy())


def test_each_key_counts() -> None:
    keys = {
        sample_key(s, e, i, v)
        for s in range(2)
        for e in range(3)
        for i in range(4)
        for v in range(3)
    }
    assert len(keys) == 72


def test_views_differ() -> None:
    transform = TrainTransform(image_size=32)
    assert not np.array_equal(
        run(transform, sample_key(0, 0, 5, 0)), run(transform, sample_key(0, 0, 5, 1))
    )


@pytest.mark.parametrize(
    "policy", ["rand-x9", "rand-foo", "v9", "nonsense", "rand-m7-tnothing", "v0-mstd"]
)
def test_unknown_policies_are_refused_by_name(policy: str) -> None:
    with pytest.raises(InputError, match=f"data.augment.auto_augment.*{policy}"):
        TrainTransform(image_size=32, auto_augment=policy)


@pytest.mark.parametrize(
    "policy",
    ["rand-m9-n3-p0.5-mstd0.5-mmax12-inc1-tweights", "augmix-m5-w4-d2", "v0r-mstd0.5", "3a"],
)
def test_timms_policies_are_taken(policy: str) -> None:
    run(TrainTransform(image_size=32, auto_augment=policy), 0)


def test_jitter_that_a_policy_would_silence_is_refused() -> None:
    with pytest.raises(InputError, match=r"color_jitter: 0.4 has no effect"):
        TrainTransform(image_size=32, auto_augment="rand-m7", color_jitter=0.4)
