"""The levels of a model: which of its maps, and what is refused. Models without memory."""

import pytest
import timm
import torch
from test_models_features import MODELS

from distill.errors import InputError
from distill.losses import FeatureKey, FeatureMap
from distill.models.features import feature_maps
from distill.models.levels import chosen_levels

Row = tuple[int, int, int, float]


def maps_of(name: str, size: int) -> list[FeatureMap]:
    with torch.device("meta"):
        return feature_maps(timm.create_model(name), size, name)


def rows(maps: tuple[FeatureMap, ...]) -> list[Row]:
    assert all(each.height == each.width for each in maps)
    return [(each.key.stage, each.channels, each.height, each.scale) for each in maps]


# Stages 0 to 3 or 1 to 4, and their widths.
HIERARCHICAL = {
    "resnet50": (1, (256, 512, 1024, 2048)),
    "resnet18": (1, (64, 128, 256, 512)),
    "convnext_tiny": (0, (96, 192, 384, 768)),
    "swin_tiny_patch4_window7_224": (0, (96, 192, 384, 768)),
    "efficientnet_b0": (1, (24, 40, 112, 320)),
    "mobilenetv2_100": (1, (24, 32, 96, 320)),
    "regnety_004": (1, (48, 104, 208, 440)),
}


@pytest.mark.parametrize("name", HIERARCHICAL)
def test_a_hierarchical_model_has_the_last_map_of_strides_4_to_32(name: str) -> None:
    first, widths = HIERARCHICAL[name]
    expected = [(first + i, width, 56 >> i, 1.0) for i, width in enumerate(widths)]
    assert rows(chosen_levels(maps_of(name, 224), None, name)) == expected


ISOTROPIC = {
    # The four blocks, shapes and order of the released code, for its teacher.
    "beitv2_large_patch16_224": ((1, 3, 21, 23), 1024),
    "beitv2_base_patch16_224": ((0, 1, 10, 11), 768),
    "deit_small_patch16_224": ((0, 1, 10, 11), 384),
    "mixer_s16_224": ((0, 1, 6, 7), 512),
}


@pytest.mark.parametrize("name", ISOTROPIC)
def test_blocks_of_one_size_are_scaled_as_in_the_released_code(name: str) -> None:
    blocks, width = ISOTROPIC[name]
    sizes = ((width // 16, 56, 4.0), (width // 4, 28, 2.0), (width, 14, 1.0), (width, 7, 0.5))
    expected = [(block, *size) for block, size in zip(blocks, sizes, strict=True)]
    assert rows(chosen_levels(maps_of(name, 224), None, name)) == expected


def test_a_cifar_resnet_has_three() -> None:
    found = rows(chosen_levels(maps_of("cifar_resnet20", 32), None, "it"))
    assert found == [(1, 16, 32, 1.0), (2, 32, 16, 1.0), (3, 64, 8, 1.0)]


@pytest.mark.parametrize("name", MODELS)
def test_levels_ascend_and_shrink_in_every_model(name: str) -> None:
    size = timm.models.get_pretrained_cfg_value(name, "input_size")[1]
    found = rows(chosen_levels(maps_of(name, size), None, name))
    assert 3 <= len(found) <= 4
    stages, _, sizes, _ = zip(*found, strict=True)
    assert list(stages) == sorted(set(stages))
    assert list(sizes) == sorted(set(sizes), reverse=True)
    if size == 160:  # strides of 4 to 32
        assert list(sizes) == [40, 20, 10, 5]


def made(*shapes: tuple[int, int]) -> list[FeatureMap]:
    """Maps of these channels and sizes."""
    return [FeatureMap(FeatureKey(i), c, size, size) for i, (c, size) in enumerate(shapes)]


def test_few_blocks_give_the_deepest_levels() -> None:
    for depth, blocks in ((1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (4, [0, 1, 2, 3])):
        found = rows(chosen_levels(made(*[(16, 8)] * depth), None, "it"))
        assert [row[0] for row in found] == blocks
        scales = [1.0] if depth == 1 else [4.0, 2.0, 1.0, 0.5][-depth:]
        assert [row[3] for row in found] == scales
    for depth in range(4, 60):
        found = rows(chosen_levels(made(*[(16, 8)] * depth), None, "it"))
        stages = [row[0] for row in found]
        assert stages == sorted(set(stages)), depth
        assert stages[-1] == depth - 1


def test_a_recipe_can_name_them() -> None:
    maps = maps_of("resnet18", 64)
    assert [row[0] for row in rows(chosen_levels(maps, (0, 2, -1), "it"))] == [0, 2, 4]
    blocks = made(*[(16, 8)] * 6)
    found = rows(chosen_levels(blocks, (2, -1), "it"))
    assert found == [(2, 16, 8, 1.0), (5, 16, 4, 0.5)]


@pytest.mark.parametrize(
    ("maps", "stages", "message"),
    [
        (made((8, 8), (9, 4)), (0, 2), r"^2, and it has stages 0 to 1 .*1: 9 x 4 x 4"),
        (made((8, 8), (9, 4)), (1, 0), r"^1, 0 must ascend, and it has stages 0 to 1"),
        (made((8, 8), (9, 4)), (1, -1), r"^1, -1 must ascend"),
        (made(*[(16, 8)] * 6), (0, 1, 2, 3, 4), r"^0, 1, 2, 3, 4 are more than the 4 levels of it"),
        (made(*[(24, 8)] * 6), None, r"^it has 24 channels, which .* the 16 pixels .* stage 0"),
        (made((8, 4), (9, 8)), None, r"the feature map of stage 1 of it is larger than"),
    ],
)
def test_what_gives_no_levels_is_refused(
    maps: list[FeatureMap], stages: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        chosen_levels(maps, stages, "it")
