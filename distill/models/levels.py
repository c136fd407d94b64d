"""The levels of a model: some of its feature maps, from large to small, for methods that compare
several.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from distill.errors import InputError
from distill.losses.outputs import FeatureMap
from distill.losses.reviewkd import scaled_size
from distill.models.features import chosen_stage, listed_stages

_MOST_LEVELS = 4
# Of a model whose maps have one size, from the released code's bridge to BEiTv2-L: the scales of
# its four maps, and the blocks that give them, counted from 1, of 24.
_SCALES = (4.0, 2.0, 1.0, 0.5)
_BLOCKS, _DEPTH = (2, 4, 22, 24), 24


def chosen_levels(
    maps: Sequence[FeatureMap], stages: Sequence[int] | None, what: str
) -> tuple[FeatureMap, ...]:
    """Return the levels of a model, ascending.

    They are the last map of each size, at most the four deepest. A model whose maps have one size
    has four of its blocks, whose maps are scaled by 4, 2, 1 and 1/2; fewer blocks are the deepest
    of these.

    Args:
        maps: of all its stages.
        stages: those of the recipe instead, ascending, which may be negative from the end.
        what: the model's key and name, for messages.

    Raises:
        InputError: no such stage, stages that do not ascend, more than four of a model of one size,
            channels that do not divide, or maps that become larger.
    """
    one_size = len(maps) > 1 and len({(each.height, each.width) for each in maps}) == 1
    if stages is not None:
        indices = [chosen_stage(maps, stage, what) for stage in stages]
        if any(b <= a for a, b in pairwise(indices)):
            raise InputError(f"{_listed(stages)} must ascend, and {what} has {listed_stages(maps)}")
    elif one_size:
        indices = _spread(len(maps))
    else:
        of_sizes = {(each.height, each.width): index for index, each in enumerate(maps)}
        indices = sorted(of_sizes.values())[-_MOST_LEVELS:]
    chosen = [maps[index] for index in indices]
    if one_size:
        if len(chosen) > _MOST_LEVELS:
            raise InputError(
                f"{_listed(indices)} are more than the {_MOST_LEVELS} levels of {what}, whose maps"
                " have one size: name fewer"
            )
        chosen = [
            _scaled(each, scale, what)
            for each, scale in zip(chosen, _SCALES[-len(chosen) :], strict=True)
        ]
    for before, after in pairwise(chosen):
        if after.height > before.height or after.width > before.width:
            raise InputError(
                f"{after.key} of {what} is larger than that of stage {before.key.stage}, so it"
                f" cannot be the next level: it has {listed_stages(maps)}"
            )
    return tuple(chosen)


def _spread(num_maps: int) -> list[int]:
    """Return the blocks of the released code, in proportion: 1, 3, 21 and 23 of 24."""
    count = min(_MOST_LEVELS, num_maps)
    indices: list[int] = []
    for left, block in zip(range(count - 1, -1, -1), _BLOCKS[-count:], strict=True):
        nearest = round(block * num_maps / _DEPTH) - 1
        first = indices[-1] + 1 if indices else 0
        indices.append(max(first, min(nearest, num_maps - 1 - left)))
    return indices


def _scaled(each: FeatureMap, scale: float, what: str) -> FeatureMap:
    height, width = scaled_size(each.height, each.width, scale)
    pixels = max(1, int(scale)) ** 2
    if each.channels % pixels:
        raise InputError(
            f"{what} has {each.channels} channels, which do not divide into the {pixels} pixels of"
            f" the level of stage {each.key.stage}: name fewer stages"
        )
    return replace(each, channels=each.channels // pixels, height=height, width=width, scale=scale)


def _listed(stages: Sequence[int]) -> str:
    return ", ".join(map(str, stages))
