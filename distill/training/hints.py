"""The features that a hint compares: those that the recipe names, or the method reads."""

from dataclasses import dataclass, field
from typing import Literal, assert_never

from torch import nn

from distill.errors import InputError, prefix_errors
from distill.losses.outputs import FeatureKey, FeatureMap
from distill.models.features import chosen_stage, feature_maps, pooled_map, refuse_other_logits
from distill.recipe import schema

Side = Literal["student", "teacher"]


@dataclass
class FeatureSource:
    """A model whose features a hint reads.

    Attributes:
        what: its key and name, for messages.
        image_size: of the pixels that it gets.
    """

    net: nn.Module
    image_size: int
    what: str
    _maps: list[FeatureMap] | None = field(default=None, init=False)
    _checked: set[FeatureKey] = field(default_factory=set, init=False)

    @property
    def maps(self) -> list[FeatureMap]:
        """The feature map of each stage.

        Raises:
            InputError: the model gives none.
            NotImplementedError: the model is on the device "meta" and cannot compute there.
        """
        if self._maps is None:
            self._maps = feature_maps(self.net, self.image_size, self.what)
        return self._maps

    def stage(self, stage: int | None) -> FeatureMap:
        """Return the feature map of a stage of the recipe; None for the middle one. Errors are
        those of `maps`, and InputError if the model has no such stage.
        """
        return self.maps[chosen_stage(self.maps, stage, self.what)]

    def pooled(self) -> FeatureMap:
        """Return the shape of the pooled features. Errors are those of `maps`."""
        return pooled_map(self.net, self.image_size, self.what)

    def check(self, key: FeatureKey) -> None:
        """Raises InputError if the model gives other logits with these features than without. On
        the device "meta" nothing is compared.
        """
        if key not in self._checked and not next(self.net.parameters()).is_meta:
            refuse_other_logits(self.net, self.image_size, key, self.what)
            self._checked.add(key)


def read_features(
    spec: schema.HintSpec, source: FeatureSource, side: Side, key: str
) -> tuple[FeatureMap, ...] | None:
    """Return the features of the student or the teacher that a hint compares, ascending.

    Args:
        key: of the hint in the recipe, for messages.

    Returns:
        None for a model on the device "meta" that cannot compute there.

    Raises:
        InputError: the model has no such stage, gives no features, or gives other logits with these
            than without; a student drops tokens in training.
    """
    if side == "student" and any(
        type(module).__name__.startswith("PatchDropout") for module in source.net.modules()
    ):
        raise InputError(
            f"{key}: {source.what} drops tokens in training (patch_drop_rate), so they are no map:"
            " remove it from model_args, or set objective.hint to null"
        )
    try:
        maps = _features(spec, source, side, key)
    except NotImplementedError:
        return None
    for each in maps:
        with prefix_errors(key):
            source.check(each.key)
    return maps


def _features(
    spec: schema.HintSpec, source: FeatureSource, side: Side, key: str
) -> tuple[FeatureMap, ...]:
    match spec:
        case schema.FitNetSpec():
            with prefix_errors(f"{key}.{side}_stage"):
                return (source.stage(getattr(spec, f"{side}_stage")),)
        case schema.FeatureSpec() if spec.level == "dense":
            stage = getattr(spec, f"{side}_stage")
            with prefix_errors(f"{key}.{side}_stage"):
                return (source.stage(-1 if stage is None else stage),)
        case schema.CCSpec() | schema.RKDSpec() | schema.CRDSpec() | schema.FeatureSpec():
            with prefix_errors(key):
                return (source.pooled(),)
        case _:
            assert_never(spec)
