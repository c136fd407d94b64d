"""Weight averages: float32 whatever the training precision, buffers included, swapped in and out
without a trace.
"""

import pytest
import torch
from torch import nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from distill.student.ema import COUNTER, Ema


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 8, bias=False)
        self.tied = self.head
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tied(self.head(self.norm(self.conv(x)).mean((2, 3))))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().to(memory_format=torch.channels_last)


def perturb(module: nn.Module, seed: int) -> None:
    """As a training step would: other weights, other BatchNorm statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    module(torch.randn(4, 3, 6, 6, generator=generator))


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_its_formula(warmup: bool) -> None:
    module = net()
    ema = Ema(module, 0.9, warmup)
    expected = {name: tensor.double() for name, tensor in snapshot(module).items()}
    for t in range(5):
        perturb(module, t)
        ema.update(module)
        decay = min(0.9, (1 + t) / (10 + t)) if warmup else 0.9
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
            else:
                expected[name] = tensor.double()
    weights = ema.weights()
    assert weights.keys() == module.state_dict().keys()
    assert "norm.running_var" in weights
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert weights["norm.num_batches_tracked"].dtype == torch.int64
    assert weights["mask"].dtype == torch.bool


def test_a_bf16_module_moves_its_average_at_a_high_decay() -> None:
    module = nn.Linear(4, 4).bfloat16()
    nn.init.ones_(module.weight)
    ema = Ema(module, 0.9999)
    nn.init.constant_(module.weight, 2.0)
    for _ in range(100):
        ema.update(module)
    weight = ema.weights()["weight"]
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, torch.full((4, 4), 2 - 0.9999**100), rtol=1e-5, atol=0)


def test_the_average_starts_as_a_copy_and_does_not_alias() -> None:
    module = net()
    before = snapshot(module)
    ema = Ema(module, 0.5)
    perturb(module, 0)
    assert all(torch.equal(before[name], tensor) for name, tensor in ema.weights().items())


def test_tied_weights_are_averaged_once() -> None:
    module = net()
    ema = Ema(module, 0.5)
    start = module.head.weight.detach().clone()
    perturb(module, 0)
    ema.update(module)
    weights = ema.weights()
    assert weights["tied.weight"] is weights["head.weight"]
    torch.testing.assert_close(weights["head.weight"], (start + module.head.weight.detach()) / 2)


def test_a_loaded_average_continues_bitwise() -> None:
    module = net()
    ema = Ema(module, 0.99, warmup=True)
    for t in range(3):
        perturb(module, t)
        ema.update(module)
    saved = {name: tensor.clone().contiguous() for name, tensor in ema.state_dict().items()}
    other = Ema(net(seed=1), 0.99, warmup=True)
    other.load_state_dict(saved)
    for t in range(3, 6):
        perturb(module, t)
        ema.update(module)
        other.update(module)
    assert all(torch.equal(tensor, other.weights()[name]) for name, tensor in ema.weights().items())
    net(seed=2).load_state_dict(other.weights())  # strict: the names are those of the module


def test_an_average_of_another_model_is_refused_and_changes_nothing() -> None:
    ema = Ema(net(), 0.9)
    before = {name: tensor.clone() for name, tensor in ema.weights().items()}
    other = {**Ema(net(seed=1), 0.9).state_dict(), COUNTER: torch.tensor(7)}
    with pytest.raises(ValueError, match=r"1 names differ, first mask"):
        ema.load_state_dict({name: tensor for name, tensor in other.items() if name != "mask"})
    with pytest.raises(ValueError, match=r"head.weight is \(9,\), not \(8, 8\)"):
        ema.load_state_dict({**other, "head.weight": torch.zeros(9)})
    assert ema.num_updates == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in ema.weights().items())


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self,
        function: OpOverload,
        types: tuple[type, ...],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        self.names.append(function._schema.name)
        return function(*args, **(kwargs or {}))


def test_an_update_never_asks_the_device_and_its_operations_do_not_grow_with_the_model() -> None:
    modules = [nn.Sequential(*(nn.Linear(3, 3) for _ in range(layers))) for layers in (2, 20)]
    counts = []
    for module in modules:
        ema = Ema(module, 0.99, warmup=True)
        with Operations() as operations:
            ema.update(module)
        assert "aten::_local_scalar_dense" not in operations.names
        counts.append(
            len([name for name in operations.names if name not in ("aten::detach", "aten::alias")])
        )
    assert counts[0] == counts[1] <= 3


@pytest.mark.gpu
def test_an_update_does_not_wait_for_the_gpu() -> None:
    module = net().cuda().bfloat16()
    ema = Ema(module, 0.99, warmup=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ema.update(module)
    finally:
        torch.cuda.set_sync_debug_mode("default")
