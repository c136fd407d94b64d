"""The outputs of layers inside a model, recorded by hooks."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from distill.errors import InputError, did_you_mean


class FeatureHooks:
    """A context in which each forward of `model` stores in `outputs` a copy of what the named
    modules returned last.

    A copy, since later layers may change it in place. Compiled models run eagerly in it, since they
    call no hooks.

    Raises:
        InputError: the model has no such module.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        modules = dict(model.named_modules())
        for name in names:
            if name not in modules or not name:
                raise InputError(
                    f"{type(model).__name__} has no module {name!r}{did_you_mean(name, modules)}; "
                    f"its outer ones are {', '.join(child for child, _ in model.named_children())}"
                )
        self._modules = {name: modules[name] for name in names}
        self._handles: list[Any] = []
        self.outputs: dict[str, Tensor] = {}

    def __enter__(self) -> Self:
        self._eager = torch.compiler.set_stance("force_eager")
        self._eager.__enter__()
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._store(name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._eager.__exit__(None, None, None)
        if error is None and (
            unused := [name for name in self._modules if name not in self.outputs]
        ):
            raise InputError(
                f"the forward never calls the module {unused[0]!r}: choose one that it calls"
            )

    def _store(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise InputError(
                    f"the module {name!r} returns a {type(output).__name__}, not a tensor:"
                    " choose one inside it"
                )
            self.outputs[name] = output.clone()

        return hook
