from typing import Any

import numpy as np
import pytest
import torch

from distill.data.mixing import Mixing, MixPlan


def make(**changes: float) -> Mixing:
    values: dict[str, Any] = {
        "mixup": 0.2,
        "cutmix": 1.0,
        "probability": 1.0,
        "switch_probability": 0.5,
        "group_size": 4,
        "num_classes": 5,
        "image_size": 12,
        "seed": 3,
    }
    return Mixing(**values | changes)


def batch(size: int = 16, side: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 5, (size,), generator=generator)


def by_hand(
    mixing: Mixing, images: torch.Tensor, labels: torch.Tensor, plan: MixPlan
) -> tuple[torch.Tensor, torch.Tensor]:
    """timm's formulas, a sample at a time."""
    pixels = images.permute(0, 3, 1, 2).float() / 255
    one_hot = torch.nn.functional.one_hot(labels, mixing.num_classes).float()
    mixed, label_probs = pixels.clone(), one_hot.clone()
    for i in range(len(images)):
        j, lam = i ^ 1, plan.lam[i]
        top, bottom, left, right = plan.boxes[i].tolist()
        if bottom > top:
            mixed[i, :, top:bottom, left:right] = pixels[j, :, top:bottom, left:right]
        elif lam != 1:
            mixed[i] = pixels[i] * lam + pixels[j] * (1 - lam)
        label_probs[i] = one_hot[i] * lam + one_hot[j] * (1 - lam)
    return mixed, label_probs


@pytest.mark.parametrize(
    "changes", [{}, {"mixup": 0.0}, {"cutmix": 0.0}, {"probability": 0.5}, {"group_size": 2}]
)
def test_apply_is_mixup_and_cutmix_between_neighbours(changes: dict[str, float]) -> None:
    mixing = make(**changes)
    images, labels = batch()
    kinds = set()
    for step in range(12):
        plan = mixing.plan(step, np.arange(16))
        mixed, label_probs = mixing.apply(images, labels, plan)
        expected_mixed, expected_targets = by_hand(mixing, images, labels, plan)
        assert torch.equal(mixed, expected_mixed)
        assert torch.equal(label_probs, expected_targets)
        assert mixed.dtype == torch.float32
        assert mixed.shape == (16, 3, 12, 12)
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(label_probs.sum(1), torch.ones(16))
        cut = plan.boxes[:, 1] > plan.boxes[:, 0]
        kinds |= {"cutmix"} if cut.any() else set()
        kinds |= {"mixup"} if ((plan.lam != 1) & ~cut).any() else set()
    expected = (
        {"mixup", "cutmix"}
        - ({"mixup"} if mixing.mixup == 0 else set())
        - ({"cutmix"} if mixing.cutmix == 0 else set())
    )
    assert kinds == expected


def test_the_box_covers_what_lambda_says() -> None:
    mixing = make(mixup=0.0)
    for step in range(50):
        plan = mixing.plan(step, np.arange(16))
        top, bottom, left, right = plan.boxes.T
        torch.testing.assert_close(
            1 - (bottom - top) * (right - left) / 144, plan.lam, atol=1e-7, rtol=0
        )
        assert (plan.boxes >= 0).all()
        assert (plan.boxes <= 12).all()


def test_a_group_shares_one_draw_and_groups_differ() -> None:
    plan = make(cutmix=0.0).plan(7, np.arange(16))
    lam = plan.lam.view(4, 4)
    assert (lam == lam[:, :1]).all()
    assert len(set(lam[:, 0].tolist())) == 4
    assert not torch.equal(lam, make(cutmix=0.0).plan(8, np.arange(16)).lam.view(4, 4))
    assert not torch.equal(lam, make(cutmix=0.0, seed=4).plan(7, np.arange(16)).lam.view(4, 4))


def test_draws_follow_the_distributions() -> None:
    mixing = make(group_size=2, probability=0.8, switch_probability=0.3, mixup=0.5)
    plans = [mixing.plan(step, np.arange(0, 2000)) for step in range(2)]
    boxes = torch.cat([plan.boxes for plan in plans])[::2]
    lam = torch.cat([plan.lam for plan in plans])[::2]
    cut = boxes[:, 1] > boxes[:, 0]
    assert (
        abs(cut.float().mean() - 0.8 * 0.3) < 0.04
    )  # 4 sigma, less the few boxes that come out empty
    mixed = ~cut & (lam != 1)
    assert abs(mixed.float().mean() - 0.8 * 0.7) < 0.045
    drawn = lam[mixed]
    assert abs(drawn.mean() - 0.5) < 0.05
    assert abs(drawn.var() - 1 / 8) < 0.015  # Beta(a, a) has variance 1 / (4 (2a + 1))


def test_any_even_slicing_gives_the_same_bits() -> None:
    mixing = make(probability=0.7)
    images, labels = batch(32)
    for step in range(6):
        whole, whole_targets = mixing.apply(images, labels, mixing.plan(step, np.arange(32)))
        for size in (2, 6, 16):
            for start in range(0, 32 - size + 1, size):
                part = slice(start, start + size)
                mixed, label_probs = mixing.apply(
                    images[part], labels[part], mixing.plan(step, np.arange(start, start + size))
                )
                assert torch.equal(mixed, whole[part])
                assert torch.equal(label_probs, whole_targets[part])


@pytest.mark.parametrize("changes", [{"mixup": 0.0, "cutmix": 0.0}, {"probability": 0.0}])
def test_off_means_no_plan_and_plain_one_hot(changes: dict[str, float]) -> None:
    mixing = make(**changes)
    assert mixing.plan(0, np.arange(3)) is None  # and odd sizes are fine
    images, labels = batch(3)
    pixels, label_probs = mixing.apply(images, labels, None)
    assert torch.equal(pixels, images.permute(0, 3, 1, 2).float() / 255)
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(label_probs, torch.nn.functional.one_hot(labels, 5).float())
