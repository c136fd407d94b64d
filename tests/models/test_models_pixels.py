"""Pixels: timm's normalisation, linear in the images, resized with antialiasing."""

import pytest
import torch
from torch.nn import functional as F

from distill.models.pixels import Pixels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(size: int = 32) -> torch.Tensor:
    return torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_normalises_as_timm_does() -> None:
    expected = (images() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(Pixels(MEAN, STD)(images()), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("size", [None, 16, 48])
def test_normalising_after_mixing_equals_normalising_before(size: int | None) -> None:
    pixels = Pixels(MEAN, STD, size).double()
    a, b = images()[:2], images()[2:]
    torch.testing.assert_close(
        pixels(0.3 * a + 0.7 * b), 0.3 * pixels(a) + 0.7 * pixels(b), atol=2e-6, rtol=1e-5
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizes_with_antialiasing(interpolation: str) -> None:
    resized = Pixels((0, 0, 0), (1, 1, 1), 12, interpolation)(images())
    expected = F.interpolate(images(), size=(12, 12), mode=interpolation, antialias=True)
    assert torch.equal(resized, expected)
    assert not torch.allclose(
        resized, F.interpolate(images(), size=(12, 12), mode=interpolation), atol=1e-2
    )
    assert torch.equal(Pixels((0, 0, 0), (1, 1, 1), 32)(images()), images())


def test_dtype_is_cast_last() -> None:
    out = Pixels(MEAN, STD, dtype=torch.bfloat16)(images())
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, Pixels(MEAN, STD)(images()).bfloat16())
    coarse = images().bfloat16()
    assert torch.equal(Pixels(MEAN, STD, 12)(coarse), Pixels(MEAN, STD, 12)(coarse.float()))


def test_holds_no_parameters_and_nothing_to_save() -> None:
    pixels = Pixels(MEAN, STD)
    assert not list(pixels.parameters())
    assert not pixels.state_dict()
    assert pixels.to("meta").scale.device.type == "meta"  # buffers follow the module
