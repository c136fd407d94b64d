"""The head of a model gives its logits from its pooled features."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.resnetv2 import ResNetV2

from distill.errors import InputError
from distill.models.build import create
from distill.models.features import pooled_features
from distill.models.head import head_logits, head_of


def net(name: str, **arguments: Any) -> torch.nn.Module:
    return timm.create_model(name, num_classes=7, **arguments).eval()


MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "cifar": lambda: create("cifar_resnet8", num_classes=7, pretrained=False, image_size=32),
    "vit": lambda: net("test_vit", img_size=32),
    "efficientnet": lambda: net("test_efficientnet"),
    "convnext": lambda: net("test_convnext"),
    # BiT's head is a convolution.
    "bit": lambda: ResNetV2(layers=(1, 1, 1, 1), channels=(128, 128, 128, 128), num_classes=7),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_logits_come_back_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    model = MODELS[name]().eval().to(dtype)
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        logits, last = model(pixels).float(), model.forward_features(pixels)
        pooled = pooled_features(model, last).flatten(1)
    head = head_of(model, 32, "teacher")
    assert pooled.dtype == head["weight"].dtype == dtype
    assert torch.equal(head_logits(head, pooled), logits)


class Scaled(torch.nn.Module):
    """A model that multiplies its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net("test_vit", img_size=32)
        for name in ("get_classifier", "forward_features", "forward_head"):
            setattr(self, name, getattr(self.inner, name))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner(pixels)


def test_other_logits_are_refused() -> None:
    two = net("deit_tiny_distilled_patch16_224", img_size=32, depth=1)
    with pytest.raises(InputError, match=r"teacher has no single linear head: .*--keep all"):
        head_of(two, 32, "teacher")
    with pytest.raises(InputError, match="computes its logits otherwise than by its head"):
        head_of(Scaled(), 32, "teacher")
