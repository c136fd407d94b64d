"""The feature maps that a hint compares: those that the recipe names, or the middle ones."""

from dataclasses import dataclass, field

import torch
from torch import nn

from distill.errors import InputError, prefix_errors
from distill.losses.objective import FeatureMap
from distill.models.features import chosen_stage, feature_maps, forward_with_features
from distill.recipe import schema

HintMaps = tuple[FeatureMap, FeatureMap]
"""Of the student and of the teacher."""


@dataclass
class Mapped:
    """A model as hints see it.

    Attributes:
        what: its key and name, for messages.
        image_size: of the pixels that it gets.
    """

    net: nn.Module
    image_size: int
    what: str
    _maps: list[tuple[int, int, int]] = field(default_factory=list)

    def feature_map(self, stage: int | None) -> FeatureMap:
        """Return the feature map of a stage of the recipe; None for the middle one.

        Raises:
            InputError: the model has no such stage, or gives no feature maps.
        """
        if not self._maps:
            self._maps = feature_maps(self.net, self.image_size, self.what)
            self._refuse_other_logits()
        index = chosen_stage(self._maps, stage, self.what)
        return FeatureMap(index, self._maps[index][0])

    def _refuse_other_logits(self) -> None:
        """Raises InputError if the forward that gives feature maps gives other logits, as for a
        model whose classifier reads more than its last feature map.
        """
        first = next(self.net.parameters())
        if first.is_meta:
            return
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(1, 3, self.image_size, self.image_size, generator=generator)
        training = self.net.training
        try:
            with torch.no_grad():
                pixels = pixels.to(first.dtype)
                logits = self.net.eval()(pixels)
                found = forward_with_features(self.net, pixels, (0,)).logits
        finally:
            self.net.train(training)
        if found.shape != logits.shape or not torch.allclose(found, logits, rtol=1e-2, atol=1e-4):
            raise InputError(
                f"{self.what}: its forward with feature maps gives other logits: choose another"
                " model, or an objective without hint"
            )


def hint_maps(spec: schema.HintSpec, student: Mapped, teacher: Mapped, key: str) -> HintMaps:
    """Return the feature maps that a hint compares.

    Args:
        key: of the hint in the recipe, for messages.

    Raises:
        InputError: as `Mapped.feature_map`.
    """
    with prefix_errors(f"{key}.student_stage"):
        own = student.feature_map(spec.student_stage)
    with prefix_errors(f"{key}.teacher_stage"):
        return own, teacher.feature_map(spec.teacher_stage)
