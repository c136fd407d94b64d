"""Maps of ResNets before the last activation of a stage: against a forward by hand, and what stays
as it was.
"""

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses import POOLED, FeatureKey
from distill.models.build import checkpoint_activations
from distill.models.features import forward_with_features
from distill.models.preactivation import SplitActivation, split_activations

SIZES = {
    "resnet18": 64,
    "resnet50": 64,
    "seresnet50": 64,
    "cifar_resnet8": 32,
    "cifar_resnet20": 32,
}


def made(name: str, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = timm.create_model(name, num_classes=10, **changes)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            # zero_init_last would leave the last convolution of a block without influence.
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    return net


def stages(net: nn.Module) -> list[FeatureKey]:
    return [FeatureKey(stage) for stage in range(5 if hasattr(net, "layer4") else 4)]


def by_hand(net: Any, pixels: Tensor) -> list[Tensor]:
    """The sums before the last activation of the stem and of each stage."""
    found = [net.bn1(net.conv1(pixels))]
    x = F.relu(found[0])
    x = net.maxpool(x) if hasattr(net, "maxpool") else x
    for key in stages(net)[1:]:
        for block in net.get_submodule(f"layer{key.stage}"):
            shortcut = x if block.downsample is None else block.downsample(x)
            x = F.relu(block.bn1(block.conv1(x)))
            x = block.bn2(block.conv2(x))
            if hasattr(block, "conv3"):
                x = block.bn3(block.conv3(F.relu(x)))
            if getattr(block, "se", None) is not None:
                x = block.se(x)
            before = x + shortcut
            x = F.relu(before)
        found.append(before)
    return found


@pytest.mark.parametrize("name", SIZES)
def test_they_are_the_sums_of_a_forward_by_hand_and_the_logits_stay(name: str) -> None:
    net = made(name).eval()
    names = list(net.state_dict())
    pixels = torch.randn(2, 3, SIZES[name], SIZES[name])
    with torch.no_grad():
        logits, expected = net(pixels), by_hand(net, pixels)
        keys = split_activations(net, [*stages(net), POOLED])
        assert keys == (*(key._replace(preactivation=True) for key in stages(net)), POOLED)
        found = forward_with_features(net, pixels, keys)
        assert torch.equal(found.logits, logits)
        for ours, theirs in zip(found.features, expected, strict=False):
            assert torch.equal(ours, theirs)
            assert float(ours.min()) < 0
        # Beside the maps after the activation, and again.
        both = tuple(sorted({*stages(net), *keys}))
        again = dict(zip(both, forward_with_features(net, pixels, both).features, strict=True))
        for key, theirs in zip(stages(net), expected, strict=True):
            assert torch.equal(again[key], theirs.relu())
            assert torch.equal(again[key._replace(preactivation=True)], theirs)
        assert torch.equal(net(pixels), logits)
    assert list(net.state_dict()) == names
    assert split_activations(net, [*stages(net), POOLED]) == keys, "it is split once"
    assert sum(isinstance(each, SplitActivation) for each in net.modules()) == len(stages(net))


def kept(net: nn.Module) -> list[Tensor]:
    splits = [each for each in net.modules() if isinstance(each, SplitActivation)]
    assert splits
    assert not any(each.keeping for each in splits)
    return [each.kept for each in splits if each.kept is not None]


def test_the_model_keeps_no_tensor_whatever_happens_and_a_copy_works() -> None:
    net = made("resnet18").train()
    keys = split_activations(net, [FeatureKey(1), FeatureKey(4), POOLED])
    pixels = torch.randn(2, 3, 64, 64)
    twin = copy.deepcopy(net)
    found = forward_with_features(net, pixels, keys)
    assert not kept(net)
    net.eval()(pixels)
    assert not kept(net)
    forward_with_features(net.eval(), pixels, (POOLED,))
    assert not kept(net)
    with pytest.raises(RuntimeError):
        forward_with_features(net, pixels[:, :2], keys)

    def fail(*_: object) -> None:
        raise MemoryError

    handle = net.get_submodule("layer4").register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        forward_with_features(net, pixels, keys)
    handle.remove()
    assert not kept(net)
    copied = forward_with_features(twin, pixels, keys)
    for ours, theirs in zip(
        (copied.logits, *copied.features), (found.logits, *found.features), strict=True
    ):
        assert torch.equal(ours, theirs)


def gradients(net: nn.Module, keys: tuple[FeatureKey, ...], forward: Any) -> list[Tensor]:
    logits, features = forward(net, torch.randn(2, 3, 64, 64), keys)
    loss = logits.square().mean() + sum(each.square().mean() for each in features)
    loss.backward()
    return [logits.detach(), *features, *(p.grad for p in net.parameters() if p.grad is not None)]


def test_a_compiled_forward_is_one_graph_with_the_same_gradients() -> None:
    results = []
    for compiled in (False, True):
        net = made("resnet18").train()
        keys = split_activations(net, [FeatureKey(1), FeatureKey(4), POOLED])
        forward: Any = forward_with_features
        if compiled:
            forward = torch.compile(forward, backend="eager", fullgraph=True)
        results.append(gradients(net, keys, forward))
        assert not kept(net)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_checkpointed_activations_have_the_same_gradients() -> None:
    """Of a ResNet without BatchNorm; others are refused."""
    results = []
    for checkpointed in (False, True):
        net = made("resnet50_gn", layers=(2, 1, 1, 1)).train()
        keys = split_activations(net, [*stages(net), POOLED])
        assert keys[4].preactivation
        if checkpointed:
            checkpoint_activations(net, "resnet50_gn")
        results.append(gradients(net, keys, forward_with_features))
        assert len(results[-1]) == 1 + 6 + len(list(net.parameters()))
        assert not kept(net)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    "name", ["test_vit", "test_convnext", "test_byobnet", "test_efficientnet", "resnetv2_50"]
)
def test_other_models_have_their_maps_after_it(name: str) -> None:
    with torch.device("meta"):
        net = timm.create_model(name)
    keys = [FeatureKey(1), FeatureKey(2), POOLED]
    assert split_activations(net, keys) == tuple(keys)
    assert not any(isinstance(each, SplitActivation) for each in net.modules())


def test_an_activation_with_weights_is_left_alone() -> None:
    net = timm.create_model("resnet18", act_layer=lambda inplace=True: nn.PReLU())
    names = list(net.state_dict())
    assert split_activations(net, [FeatureKey(1)]) == (FeatureKey(1),)
    assert list(net.state_dict()) == names
