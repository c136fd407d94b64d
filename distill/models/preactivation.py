"""Feature maps of ResNets before the last activation of a stage, which timm does not return.

The activation module is replaced by one that applies it and keeps its input while it is asked to.
It has no parameters, so the names of a state dict stay; unlike a hook it is part of the model that
torch compiles, copies and partitions.
"""

from collections.abc import Sequence

from timm.models import resnet
from torch import Tensor, nn

from distill.losses.outputs import POOLED, FeatureKey
from distill.models import cifar

_LAST_ACTIVATION: dict[type[nn.Module], str] = {
    cifar.BasicBlock: "act2",
    resnet.BasicBlock: "act2",
    resnet.Bottleneck: "act3",
}


class SplitActivation(nn.Module):
    """An activation whose input can be kept.

    Args:
        activation: has no state.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        # Always out of place: it would change the input that is kept, and a forward that is
        # computed again for its gradient must do what the first one did.
        if hasattr(activation, "inplace"):
            vars(activation)["inplace"] = False
        self.keeping = False
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.keeping:
            self.kept = x
        out: Tensor = self.activation(x)
        return out


def split_activations(net: nn.Module, keys: Sequence[FeatureKey]) -> tuple[FeatureKey, ...]:
    """Prepare a model to return its maps before the activation, where it is a ResNet.

    Args:
        keys: maps after their activation, and the pooled features.

    Returns:
        The keys of the same maps before their activation; those of other models and of the pooled
        features as given.
    """
    found = []
    for key in keys:
        place = None if key == POOLED else _last_activation(net, key.stage)
        if place is None:
            found.append(key)
            continue
        module, name = place
        activation = module.get_submodule(name)
        if not isinstance(activation, SplitActivation):
            setattr(module, name, SplitActivation(activation))
        found.append(FeatureKey(key.stage, preactivation=True))
    return tuple(found)


def keep_inputs(net: nn.Module, keys: Sequence[FeatureKey]) -> None:
    """Let the next forward keep the maps before an activation that are asked for."""
    for key in keys:
        _split(net, key).keeping = True


def take_inputs(net: nn.Module, keys: Sequence[FeatureKey]) -> dict[FeatureKey, Tensor]:
    """Return the maps that the forward kept. The model keeps none of them, nor the next ones."""
    found = {}
    for key in keys:
        split = _split(net, key)
        if split.kept is not None:
            found[key] = split.kept
        split.keeping, split.kept = False, None
    return found


def _split(net: nn.Module, key: FeatureKey) -> SplitActivation:
    place = _last_activation(net, key.stage)
    assert place is not None, "the keys are those that split_activations returned"
    split = place[0].get_submodule(place[1])
    assert isinstance(split, SplitActivation)
    return split


def _last_activation(net: nn.Module, stage: int) -> tuple[nn.Module, str] | None:
    """Return the module that has the last activation of a stage, and its name there; None for a
    model that is no ResNet, and an activation with parameters.
    """
    if not isinstance(net, resnet.ResNet | cifar.CifarResNet):
        return None
    owner: nn.Module = net
    name: str | None = "act1"
    if stage > 0:
        layer = net.get_submodule(f"layer{stage}")
        assert isinstance(layer, nn.Sequential)
        owner = layer[-1]
        name = _LAST_ACTIVATION.get(type(owner))
    if name is None or list(owner.get_submodule(name).parameters()):
        return None
    return owner, name
