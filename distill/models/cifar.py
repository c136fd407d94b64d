"""CIFAR ResNets, registered with timm: three stages of n basic blocks, depth 6n + 2.

He et al. 2016, section 4.2, with a projection (option B) where the shape changes; the "x4" models
widen every layer four times behind a 32-channel stem (CRD's model zoo). Parameters carry the zoo's
names, so its checkpoints load. A release of one of these loads through `timm.create_model` only
after `import distill.models`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.layers import DropPath, create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import nn

__all__ = ["CifarResNet"]

Widths = tuple[int, int, int, int]


class BasicBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        out: torch.Tensor = self.act2(self.drop_path(x) + shortcut)
        return out


def _stage(in_channels: int, channels: int, stride: int, rates: list[float]) -> nn.Sequential:
    """Return one block for each rate; the first one changes width and resolution."""
    first = BasicBlock(in_channels, channels, stride, rates[0])
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, rate) for rate in rates[1:]))


class CifarResNet(nn.Module):
    """Images [B, in_chans, H, W] to logits [B, num_classes]; written for 32x32, correct at any
    size.

    Args:
        depth: 6n + 2, where n is the number of blocks in each of the three stages.
        widths: channels of the stem and of the three stages.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 in the first.
    """

    def __init__(
        self,
        depth: int,
        widths: Widths = (16, 16, 32, 64),
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if (depth - 2) % 6:
            raise ValueError(f"depth {depth}: a CIFAR ResNet of basic blocks has depth 6n + 2")
        blocks = (depth - 2) // 6
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate

        # Executed in the order registered: timm's features_only walks the children.
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU(inplace=True)
        self.feature_info = [{"num_chs": widths[0], "reduction": 1, "module": "act1"}]
        rates = torch.linspace(
            0, drop_path_rate, 3 * blocks, dtype=torch.float64, device="cpu"
        ).tolist()
        stages = []
        for i in range(3):
            rates_here = rates[i * blocks : (i + 1) * blocks]
            stages.append(_stage(widths[i], widths[i + 1], 1 if i == 0 else 2, rates_here))
            self.feature_info.append(
                {"num_chs": widths[i + 1], "reduction": 2**i, "module": f"layer{i + 1}"}
            )
        self.layer1, self.layer2, self.layer3 = stages
        self.num_features = widths[-1]
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=global_pool
        )
        self.head_hidden_size = self.num_features

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        classifier: nn.Module = self.fc
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=pool_type
        )
        reference = self.conv1.weight
        self.fc.to(device=reference.device, dtype=reference.dtype)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """[B, in_chans, H, W] to [B, num_features, H/4, W/4]."""
        return self._stages(x)[-1]

    def _stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the outputs of the stem and of the three stages."""
        outputs = [self.act1(self.bn1(self.conv1(x)))]
        for layer in (self.layer1, self.layer2, self.layer3):
            outputs.append(layer(outputs[-1]))
        return outputs

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """timm's interface to feature maps: those of the stem and the three stages, after their
        activation. All stages run; `norm` and `stop_early` change nothing.
        """
        assert output_fmt == "NCHW", "Output shape must be NCHW."
        outputs = self._stages(x)
        taken, _ = feature_take_indices(len(outputs), indices)
        features = [output for index, output in enumerate(outputs) if index in taken]
        return features if intermediates_only else (outputs[-1], features)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """[B, num_features, h, w] to logits [B, num_classes], or with `pre_logits` to [B,
        num_features].
        """
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def _cfg() -> dict[str, Any]:
    return {
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.5071, 0.4867, 0.4408),
        "std": (0.2675, 0.2565, 0.2761),
        "first_conv": "conv1",
        "classifier": "fc",
    }


# timm's register_model looks this name up in the module.
default_cfgs = generate_default_cfgs(
    {f"cifar_resnet{size}": _cfg() for size in ("8", "14", "20", "56", "110", "8x4", "32x4")}
)

Entry = TypeVar("Entry", bound=Callable[..., CifarResNet])
_register: Callable[[Entry], Entry] = register_model
_X4: Widths = (32, 64, 128, 256)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> CifarResNet:
    feature_cfg = {"out_indices": (0, 1, 2, 3)}
    model: CifarResNet = build_model_with_cfg(
        CifarResNet, variant, pretrained, feature_cfg=feature_cfg, **kwargs
    )
    return model


@_register
def cifar_resnet8(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    return _create("cifar_resnet8", pretrained, depth=8, **kwargs)


@_register
def cifar_resnet14(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    return _create("cifar_resnet14", pretrained, depth=14, **kwargs)


@_register
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """0.28M parameters at 100 classes: the paper's CIFAR student."""
    return _create("cifar_resnet20", pretrained, depth=20, **kwargs)


@_register
def cifar_resnet56(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """0.86M parameters at 100 classes: the paper's teacher of ResNet-20."""
    return _create("cifar_resnet56", pretrained, depth=56, **kwargs)


@_register
def cifar_resnet110(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    return _create("cifar_resnet110", pretrained, depth=110, **kwargs)


@_register
def cifar_resnet8x4(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """1.23M parameters at 100 classes: the paper's other CIFAR student."""
    return _create("cifar_resnet8x4", pretrained, depth=8, widths=_X4, **kwargs)


@_register
def cifar_resnet32x4(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """7.43M parameters at 100 classes: the paper's teacher of ResNet-8x4."""
    return _create("cifar_resnet32x4", pretrained, depth=32, widths=_X4, **kwargs)
