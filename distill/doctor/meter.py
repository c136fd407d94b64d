"""Counts the work of a forward and a backward pass on a GPU, without a GPU: on fake tensors, which
have shapes but no memory.

The fake tensors of torch have the CPU as device, so that autograd, autocast and gradient
checkpointing run unchanged. A dispatch mode below them sees each kernel: the bytes that it reads
and writes, its FLOPs, and when the memory of a tensor is freed.
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

# The batch sizes of the two forwards from which a linear function is fitted.
SMALL, LARGE = 8, 32

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts memory, memory traffic, FLOPs and kernels of the computations in its context.

    Attributes:
        live, peak: current and largest number of bytes in new tensors.
        kernels: number of operations that write memory, so without views.
        other_bytes: bytes read and written by kernels that are not products.
        products: (FLOPs, bytes) of each product while `forward` is true.
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
            self._track(tensor)
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

    def _track(self, tensor: Tensor) -> None:
        key, storage = _storage(tensor), tensor.untyped_storage()
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self.live += self._alive[key]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.live -= self._alive.pop(key)


def _storage(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key


def _size(tensor: Tensor) -> int:
    """The bytes that a kernel reads for a tensor; few for an expanded one."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class _AsOnCuda(TorchFunctionMode):
    """Makes the CPU use float32 where autocast on CUDA does, and compute attention like CUDA.

    With a bias that learns (relative positions of BEiT), the CPU writes the attention matrix to
    memory; the memory-efficient kernel of CUDA does not.
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
    """Replaces the tensors of a model, which may be on "meta", by fake ones, in a context in which
    all new tensors are fake.

    Args:
        dtype: of the weights. Those of BatchNorm and of the pixel statistics keep their dtype.
    """
    with FakeTensorMode():
        made: dict[int, Tensor] = {}

        def like(tensor: Tensor, module: nn.Module) -> Tensor:
            keeps_dtype = isinstance(module, _BatchNorm | Pixels) or not tensor.is_floating_point()
            if id(tensor) not in made:  # tied weights stay one
                made[id(tensor)] = torch.empty(
                    tensor.shape, dtype=tensor.dtype if keeps_dtype else dtype
                )
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
    """Autocast on the CPU; nothing for "fp32"."""
    stack = ExitStack()
    if precision in HALVES:
        stack.enter_context(torch.autocast("cpu", dtype=HALVES[precision]))
    return stack


def forward_pass(model: Callable[[Tensor], Tensor], image_size: int) -> tuple[Pass, Line]:
    """Counts a forward without gradients of images [b, 3, S, S], in the context of `fake`.

    Returns:
        The pass, and its peak bytes.
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
    """Counts the forward and backward of a student, in the context of `fake`.

    Gradients exist before, like the buckets of DDP. The loss is a KL divergence, as in most
    recipes.

    Returns:
        The pass, the bytes that the forward leaves for the backward, and the peak bytes.
    """
    meters, kept = [], []
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    for count in (SMALL, LARGE):
        images = torch.empty(count, 3, image_size, image_size)
        # Around the backward too: with checkpointing it computes layers again.
        with _AsOnCuda(half=precision in HALVES), Meter() as meter:
            with autocast(precision):
                logits = model(images)
            kept.append(meter.live)
            meter.forward = False
            loss = F.kl_div(
                logits.float().log_softmax(-1), torch.empty(logits.shape), reduction="batchmean"
            )
            del logits
            # This is what loss.backward() calls. loss.backward() is a torch function itself, so a
            # mode would not see the functions in it, and layers that are computed again would
            # differ from the forward.
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
    """The bytes of all parameters, of all buffers, and of the parameters of the largest single
    module. Tied weights count once.
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
