"""CIFAR ResNets: CRD's sizes, timm's manners, and the way out through timm's own export."""

from pathlib import Path

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.models import save_for_hf
from torch import nn

import distill.models  # noqa: F401  (registers the models)

# Parameters at 100 classes. CRD's README gives millions: resnet20 0.28, resnet56 0.86, resnet110
# 1.74, resnet8x4 1.23, 32x4 7.43.
PARAMETERS = {
    "cifar_resnet8": 83_892,
    "cifar_resnet14": 181_108,
    "cifar_resnet20": 278_324,
    "cifar_resnet56": 861_620,
    "cifar_resnet110": 1_736_564,
    "cifar_resnet8x4": 1_233_540,
    "cifar_resnet32x4": 7_433_860,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_those_of_crds_zoo(name: str) -> None:
    model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    convolutions = [
        m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    ]
    depth = int(name.removeprefix("cifar_resnet").removesuffix("x4"))
    assert len(convolutions) + 1 == depth  # and the classifier


def test_shapes_and_timms_interface() -> None:
    model = timm.create_model("cifar_resnet8x4", num_classes=7).eval()
    images = torch.randn(2, 3, 32, 32)
    features = model.forward_features(images)
    assert features.shape == (2, 256, 8, 8)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert torch.equal(model.forward_head(features), model(images))
    assert model(images).shape == (2, 7)
    assert model.num_classes == 7
    assert model.num_features == model.head_hidden_size == 256
    assert model.get_classifier().out_features == 7
    model.reset_classifier(3)
    assert model.num_classes == 3
    assert model(images).shape == (2, 3)
    model.reset_classifier(0)
    assert model(images).shape == (2, 256)
    assert model.pretrained_cfg["mean"] == (0.5071, 0.4867, 0.4408)
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)


def test_first_layer_takes_other_channel_counts() -> None:
    assert timm.create_model("cifar_resnet8", in_chans=1)(torch.randn(2, 1, 28, 28)).shape == (
        2,
        100,
    )


def test_features_only_gives_four_maps() -> None:
    model = timm.create_model("cifar_resnet8", features_only=True)
    maps = model(torch.randn(1, 3, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (16, 32, 32),
        (16, 32, 32),
        (32, 16, 16),
        (64, 8, 8),
    ]
    assert model.feature_info.reduction() == [1, 1, 2, 4]


def test_projection_only_where_the_shape_changes() -> None:
    def projections(name: str) -> list[bool]:
        model = timm.create_model(name)
        return [
            block.downsample is not None for block in (*model.layer1, *model.layer2, *model.layer3)
        ]

    assert projections("cifar_resnet14") == [False, False, True, False, True, False]
    assert projections("cifar_resnet8x4") == [True, True, True]


def test_convolutions_are_initialised_by_fan_out() -> None:
    torch.manual_seed(0)
    model = timm.create_model("cifar_resnet32x4")
    convolution = model.layer3[0].conv1  # 128 -> 256: fan_out 2304, fan_in 1152
    assert convolution.weight.std().item() == pytest.approx((2 / 2304) ** 0.5, rel=0.01)


def test_drop_path_grows_linearly_and_drop_rate_reaches_the_head() -> None:
    model = timm.create_model("cifar_resnet14", drop_path_rate=0.5, drop_rate=0.9)
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    pooled = model.train().forward_head(torch.ones(4, 64, 8, 8), pre_logits=True)
    assert (pooled == 0).float().mean() > 0.7
    assert torch.equal(
        model.eval().forward_head(torch.ones(4, 64, 8, 8), pre_logits=True), torch.ones(4, 64)
    )


@pytest.mark.parametrize("name", ["cifar_resnet20", "test_resnet"])
def test_export_comes_back_through_timm(tmp_path: Path, name: str) -> None:
    model = timm.create_model(name, num_classes=10).eval()
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    back = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    assert back.num_classes == 10
    assert torch.equal(back(images), model(images))
