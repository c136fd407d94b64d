"""The features that a hint compares: those that the recipe names, or the method reads."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, assert_never

from torch import nn

from distill.errors import InputError, prefix_errors
from distill.losses.outputs import FeatureKey, FeatureMap
from distill.models.features import chosen_stage, feature_maps, pooled_map, refuse_other_logits
from distill.models.levels import chosen_levels
from distill.models.preactivation import split_activations
from distill.recipe import schema

Side = Literal["student", "teacher"]


@dataclass
class FeatureSource:
    """A model whose features a hint reads.

    Attributes:
        what: its key and name, for messages.
        image_size: of the pixels that it gets.
        notes: what the header says of its features.
    """

    net: nn.Module
    image_size: int
    what: str
    notes: list[str] = field(default_factory=list, init=False)
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

    def levels(
        self, stages: Sequence[int] | None, *, preactivation: bool
    ) -> tuple[FeatureMap, ...]:
        """Return the maps of several levels, and the pooled features.

        Args:
            stages: of the recipe; None for those that `chosen_levels` finds.
            preactivation: take the maps before their activation where the model is a ResNet, which
                prepares it for that.

        Raises:
            InputError: as `maps` and `chosen_levels`.
        """
        found = (*chosen_levels(self.maps, stages, self.what), self.pooled())
        if not preactivation:
            return found
        keys = split_activations(self.net, [each.key for each in found])
        if not any(key.preactivation for key in keys):
            note = f"features of {self.what} after their activation: only ResNets have them before"
            self.notes = [note]
        return tuple(replace(each, key=key) for each, key in zip(found, keys, strict=True))

    def check(self, keys: Sequence[FeatureKey]) -> None:
        """Raises InputError if the model gives other logits with these features than without. On
        the device "meta" nothing is compared.

        Args:
            keys: ascending.
        """
        new = [key for key in keys if key not in self._checked]
        if new and not next(self.net.parameters()).is_meta:
            refuse_other_logits(self.net, self.image_size, new, self.what)
            self._checked.update(new)


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
    with prefix_errors(key):
        source.check([each.key for each in maps])
    return maps


def refuse_long_warmup(spec: schema.HintSpec, num_epochs: float, key: str) -> None:
    """Raises InputError for a hint whose weight is still in its warm-up when its stage ends.

    Args:
        num_epochs: of the stage.
        key: of the hint in the recipe, for messages.
    """
    if isinstance(spec, schema.ReviewKDSpec) and num_epochs <= spec.warmup_epochs > 0:
        raise InputError(
            f"{key}.warmup_epochs: {spec.warmup_epochs}, and training has {num_epochs:.3g} epochs,"
            " so the hint never has its full weight: set it to 0, or train longer"
        )


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
        case schema.ReviewKDSpec():
            stages = spec.student_stages if side == "student" else spec.teacher_stages
            with prefix_errors(f"{key}.{side}_stages"):
                return source.levels(
                    stages, preactivation=side == "teacher" or spec.reference == "paper_code"
                )
        case schema.CCSpec() | schema.RKDSpec() | schema.CRDSpec() | schema.FeatureSpec():
            with prefix_errors(key):
                return (source.pooled(),)
        case _:
            assert_never(spec)
