"""Masked-image modelling of a run: which students can do it, and its term of their objectives."""

import torch
from torch import Tensor, nn

from distill.errors import InputError
from distill.losses.masked import MaskedTerm, masked_term
from distill.models.masked import PATCH, refuse_other_than_convnext
from distill.models.pixels import Pixels
from distill.recipe import Recipe, schema
from distill.student.learner import MaskedLearner


def refuse_unmaskable(
    objective: schema.ObjectiveSpec, net: nn.Module, image_size: int, key: str
) -> None:
    """Check that a student's model can compute parts of images, if its objective has `masked`.

    Args:
        key: of the student in the recipe.

    Raises:
        InputError: the model is no ConvNeXt, the image size is no multiple of the patches, or no
            patch would stay or be removed.
    """
    masked = objective.masked
    if masked is None:
        return
    where = f"{key}.objective.masked"
    refuse_other_than_convnext(net, image_size, where, f"{key}.model {type(net).__name__}")
    num_patches = (image_size // PATCH) ** 2
    if not 0 < masked.num_visible(num_patches) < num_patches:
        raise InputError(
            f"{where}.mask_ratio: {masked.mask_ratio:g} leaves"
            f" {masked.num_visible(num_patches)} of the {num_patches} patches of"
            f" {image_size} pixels: choose a ratio at which at least one stays and one is removed"
        )


def masked_of(spec: schema.ObjectiveSpec, net: nn.Module, recipe: Recipe) -> MaskedTerm | None:
    """Return the masked term of an objective; None if it has none."""
    if spec.masked is None:
        return None
    return masked_term(
        spec.masked,
        channels=int(net.num_features),  # type: ignore[arg-type]
        image_size=recipe.data.image_size,
        patch=PATCH,
        seed=recipe.seed,
    )


class MaskedNetwork(nn.Module):
    """A student outside of a run, to be counted: images [b, 3, S, S] in [0, 1] to the predicted
    pixels of removed patches, [b, N].

    Args:
        net: a ConvNeXt without memory.
    """

    def __init__(
        self, net: nn.Module, pixels: Pixels, spec: schema.FCMAESpec, image_size: int
    ) -> None:
        super().__init__()
        term = masked_term(
            spec,
            channels=int(net.num_features),  # type: ignore[arg-type]
            image_size=image_size,
            patch=PATCH,
            seed=0,
        )
        self.net = net
        self.heads = term.build_heads()
        self.learner = MaskedLearner(net, pixels, self.heads)
        self._num_visible = term.num_visible

    def forward(self, images: Tensor) -> Tensor:
        """Compute the predictions."""
        visible = torch.arange(self._num_visible).expand(len(images), -1)
        predicted, _ = self.learner(images, (visible,)).features
        return predicted.flatten(1)  # type: ignore[no-any-return]
