"""FCMAE's masks, targets and loss."""

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.losses.fcmae import FCMAE, image_targets, removed_patches, visible_patches
from distill.recipe.schema import FCMAESpec


def test_masks_follow_from_their_keys_and_are_even() -> None:
    positions = torch.arange(4000)
    visible = visible_patches(3, positions, 49, 19)
    assert visible.shape == (4000, 19)
    assert bool((visible.diff(dim=1) > 0).all())
    assert int(visible.min()) == 0
    assert int(visible.max()) == 48
    assert torch.equal(visible_patches(3, positions[100:103], 49, 19), visible[100:103])
    for other in (
        visible_patches(4, positions, 49, 19),
        visible_patches(3, positions + 1, 49, 19),
    ):
        assert not torch.equal(other, visible)
    share = torch.bincount(visible.flatten(), minlength=49) / 4000
    assert float((share - 19 / 49).abs().max()) < 4 * (0.39 * 0.61 / 4000) ** 0.5
    together = ((visible == 0).any(1) & (visible == 1).any(1)).float().mean()
    assert abs(float(together) - 19 * 18 / (49 * 48)) < 0.03


@pytest.mark.parametrize(
    ("ratio", "num_patches", "num_visible"),
    [(0.6, 49, 19), (0.75, 49, 12), (0.8, 25, 5), (0.9, 100, 10), (0.9, 4, 0)],
)
def test_the_number_that_stays(ratio: float, num_patches: int, num_visible: int) -> None:
    """Rounded down, but not by what a product of floats lacks."""
    spec = FCMAESpec(loss="fcmae", mask_ratio=ratio)
    assert spec.num_visible(num_patches) == num_visible


def test_removed_are_the_others() -> None:
    visible = torch.tensor([[0, 3], [1, 2]])
    assert removed_patches(visible, 4).tolist() == [[1, 2], [0, 3]]


def by_hand(pixels: np.ndarray, patch: int, row: int, column: int) -> np.ndarray:
    """A normalised patch in the order row, column, colour."""
    cut = pixels[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
    flat = cut.transpose(1, 2, 0).reshape(-1).astype(np.float64)
    return (flat - flat.mean()) / np.sqrt(flat.var(ddof=1) + 1e-6)


def test_targets_by_hand() -> None:
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 8, 8)
    found = image_targets(pixels, 4, normalise=True)
    for image in range(2):
        for number in range(4):
            expected = by_hand(pixels[image].numpy(), 4, *divmod(number, 2))
            np.testing.assert_allclose(found[image, number].numpy(), expected, atol=1e-5)
    plain = image_targets(pixels, 4, normalise=False)
    assert plain[1, 2, 5] == pixels[1, 2, 4, 1]


def decoder() -> FCMAE:
    torch.manual_seed(0)
    found = FCMAE(6, 10, 4, 2, normalise=True).double()
    torch.nn.init.normal_(found.block.mlp.grn.weight)
    return found


def test_the_loss_is_that_of_the_definition() -> None:
    """Decoded on the whole map, and the mean over removed patches of the mean squared error."""
    heads = decoder()
    pixels = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    features = torch.randn(3, 1, 6, dtype=torch.float64)
    visible = torch.tensor([[0], [2], [3]])

    mask = torch.ones(3, 4).scatter(1, visible, 0.0).double()
    whole = torch.zeros(3, 4, 6).double().scatter(1, visible[..., None].expand(-1, -1, 6), features)
    x = heads.embed(whole)
    x = x * (1 - mask)[..., None] + heads.token * mask[..., None]
    x = heads.block(x.reshape(3, 2, 2, 10).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    predicted = heads.predict(x.reshape(3, 4, 10))
    target = image_targets(pixels, 4, normalise=True)
    each = (predicted - target).pow(2).mean(-1)
    expected = (each * mask).sum() / mask.sum()

    made = heads((features, pixels), (visible,))
    found = heads.loss(made, (visible,), batch=None)  # type: ignore[arg-type]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_every_weight_learns_and_visible_pixels_are_no_target() -> None:
    heads = decoder().float()
    visible = torch.tensor([[1, 2]])
    features = torch.randn(1, 2, 6)

    def loss(pixels: Tensor) -> Tensor:
        outputs = heads((features, pixels), (visible,))
        return heads.loss(outputs, (visible,), batch=None)  # type: ignore[arg-type]

    pixels = torch.randn(1, 3, 8, 8)
    value = loss(pixels)
    value.backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in heads.parameters())
    changed = pixels.clone()
    changed[:, :, :4, 4:] = 0  # patch 1
    assert loss(changed) == value
    changed[:, :, :4, :4] = torch.randn(3, 4, 4)  # patch 0
    assert loss(changed) != value
