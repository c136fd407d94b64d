"""The masked term of an objective: removed patches of images are reconstructed."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from torch import Tensor

from distill.losses.fcmae import FCMAE, visible_patches
from distill.losses.hint import Heads, Supervision
from distill.recipe.masked import FCMAESpec


@dataclass(frozen=True)
class MaskedTerm:
    """Which patches stay, and what reconstructs the others.

    Attributes:
        build_heads: builds the decoder. Draws from the global generators.
        heads_key: decoders with equal keys are alike.
        seed: of the run.
        num_patches: of an image.
        num_visible: those that stay.
    """

    build_heads: Callable[[], Heads]
    heads_key: Hashable
    seed: int
    num_patches: int
    num_visible: int
    weight: float = 1.0

    def visible(self, batch: Supervision) -> Tensor:
        """Return the patches of a batch that stay, [B, num_visible] int64, ascending."""
        return visible_patches(self.seed, batch.positions, self.num_patches, self.num_visible)


def masked_term(
    spec: FCMAESpec, *, channels: int, image_size: int, patch: int, seed: int
) -> MaskedTerm:
    """Return the term that a recipe describes.

    Args:
        channels: of the student's last features.
        patch: side of a patch in pixels.
        seed: of the run.
    """
    side = image_size // patch
    return MaskedTerm(
        lambda: FCMAE(channels, spec.decoder_width, patch, side, normalise=spec.normalise_patches),
        spec.heads,
        seed,
        side**2,
        spec.num_visible(side**2),
        spec.weight,
    )
