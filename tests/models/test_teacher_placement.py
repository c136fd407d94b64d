"""Where teachers and students lie, as far as one process can tell. tests/distributed/test_zero.py
has the rest.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from tiny import sees
from torch import nn

from distill.engine import Engine
from distill.errors import InputError
from distill.models.build import checkpoint_activations
from distill.models.feature_hooks import FeatureHooks
from distill.models.functional import functional_forward
from distill.models.teacher import Teacher
from distill.training.build import place_teacher


def teacher(dtype: torch.dtype = torch.float32) -> Teacher:
    net = timm.create_model("test_vit", num_classes=10, patch_size=4, img_size=32)
    return Teacher(net, sees(32), num_classes=10, dtype=dtype, source="test_vit, random weights")


def device_with(free: int, num_processes: int = 1) -> Any:
    """An engine as far as placing a teacher asks it."""
    return SimpleNamespace(
        world_size=num_processes,
        device=torch.device("cpu"),
        free_memory_bytes=lambda: free,
        place=lambda module, partitioned=False: module,
        compile_=lambda module: None,
        partition_frozen=lambda net, offload, dtype: net,
    )


def test_a_teacher_that_outgrows_the_device_is_refused_with_what_would_fit() -> None:
    size = sum(tensor.nbytes for tensor in (*teacher().parameters(), *teacher().buffers()))
    with pytest.raises(
        InputError,
        match=r"teacher: test_vit, random weights takes .* set teacher\.dtype: bf16 or .*zero3",
    ):
        place_teacher(teacher(), device_with(size - 1))
    with pytest.raises(
        InputError, match=r"set teacher\.placement: zero3 on several processes; `distill doctor"
    ):
        place_teacher(teacher(torch.bfloat16), device_with(size // 4))
    assert place_teacher(teacher(), device_with(size)) is not None
    assert (
        place_teacher(teacher(), device_with(size // 2 + 1, num_processes=2), placement="zero3")
        is not None
    )
    with pytest.raises(InputError, match=r"teacher\.dtype: bf16 or teacher\.offload: true"):
        place_teacher(teacher(), device_with(size // 2 - 1, num_processes=2), placement="zero3")
    assert place_teacher(teacher(), device_with(0), placement="zero3", offload=True) is not None
    with pytest.raises(InputError, match=r"teacher\.dtype: bf16 or teacher\.offload: true"):
        place_teacher(teacher(), device_with(0), placement="zero3")


def test_one_process_alone_shards_nothing() -> None:
    """No DeepSpeed, no group: what it would compute is what it computes."""
    engine = Engine(precision="fp32", zero_stage=3)
    try:
        assert not engine.partitioned
        placed = place_teacher(teacher(), engine, placement="zero3")
        assert placed is not None
        assert placed.model is placed.net
    finally:
        engine.close()


def test_features_come_from_the_forward_that_gives_the_logits() -> None:
    one = teacher()
    images = torch.rand(2, 3, 32, 32)
    logits, features = one.features(images, ["blocks.0", "norm"])
    assert torch.equal(logits, one(images))
    x = one.net.norm_pre(
        one.net.patch_drop(one.net._pos_embed(one.net.patch_embed(one.pixels(images))))
    )
    assert torch.equal(features["blocks.0"], one.net.blocks[0](x))
    assert features["norm"].shape == (2, 65, 64)
    assert not any(module._forward_hooks for module in one.net.modules()), (
        "hooks stay no longer than they are asked"
    )


def test_features_are_what_the_layer_put_out_and_not_what_became_of_it() -> None:
    net = timm.create_model("resnet18", num_classes=10, zero_init_last=False).eval()
    with FeatureHooks(net, ["layer1.0.bn2"]) as taps:
        net(torch.rand(1, 3, 64, 64))
    assert taps.outputs["layer1.0.bn2"].min() < 0, "an addition and a ReLU follow in place"


def test_a_compiled_teacher_gives_features_too() -> None:
    one = teacher()
    one.model.compile(backend="eager")
    images = torch.rand(2, 3, 32, 32)
    logits = one(images)
    found, features = one.features(images, ["blocks.0"])
    assert torch.equal(found, logits)
    assert features["blocks.0"].shape == (2, 65, 64)


def test_a_layer_that_no_forward_calls_is_named() -> None:
    with pytest.raises(InputError, match=r"never calls the module 'blocks.0.attn.attn_drop'"):
        teacher().features(torch.rand(1, 3, 32, 32), ["blocks.0.attn.attn_drop"])


@pytest.mark.parametrize("name", ["block.0", ""])
def test_a_feature_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(InputError, match=r"VisionTransformer has no module"):
        FeatureHooks(teacher().net, [name])


def test_a_layer_that_returns_no_tensor_is_refused() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.pair(x)[0]

    net = Outer()
    with pytest.raises(InputError, match="'pair' returns a tuple"), FeatureHooks(net, ["pair"]):
        net(torch.ones(1))


def test_checkpointed_activations_are_computed_twice_and_gradients_stay() -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        net = timm.create_model("test_vit", num_classes=10, patch_size=4, img_size=32)
        if checkpointed:
            checkpoint_activations(net, "test_vit")
        net.blocks[0].register_forward_pre_hook(count)
        net(
            torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        ).square().mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in net.parameters()]))
    assert calls == 1 + 2
    assert torch.equal(*gradients)


class Twice(nn.Module):
    """One module in two places, and one parameter in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.again = self.first
        self.other = nn.Linear(3, 3)
        self.other.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.other(self.again(self.first(x))))  # type: ignore[no-any-return]


def test_a_model_answers_with_other_weights_and_keeps_its_own() -> None:
    torch.manual_seed(0)
    net, other = Twice().eval(), Twice().eval()
    own = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x = torch.randn(2, 3)
    assert torch.equal(functional_forward(net, other.state_dict(), x), other(x))
    assert not torch.equal(net(x), other(x))
    assert all(torch.equal(own[name], tensor) for name, tensor in net.state_dict().items())
    assert net.other.weight is net.first.weight, "what was tied is tied"
