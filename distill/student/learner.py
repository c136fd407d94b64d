"""What a student's placement wraps: its pixels, its model, and the heads of its objective."""

from torch import Tensor, nn

from distill.losses.hint import Heads
from distill.losses.outputs import FeatureKey, Outputs
from distill.models.features import forward_with_features
from distill.models.masked import visible_features
from distill.models.pixels import Pixels

HEADS = "heads."
"""The prefix of the names of heads' parameters among those that a student trains."""


class Learner(nn.Module):
    """Images [B, 3, H, W] in [0, 1] to `Outputs`.

    In training the outputs contain what the heads made of the features of model and teacher. In
    evaluation, and without heads, they are logits alone.

    Args:
        net: the timm model.
        pixels: from images to the pixels of the model.
        heads: of the objective's hint or masked term; None if it has neither.
        features: the model's features that the heads read, ascending.
    """

    def __init__(
        self,
        net: nn.Module,
        pixels: Pixels,
        heads: Heads | None = None,
        features: tuple[FeatureKey, ...] = (),
    ) -> None:
        super().__init__()
        assert heads is not None or not features, features
        self.net = net
        self.pixels = pixels
        self.heads = heads
        self.features = features

    def forward(self, images: Tensor, given: tuple[Tensor, ...] = ()) -> Outputs:
        """Compute the outputs.

        Args:
            images: [B, 3, H, W] in [0, 1].
            given: the teacher's features that the heads read.
        """
        pixels = self.pixels(images)
        if self.heads is None or not self.training:
            return Outputs(self.net(pixels))
        logits, features = forward_with_features(self.net, pixels, self.features)
        return Outputs(logits, self.heads(features, given))

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters by the names that a checkpoint gives them: those of the model as in
        its state dict, those of heads after "heads.".
        """
        found = dict(self.net.named_parameters())
        if self.heads is not None:
            own = {f"{HEADS}{name}": p for name, p in self.heads.named_parameters()}
            assert not own.keys() & found.keys(), "a model and its heads name parameters alike"
            found |= own
        return found

    def heads_state(self) -> dict[str, Tensor]:
        """Return the state dict of the heads; empty without heads."""
        return dict(self.heads.state_dict()) if self.heads is not None else {}


class MaskedLearner(Learner):
    """A learner that sees parts of its images in training: `heads` reconstruct the others."""

    def forward(self, images: Tensor, given: tuple[Tensor, ...] = ()) -> Outputs:
        """Compute the outputs.

        Args:
            images: [B, 3, H, H] in [0, 1].
            given: in training the numbers of visible patches, [B, V] int64, alone.
        """
        pixels = self.pixels(images)
        if not self.training:
            return Outputs(self.net(pixels))
        assert self.heads is not None
        (visible,) = given
        seen = visible_features(self.net, pixels, visible)
        pooled = self.net.forward_head(seen.transpose(1, 2)[..., None])  # type: ignore[operator]
        return Outputs(pooled, self.heads((seen, pixels), given))
