"""Features of layers, and forwards with recomputed activations or with other weights."""

import pytest
import timm
import torch
from tiny import sees
from torch import nn

from distill.errors import InputError
from distill.losses import POOLED, FeatureKey, FeatureMap
from distill.models.build import checkpoint_activations
from distill.models.features import (
    chosen_stage,
    feature_maps,
    forward_with_features,
    pooled_map,
    refuse_other_logits,
)
from distill.models.functional import functional_forward
from distill.models.teacher import Teacher

FIRST, SECOND = FeatureKey(0), FeatureKey(1)


def teacher(dtype: torch.dtype = torch.float32) -> Teacher:
    net = timm.create_model("test_vit", num_classes=10, patch_size=4, img_size=32)
    return Teacher(net, sees(32), num_classes=10, dtype=dtype, source="test_vit, random weights")


MODELS = ["cifar_resnet8", *timm.list_models("test_*")]


@pytest.mark.parametrize("name", MODELS)
def test_features_come_from_the_forward_that_gives_the_logits(name: str) -> None:
    torch.manual_seed(0)
    size = timm.models.get_pretrained_cfg_value(name, "input_size")[1]
    net = timm.create_model(name, num_classes=10).eval()
    pixels = torch.randn(2, 3, size, size)
    maps = feature_maps(net, size, name)
    keys = [each.key for each in maps]
    with torch.no_grad():
        logits, features = forward_with_features(net, pixels, keys)
        assert torch.equal(logits, net(pixels))
        found = [(each.channels, each.height, each.width) for each in maps]
        assert [tuple(each.shape[1:]) for each in features] == found
        for stage, feature in zip(range(len(maps)), features, strict=True):
            # The forward ends with this stage, so that no later layer can change it in place.
            (alone,) = net.forward_intermediates(
                pixels, indices=[stage], stop_early=True, intermediates_only=True
            )
            assert torch.equal(feature, alone), stage


@pytest.mark.parametrize("name", MODELS)
def test_pooled_features_are_what_the_classifier_reads(name: str) -> None:
    torch.manual_seed(0)
    size = timm.models.get_pretrained_cfg_value(name, "input_size")[1]
    net = timm.create_model(name, num_classes=10).eval()
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        logits, (pooled,) = forward_with_features(net, pixels, (POOLED,))
        assert torch.equal(logits, net(pixels))
        both = forward_with_features(net, pixels, (FIRST, POOLED))
        assert torch.equal(both.features[1], pooled)
        read: list[torch.Tensor] = []
        classifier = net.get_classifier()
        classifier.register_forward_pre_hook(lambda _, args: read.append(args[0]))
        net(pixels)
    assert torch.equal(read[0].flatten(1), pooled.flatten(1))
    assert pooled_map(net, size, name) == FeatureMap(POOLED, pooled.shape[1], 1, 1)


def test_a_teacher_gives_the_stages_asked_for_in_its_dtype() -> None:
    one = teacher(torch.bfloat16)
    images = torch.rand(2, 3, 32, 32)
    outputs = one.outputs(images, (FIRST, SECOND))
    assert torch.equal(outputs.logits, one(images))
    assert outputs.logits.dtype == torch.float32
    assert {key: each.dtype for key, each in outputs.features.items()} == {
        FIRST: torch.bfloat16,
        SECOND: torch.bfloat16,
    }
    assert not outputs.features[FIRST].requires_grad
    x = one.net.norm_pre(
        one.net.patch_drop(one.net._pos_embed(one.net.patch_embed(one.pixels(images))))
    )
    expected = one.net.blocks[0](x)[:, 1:].transpose(1, 2).reshape(2, 64, 8, 8)
    assert torch.equal(outputs.features[FIRST], expected)


def test_a_compiled_teacher_gives_features_too() -> None:
    one = teacher()
    images = torch.rand(2, 3, 32, 32)
    expected = one.outputs(images, (SECOND,))
    one.model.compile(backend="eager")
    assert torch.equal(one(images), expected.logits)
    found = one.outputs(images, (SECOND,))
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.features[SECOND], expected.features[SECOND])


def test_the_middle_stage_is_the_default_and_others_count_from_both_ends() -> None:
    net = timm.create_model("resnet18", num_classes=10)
    assert net.training
    maps = feature_maps(net, 64, "resnet18")
    assert net.training
    shapes = [(64, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    assert maps == [FeatureMap(FeatureKey(stage), *each) for stage, each in enumerate(shapes)]
    assert [chosen_stage(maps, stage, "it") for stage in (None, 0, 4, -1, -5)] == [2, 0, 4, 4, 0]
    for stage in (5, -6):
        with pytest.raises(InputError, match=rf"^{stage}, and it has stages 0 to 4 .*2: 128 x 8"):
            chosen_stage(maps, stage, "it")


def test_a_forward_with_other_logits_is_refused() -> None:
    class Both(nn.Module):
        """Its classifier reads the first stage too, so the last one alone gives other logits."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = self.first(x)
            return self.forward_head(self.second(first) + first)

        def forward_head(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

        def forward_intermediates(self, x: torch.Tensor, **_: object) -> object:
            first = self.first(x)
            return self.second(first), [first]

    net = Both()
    with pytest.raises(
        InputError, match=r"^it gives other logits with the feature map of stage 0 than"
    ):
        refuse_other_logits(net, 8, (FIRST,), "it")
    assert net.training
    refuse_other_logits(timm.create_model("resnet18", num_classes=10), 32, (FeatureKey(2),), "it")


def test_a_forward_without_logits_is_refused() -> None:
    """Hiera's ends with the last stage asked for."""
    net = timm.create_model("hiera_tiny_224", num_classes=10, img_size=64)
    assert len(feature_maps(net, 64, "hiera")) > 1
    with pytest.raises(
        InputError, match=r"hiera gives no logits beside the feature map of stage 0"
    ):
        refuse_other_logits(net, 64, (FIRST,), "hiera")


def test_a_model_that_caches_tensors_in_its_forward_stays_whole() -> None:
    net = timm.create_model("convit_tiny", num_classes=10).eval()
    assert feature_maps(net, 224, "convit")
    assert type(net(torch.zeros(1, 3, 224, 224))) is torch.Tensor


def test_a_model_without_feature_maps_is_named() -> None:
    with pytest.raises(InputError, match=r"a linear model gives no feature maps: .*Linear"):
        feature_maps(nn.Linear(3, 3), 8, "a linear model")


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
