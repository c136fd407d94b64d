"""The features of visible patches are those of the whole net with removed positions masked."""

import pytest
import timm
import torch
from timm.layers.grn import GlobalResponseNorm
from torch import nn

from benchmarks.masked import dense_features
from distill.errors import InputError
from distill.losses.fcmae import visible_patches
from distill.models.masked import PATCH, refuse_other_than_convnext, visible_features

SMALL = {"dims": (8, 16, 24, 32), "depths": (1, 2, 1, 2)}


def net_of(name: str = "convnextv2_atto", **changes: object) -> nn.Module:
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=0, **{**SMALL, **changes})
    for module in net.modules():  # timm starts them at zero, where they do nothing
        if isinstance(module, GlobalResponseNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return net.double()


@pytest.mark.parametrize(
    "changes", [{}, {"conv_mlp": False}, {"ls_init_value": 0.5}, {"kernel_sizes": 3}]
)
def test_visible_features_are_those_of_the_masked_net(changes: dict[str, object]) -> None:
    net = net_of(**changes)
    pixels = torch.randn(3, 3, 4 * PATCH, 4 * PATCH, dtype=torch.float64)
    visible = visible_patches(0, torch.arange(3), 16, 6)
    found = visible_features(net, pixels, visible)
    expected = dense_features(net, pixels, visible)
    assert found.shape == (3, 6, 32)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    upstream = torch.randn_like(found)
    parameters = [p for p in net.parameters() if p.requires_grad]
    ours = torch.autograd.grad((found * upstream).sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad((expected * upstream).sum(), parameters, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_all_patches_visible_are_the_plain_net() -> None:
    net = net_of()
    pixels = torch.randn(2, 3, 2 * PATCH, 2 * PATCH, dtype=torch.float64)
    found = visible_features(net, pixels, torch.arange(4).expand(2, 4))
    expected = net.forward_features(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_removed_pixels_change_nothing() -> None:
    net = net_of()
    visible = torch.tensor([[0, 5, 6]])
    pixels = torch.randn(1, 3, 3 * PATCH, 3 * PATCH, dtype=torch.float64)
    before = visible_features(net, pixels, visible)
    pixels[:, :, :PATCH, PATCH : 2 * PATCH] = 100.0  # patch 1
    assert torch.equal(visible_features(net, pixels, visible), before)
    pixels[:, :, :PATCH, :PATCH] += 1  # patch 0
    assert not torch.equal(visible_features(net, pixels, visible), before)


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    net = net_of()
    pixels = torch.randn(2, 3, 2 * PATCH, 2 * PATCH, dtype=torch.float64)
    visible = torch.tensor([[0, 3], [1, 2]])
    gradients = []
    for enabled in (False, True):
        net.set_grad_checkpointing(enabled)
        loss = visible_features(net, pixels, visible).pow(2).sum()
        gradients.append(torch.autograd.grad(loss, net.stem[0].weight)[0])
    assert torch.equal(*gradients)


def test_other_models_are_refused() -> None:
    refuse_other_than_convnext(net_of(), 64, "objective.masked", "student.model")
    for name, arguments in (
        ("resnet18", {}),
        ("convnextv2_atto", {"stem_type": "overlap", **SMALL}),
        ("convnextv2_atto", {"output_stride": 16, **SMALL}),
        ("convnextv2_atto", {"conv_mlp": True, "norm_layer": "groupnorm1", **SMALL}),
    ):
        net = timm.create_model(name, num_classes=0, **arguments)
        with pytest.raises(InputError, match=r"objective.masked: .* is none .* convnextv2_"):
            refuse_other_than_convnext(net, 64, "objective.masked", f"student.model {name}")
    for size in (32, 80):
        with pytest.raises(InputError, match=rf"data.image_size: {size}, .*such as 64"):
            refuse_other_than_convnext(net_of(), size, "objective.masked", "it")
