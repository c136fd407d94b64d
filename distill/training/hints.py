"""The feature maps that a hint compares: those that the recipe names, or the middle ones."""

from dataclasses import dataclass, field

from torch import nn

from distill.errors import InputError, prefix_errors
from distill.losses.objective import FeatureMap
from distill.models.features import chosen_stage, feature_maps, refuse_other_logits
from distill.recipe import schema

HintMaps = tuple[FeatureMap, FeatureMap]
"""Of the student and of the teacher."""


@dataclass
class FeatureSource:
    """A model whose feature maps a hint reads.

    Attributes:
        what: its key and name, for messages.
        image_size: of the pixels that it gets.
    """

    net: nn.Module
    image_size: int
    what: str
    _maps: list[tuple[int, int, int]] | None = field(default=None, init=False)
    _checked: set[int] = field(default_factory=set, init=False)

    def feature_map(self, stage: int | None) -> FeatureMap | None:
        """Return the feature map of a stage of the recipe; None for the middle one.

        Returns:
            None for a model on the device "meta" that cannot compute there.

        Raises:
            InputError: the model has no such stage, gives no feature maps, or gives other logits
                with this one than without.
        """
        if self._maps is None:
            try:
                self._maps = feature_maps(self.net, self.image_size, self.what)
            except NotImplementedError:
                return None
        index = chosen_stage(self._maps, stage, self.what)
        if index not in self._checked and not next(self.net.parameters()).is_meta:
            refuse_other_logits(self.net, self.image_size, index, self.what)
            self._checked.add(index)
        return FeatureMap(index, self._maps[index][0])


def student_map(spec: schema.HintSpec, student: FeatureSource, key: str) -> FeatureMap | None:
    """Return the student's feature map of a hint.

    Args:
        key: of the hint in the recipe, for messages.

    Raises:
        InputError: as `FeatureSource.feature_map`; tokens are dropped in training.
    """
    with prefix_errors(f"{key}.student_stage"):
        if any(
            type(module).__name__.startswith("PatchDropout") for module in student.net.modules()
        ):
            raise InputError(
                f"{student.what} drops tokens in training (patch_drop_rate), so they are no map:"
                " remove it from model_args, or set objective.hint to null"
            )
        return student.feature_map(spec.student_stage)


def teacher_map(spec: schema.HintSpec, teacher: FeatureSource, key: str) -> FeatureMap | None:
    """Return the teacher's feature map of a hint. Arguments and errors as of `student_map`."""
    with prefix_errors(f"{key}.teacher_stage"):
        return teacher.feature_map(spec.teacher_stage)
