"""Counts what a forward and a backward would do on a GPU, without one: on tensors that have shapes
and no memory.

The tensors are torch's fake ones, said to lie on the CPU, so that autograd, autocast and gradient
checkpointing run as they are. A dispatch mode under them sees each kernel: what it reads and
writes, its FLOPs, and when the memory of a tensor is let go.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from distill.doctor.profiles import Line, Pass, Product, through
from distill.models.pixels import Pixels

# Images of the two forwards that a line is drawn through.
SMALL, LARGE = 8, 32

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes alive and at their peak, memory traffic, FLOPs and kernels of everything computed
    inside.

    Attributes:
        live, peak: bytes of tensors made inside.
        kernels: operations that write memory; views are none.
        other_bytes: what kernels without products read and write.
        products: (FLOPs, bytes) of each product made while `forward` is true.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.kernels = self.other_bytes = 0
        self.products: list[tuple[int, int]] = []
        self.forward = True
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        given = {_storage(tensor) for tensor in inputs}
        made = [tensor for tensor in outputs if _storage(tensor) not in given]
        for tensor in made:
            self._born(tensor)
        in_place = func._schema.is_mutable
        if not (made or in_place) or "empty" in func.__name__:
            return result
        traffic = (
            sum(map(_size, inputs))
            + sum(map(_size, made))
            + (_size(outputs[0]) if in_place and outputs else 0)
        )
        self.kernels += 1
        count = flop_registry.get(func._overloadpacket)
        if count is None:
            self.other_bytes += traffic
        elif self.forward:
            self.products.append((int(count(*args, **kwargs, out_val=result)), traffic))
        return result

    def _born(self, tensor: Tensor) -> None:
        key, storage = _storage(tensor), tensor.untyped_storage()
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self.live += self._alive[key]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.live -= self._alive.pop(key)


def _storage(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key


def _size(tensor: Tensor) -> int:
    """Bytes that reading the tensor fetches: an expanded one is small."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class _AsOnCuda(TorchFunctionMode):
    """Where autocast on CUDA computes in float32 and autocast on the CPU does not, and attention as
    CUDA's kernels do it.

    With a bias that learns (BEiT's relative positions) the CPU falls back on writing the attention
    matrix to memory; CUDA's memory-efficient kernel does not.
    """

    _WIDENED = frozenset(
        (
            "layer_norm",
            "group_norm",
            "softmax",
            "log_softmax",
            "norm",
            "vector_norm",
            "pow",
            "exp",
            "log",
            "cumsum",
            "sum",
            "prod",
        )
    )

    def __init__(self, half: bool) -> None:
        super().__init__()
        self._half = half

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and kwargs.get("attn_mask") is not None:
            kwargs["attn_mask"] = kwargs["attn_mask"].detach()
        name = getattr(func, "__name__", "")
        if (
            self._half
            and name in self._WIDENED
            and args
            and isinstance(args[0], Tensor)
            and args[0].is_floating_point()
        ):
            args = (args[0].float(), *args[1:])
        return func(*args, **kwargs)


@contextmanager
def fake(model: nn.Module, dtype: torch.dtype = torch.float32) -> Iterator[nn.Module]:
    """The model with fake tensors in place of its own (it may be on "meta"), inside a mode that
    makes all new ones fake.

    `dtype` is that of its weights, as a teacher is cast: BatchNorm's stay as they are, and so do
    the means of pixels.
    """
    with FakeTensorMode():
        made: dict[int, Tensor] = {}

        def like(tensor: Tensor, module: nn.Module) -> Tensor:
            wide = isinstance(module, _BatchNorm | Pixels) or not tensor.is_floating_point()
            if id(tensor) not in made:  # tied weights stay one
                made[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype if wide else dtype)
            return made[id(tensor)]

        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    twin = like(parameter, module)
                    if not isinstance(twin, nn.Parameter):
                        twin = made[id(parameter)] = nn.Parameter(
                            twin, requires_grad=parameter.requires_grad
                        )
                    module._parameters[name] = twin
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = like(buffer, module)
        yield model


def autocast(precision: str) -> AbstractContextManager[Any]:
    """Autocast as on the CPU; nothing for "fp32"."""
    stack = ExitStack()
    if precision in HALVES:
        stack.enter_context(torch.autocast("cpu", dtype=HALVES[precision]))
    return stack


def forward_pass(model: Callable[[Tensor], Tensor], image_size: int) -> tuple[Pass, Line]:
    """A forward without gradients of images [b, 3, S, S]; returns it and its peak working bytes.
    Inside `fake`.
    """
    meters: list[Meter] = []
    for count in (SMALL, LARGE):
        images = torch.empty(count, 3, image_size, image_size)
        with torch.no_grad(), _AsOnCuda(half=False), Meter() as meter:
            model(images).float()
        meters.append(meter)
    return _pass(meters, times=1), _line([meter.peak for meter in meters])


def training_pass(
    model: nn.Module, image_size: int, precision: str, *, checkpointing: bool
) -> tuple[Pass, Line, Line]:
    """Forward and backward of a model that learns: the pass, bytes kept between them, and peak
    bytes. Inside `fake`.

    Gradients exist beforehand, as DDP's buckets do. The loss is a KL divergence, which is what most
    recipes add to the logits.
    """
    meters, kept = [], []
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    for count in (SMALL, LARGE):
        images = torch.empty(count, 3, image_size, image_size)
        with (
            _AsOnCuda(half=precision in HALVES),
            Meter() as meter,
        ):  # around the backward too: it may compute layers again
            with autocast(precision):
                logits = model(images)
            kept.append(meter.live)
            meter.forward = False
            loss = F.kl_div(
                logits.float().log_softmax(-1), torch.empty(logits.shape), reduction="batchmean"
            )
            del logits
            # What loss.backward() calls. It is a torch function itself, so that none called inside
            # it would reach a mode: not those of layers that are computed again, which would then
            # differ from what they were in the forward.
            torch.autograd.Variable._execution_engine.run_backward(
                (loss,),
                (torch.ones_like(loss),),
                False,
                False,
                (),
                allow_unreachable=True,
                accumulate_grad=True,
            )
        meters.append(meter)
    return (
        _pass(meters, times=4 if checkpointing else 3),
        _line(kept),
        _line([meter.peak for meter in meters]),
    )


def _line(values: list[int]) -> Line:
    return through(values[0], values[1], SMALL, LARGE)


def _pass(meters: list[Meter], times: int) -> Pass:
    small, large = meters
    assert len(small.products) == len(large.products), "a forward whose kernels depend on the batch"
    products = tuple(
        Product(_line([few[0], many[0]]), _line([few[1], many[1]]))
        for few, many in zip(small.products, large.products, strict=True)
    )
    return Pass(products, times, _line([small.other_bytes, large.other_bytes]), large.kernels)


def held(model: nn.Module) -> tuple[int, int, int]:
    """(bytes of parameters, bytes of buffers, bytes of the one module that holds most itself), tied
    weights counted once.
    """
    parameters = sum(_bytes({id(p): p for p in model.parameters()}))
    buffers = sum(_bytes({id(b): b for b in model.buffers()}))
    largest = max(
        (sum(_bytes(dict(enumerate(m.parameters(recurse=False))))) for m in model.modules()),
        default=0,
    )
    return parameters, buffers, largest


def _bytes(tensors: Mapping[int, Tensor]) -> list[int]:
    return [tensor.numel() * tensor.element_size() for tensor in tensors.values()]
