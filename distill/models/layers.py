"""The layers of a model, and their features one after another during a forward: for measuring.

A layer is an entry of the list that timm's `forward_intermediates` returns, or by its name any
module, such as a residual block. Named modules are wrapped; no hooks are used.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import InputError, did_you_mean
from distill.models.features import evaluating, explained, feature_maps
from distill.models.pixels import Pixels

Take = Callable[[int, Tensor], None]
"""Called with the place of a layer among those chosen, and its features [B, ...]."""

ALL = "all"
_NUMBER = re.compile(r"-?\d+")


@dataclass(frozen=True)
class Layer:
    """A layer of a model.

    Attributes:
        index: its place in timm's list; of modules chosen by name the place among them.
        name: of its module.
        shape: of its features for one image.
    """

    index: int
    name: str
    shape: tuple[int, ...]


class LayeredNetwork(nn.Module):
    """A model whose forward hands out the features of some of its layers.

    Attributes:
        layers: in the order of the forward.
    """

    def __init__(
        self,
        net: nn.Module,
        pixels: Pixels,
        layers: tuple[Layer, ...],
        recorded: "tuple[_Recorded, ...] | None",
    ) -> None:
        super().__init__()
        self.net, self.pixels, self.layers = net, pixels, layers
        self._recorded = recorded  # in a tuple, so that they are not registered twice

    def forward(self, images: Tensor, take: Take) -> None:
        """Call `take` with the features of each layer, in order. It may not keep them: the model
        may change them in place.

        Args:
            images: [B, 3, H, W] in [0, 1].
        """
        pixels = self.pixels(images)
        if self._recorded is not None:
            for place, module in enumerate(self._recorded):
                module.take = partial(take, place)
            self.net(pixels)
            return
        features = self.net.forward_intermediates(  # type: ignore[operator]
            pixels,
            indices=[layer.index for layer in self.layers],
            output_fmt="NCHW",
            intermediates_only=True,
        )
        for place in range(len(self.layers)):
            take(place, features.pop(0))  # which frees it


def layered(
    net: nn.Module, pixels: Pixels, image_size: int, chosen: str, what: str, option: str
) -> LayeredNetwork:
    """Choose layers of a model. Named modules are wrapped in it.

    Args:
        net: on the CPU.
        image_size: of the images that it will see.
        chosen: "all" for timm's list, indices into it ("0,2,-1"), or names of modules in which *
            stands for a part of a name ("layer*.*,act1").
        what: the name of the model, for messages.
        option: the option that gives `chosen`, for messages.

    Raises:
        InputError: the model gives no feature maps, or has no such layer.
    """
    items = [item.strip() for item in chosen.split(",")]
    if items == [ALL] or all(_NUMBER.fullmatch(item) for item in items):
        try:
            maps = feature_maps(net, image_size, what)
        except InputError as error:
            raise InputError(f"{error}; or name modules of it with {option}") from error
        shapes = [(each.channels, each.height, each.width) for each in maps]
        names = _stage_names(net, len(maps))
        every = tuple(Layer(i, *each) for i, each in enumerate(zip(names, shapes, strict=True)))
        if items == [ALL]:
            return LayeredNetwork(net, pixels, every, None)
        indices = {_index(int(item), every, what, option) for item in items}
        return LayeredNetwork(net, pixels, tuple(every[i] for i in sorted(indices)), None)
    return _with_modules(net, pixels, image_size, items, what, option)


def _stage_names(net: nn.Module, count: int) -> list[str]:
    """Return the names of the modules whose outputs timm lists, where it says them."""
    info: Any = net.feature_info if hasattr(net, "feature_info") else ()
    if isinstance(info, Iterable):
        names = [str(each["module"]) for each in info if isinstance(each, dict) and each["module"]]
        if len(names) == count:
            return names
    return [f"output {index}" for index in range(count)]


def _index(index: int, layers: tuple[Layer, ...], what: str, option: str) -> int:
    if not -len(layers) <= index < len(layers):
        known = ", ".join(f"{layer.index}: {layer.name}" for layer in layers)
        raise InputError(
            f"{option} {index}: {what} has the layers 0 to {len(layers) - 1} ({known}): give some"
            " of these"
        )
    return index % len(layers)


class _Recorded(nn.Module):
    """A module that shows its output to `take`."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module, self.name = module, name
        self.take: Callable[[Any], None]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.module(*args, **kwargs)
        self.take(output)
        return output

    def __getattr__(self, name: str) -> Any:
        """Return what the model reads of the module that is wrapped, such as its stride."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def _with_modules(
    net: nn.Module, pixels: Pixels, image_size: int, patterns: list[str], what: str, option: str
) -> LayeredNetwork:
    """Wrap the modules of some names, and run the model once to see their order."""
    known = [name for name, _ in net.named_modules() if name]
    names: dict[str, None] = {}
    for pattern in patterns:
        found = [name for name in known if _matches(name, pattern)]
        if not found:
            parts = [name for name in known if name.count(".") == pattern.count(".")]
            raise InputError(
                f"{option} {pattern}: {what} has no module of this name"
                f"{did_you_mean(pattern, parts)}; it has {', '.join(parts[:8])}"
                f"{', ...' if len(parts) > 8 else ''}"
            )
        names |= dict.fromkeys(found)
    recorded = [_wrapped(net, name) for name in sorted(names, key=lambda n: -n.count("."))]
    calls: list[tuple[_Recorded, object]] = []

    def record(module: _Recorded, output: object) -> None:
        calls.append((module, output))

    for module in recorded:
        module.take = partial(record, module)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, image_size, image_size, generator=generator)
    how = f"does not run with {', '.join(patterns)} of {option} recorded"
    with evaluating(net), explained(net, what, how):
        net(images)
    for module in recorded:
        outputs = [output for called, output in calls if called is module]
        if len(outputs) != 1:
            raise InputError(
                f"{option}: {module.name} of {what} runs {len(outputs)} times in a forward, and a"
                " layer runs once: choose other modules"
            )
        (output,) = outputs
        if not isinstance(output, Tensor) or output.dim() < 2 or len(output) != len(images):
            raise InputError(
                f"{option}: {module.name} of {what} does not return a tensor with a row for each"
                " image: choose other modules"
            )
    layers = tuple(
        Layer(index, module.name, tuple(output.shape[1:]))
        for index, (module, output) in enumerate(calls)
        if isinstance(output, Tensor)
    )
    return LayeredNetwork(net, pixels, layers, tuple(module for module, _ in calls))


def _matches(name: str, pattern: str) -> bool:
    """Return whether a module's name fits a pattern, part by part."""
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _wrapped(net: nn.Module, name: str) -> _Recorded:
    """Put a wrapper in the place of a module."""
    parent, _, last = name.rpartition(".")
    owner = net.get_submodule(parent)
    module = _Recorded(owner.get_submodule(last), name)
    setattr(owner, last, module)
    return module
