"""Features of layers, and forwards with recomputed activations or with other weights."""

import pytest
import timm
import torch
from tiny import sees
from torch import nn

from distill.errors import InputError
from distill.models.build import checkpoint_activations
from distill.models.feature_hooks import FeatureHooks
from distill.models.functional import functional_forward
from distill.models.teacher import Teacher


def teacher(dtype: torch.dtype = torch.float32) -> Teacher:
    net = timm.create_model("test_vit", num_classes=10, patch_size=4, img_size=32)
    return Teacher(net, sees(32), num_classes=10, dtype=dtype, source="test_vit, random weights")


def test_features_come_from_the_forward_that_gives_the_logits() -> None:
    one = teacher()
    images = torch.rand(2, 3, 32, 32)
    logits, features = one.features(images, ["blocks.0", "norm"])
    assert torch.equal(logits, one(images))
    x = one.net.norm_pre(
        one.net.patch_drop(one.net._pos_embed(one.net.patch_embed(one.pixels(images))))
    )
    assert torch.equal(features["blocks.0"], one.net.blocks[0](x))
    assert features["norm"].shape == (2, 65, 64)
    assert not any(module._forward_hooks for module in one.net.modules()), (
        "hooks are removed after the forward"
    )


def test_features_are_copies_of_the_layers_output() -> None:
    net = timm.create_model("resnet18", num_classes=10, zero_init_last=False).eval()
    with FeatureHooks(net, ["layer1.0.bn2"]) as hooks:
        net(torch.rand(1, 3, 64, 64))
    assert hooks.outputs["layer1.0.bn2"].min() < 0, "an addition and a ReLU follow in place"


def test_a_compiled_teacher_gives_features_too() -> None:
    one = teacher()
    one.model.compile(backend="eager")
    images = torch.rand(2, 3, 32, 32)
    logits = one(images)
    found, features = one.features(images, ["blocks.0"])
    assert torch.equal(found, logits)
    assert features["blocks.0"].shape == (2, 65, 64)


def test_a_layer_that_no_forward_calls_is_named() -> None:
    with pytest.raises(InputError, match=r"never calls the module 'blocks.0.attn.attn_drop'"):
        teacher().features(torch.rand(1, 3, 32, 32), ["blocks.0.attn.attn_drop"])


@pytest.mark.parametrize("name", ["block.0", ""])
def test_a_feature_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(InputError, match=r"VisionTransformer has no module"):
        FeatureHooks(teacher().net, [name])


def test_a_layer_that_returns_no_tensor_is_refused() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.pair(x)[0]

    net = Outer()
    with pytest.raises(InputError, match="'pair' returns a tuple"), FeatureHooks(net, ["pair"]):
        net(torch.ones(1))


def test_checkpointed_activations_are_computed_twice_and_gradients_stay() -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        net = timm.create_model("test_vit", num_classes=10, patch_size=4, img_size=32)
        if checkpointed:
            checkpoint_activations(net, "test_vit")
        net.blocks[0].register_forward_pre_hook(count)
        net(
            torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        ).square().mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in net.parameters()]))
    assert calls == 1 + 2
    assert torch.equal(*gradients)


class Twice(nn.Module):
    """One module in two places, and one parameter in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.again = self.first
        self.other = nn.Linear(3, 3)
        self.other.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.other(self.again(self.first(x))))  # type: ignore[no-any-return]


def test_a_forward_with_other_weights_leaves_the_models_own() -> None:
    torch.manual_seed(0)
    net, other = Twice().eval(), Twice().eval()
    own = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x = torch.randn(2, 3)
    assert torch.equal(functional_forward(net, other.state_dict(), x), other(x))
    assert not torch.equal(net(x), other(x))
    assert all(torch.equal(own[name], tensor) for name, tensor in net.state_dict().items())
    assert net.other.weight is net.first.weight, "tied weights stay tied"
