"""Layers of models: timm's list of feature maps, or modules by name."""

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from distill.errors import InputError
from distill.models import cifar as cifar  # registers its models
from distill.models.layers import LayeredNetwork, layered
from distill.models.pixels import Pixels

ROOT = Path(__file__).resolve().parents[2]
MEAN, STD = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)


def network(name: str, chosen: str = "all", size: int = 32) -> LayeredNetwork:
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=5).eval()
    return layered(net, Pixels(MEAN, STD), size, chosen, f"A ({name})", "--layers-a").eval()


def images(size: int = 32) -> Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def features(network: LayeredNetwork, size: int = 32) -> list[Tensor]:
    """Copies of what each layer hands out, in the order of the layers."""
    found: dict[int, Tensor] = {}
    with torch.no_grad():
        network(images(size), lambda place, output: found.setdefault(place, output.clone()))
    assert list(found) == list(range(len(network.layers)))
    return list(found.values())


def normalised(size: int = 32) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images(size) - mean) / std


def test_all_layers_are_those_that_timm_lists() -> None:
    found = network("cifar_resnet8")
    assert [(layer.index, layer.name) for layer in found.layers] == [
        (0, "act1"),
        (1, "layer1"),
        (2, "layer2"),
        (3, "layer3"),
    ]
    assert found.layers[2].shape == (32, 16, 16)
    with torch.no_grad():
        expected = found.net.forward_intermediates(normalised(), intermediates_only=True)
    for one, other in zip(features(found), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_each_block_of_a_transformer_is_a_layer() -> None:
    found = network("test_vit", size=160)
    assert [layer.name for layer in found.layers] == [f"blocks.{i}" for i in range(6)]
    assert all(layer.shape == (64, 10, 10) for layer in found.layers)
    assert [f.shape[1:] for f in features(found, 160)] == [layer.shape for layer in found.layers]


def test_indices_choose_among_them_in_the_order_of_the_model() -> None:
    found = network("cifar_resnet8", "-1, 1,3")
    assert [layer.index for layer in found.layers] == [1, 3]
    everything = features(network("cifar_resnet8"))
    assert all(map(torch.equal, features(found), (everything[1], everything[3])))


def test_modules_are_chosen_by_name_in_the_order_of_the_forward() -> None:
    """Features are those at the moment of the module, though later ones change them in place."""
    found = network("cifar_resnet20", "layer*.*,bn1,act1")
    names = ["bn1", "act1", *(f"layer{i}.{j}" for i in (1, 2, 3) for j in (0, 1, 2))]
    assert [layer.name for layer in found.layers] == names
    assert [layer.index for layer in found.layers] == list(range(11))
    handed_out = dict(zip(names, features(found), strict=True))
    everything = features(network("cifar_resnet20"))
    torch.testing.assert_close(handed_out["act1"], everything[0])
    torch.testing.assert_close(handed_out["layer2.2"], everything[2])
    assert handed_out["bn1"].min() < 0, "act1 works in place"


@pytest.mark.parametrize(
    ("name", "patterns", "size", "count"),
    [
        ("test_resnet", "act1,layer*.*", 64, 5),
        ("test_convnext", "stem,stages.*.blocks.*", 64, 10),
        ("test_efficientnet", "bn1,blocks.*.*", 64, 6),
        ("test_vit", "blocks.*", 160, 6),
    ],
)
def test_the_residual_blocks_of_the_documentation(
    name: str, patterns: str, size: int, count: int
) -> None:
    assert patterns in (ROOT / "docs/similarity.md").read_text()
    found = network(name, patterns, size)
    assert len(found.layers) == count
    assert [f.shape[1:] for f in features(found, size)] == [layer.shape for layer in found.layers]


def test_modules_within_modules_and_what_a_model_reads_of_them() -> None:
    found = network("test_efficientnet", "blocks,blocks.*,blocks.*.*")
    assert found.layers[-1].name == "blocks"
    outputs = {layer.name: f for layer, f in zip(found.layers, features(found), strict=True)}
    last = max(name for name in outputs if name.count(".") == 1)
    assert torch.equal(outputs[last], outputs["blocks"])
    # Swin reads attributes of its stages.
    assert len(network("swin_tiny_patch4_window7_224", "layers.*.blocks.*", 224).layers) == 12


def test_the_class_token_is_in_a_block_by_name_and_not_in_timms_list() -> None:
    by_name = network("test_vit", "blocks.*", 160)
    assert by_name.layers[0].shape == (101, 64)
    tokens = features(by_name, 160)[2][:, 1:]
    maps = features(network("test_vit", size=160), 160)[2]
    torch.testing.assert_close(tokens.transpose(1, 2).reshape(maps.shape), maps)


class Headless(nn.Module):
    """A model that is not timm's."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.idle = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ReLU()
        self.rows = nn.Flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.two(self.one(x)))
        self.rows(x)
        return x.mean((2, 3))


def chosen(text: str) -> LayeredNetwork:
    return layered(Headless(), Pixels(MEAN, STD), 8, text, "A (mine)", "--layers-a")


def test_what_cannot_be_a_layer_is_refused() -> None:
    for text, message in (
        ("all", "A .mine. gives no feature maps: .*or name modules of it with --layers-a"),
        ("tow", r"--layers-a tow: A \(mine\) has no module of this name \(did you mean 'two'"),
        ("one.*", "has no module of this name"),
        ("one,two", "two of A .mine. runs 2 times in a forward"),
        ("idle", "idle of A .mine. runs 0 times"),
        ("rows", "rows of A .mine. does not return a tensor with a row for each image"),
    ):
        with pytest.raises(InputError, match=message):
            chosen(text)
    assert [layer.name for layer in chosen("one").layers] == ["one"]
    with pytest.raises(
        InputError, match=r"--layers-a 4: A \(cifar_resnet8\) has the layers 0 to 3"
    ):
        network("cifar_resnet8", "1,4")
