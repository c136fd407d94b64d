"""A student that reconstructs removed patches, to be counted."""

import torch
from torch import Tensor, nn

from distill.losses.masked import masked_term
from distill.models.masked import PATCH
from distill.models.pixels import Pixels
from distill.recipe import schema
from distill.student.learner import MaskedLearner


class MaskedNetwork(nn.Module):
    """Images [b, 3, S, S] in [0, 1] to the predicted pixels of removed patches, [b, N].

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
        self.learner = MaskedLearner(net, pixels, term.build_heads())
        self._num_visible = term.num_visible

    def forward(self, images: Tensor) -> Tensor:
        """Compute the predictions."""
        visible = torch.arange(self._num_visible).expand(len(images), -1)
        predicted, _ = self.learner(images, (visible,)).features
        return predicted.flatten(1)  # type: ignore[no-any-return]
