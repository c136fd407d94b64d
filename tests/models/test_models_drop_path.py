"""Drop path: timm's rates and scaling, with draws that belong to (key, layer, position) and to
nothing else.
"""

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn

from distill import rng
from distill.errors import InputError
from distill.models.drop_path import DropPathKeys, PositionDropPath, replace_drop_path

KEY = rng.hash64(7, "drop path", 1)


class Branches(nn.Module):
    """Two layers whose outputs show the masks."""

    def __init__(self, rates: tuple[float, ...], scale_by_keep: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DropPath(rate, scale_by_keep) for rate in rates)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([layer(x) for layer in self.layers])


def masks(
    model: nn.Module, keys: DropPathKeys, positions: torch.Tensor, key: int = KEY
) -> torch.Tensor:
    keys.set(key, positions)
    return model(torch.ones(len(positions), 2))[..., 0]  # [L, B]


def test_rate_and_scale_are_timms() -> None:
    model = Branches((0.1, 0.5, 0.9))
    found = masks(model, DropPathKeys(model), torch.arange(40_000))
    for row, rate in zip(found, (0.1, 0.5, 0.9), strict=True):
        assert (row == 0).float().mean().item() == pytest.approx(rate, abs=0.01)
        assert row.max().item() == pytest.approx(1 / (1 - rate))
        assert row.unique().numel() == 2
    dropped = found == 0
    both = (dropped[0] & dropped[1]).float().mean().item()
    assert both == pytest.approx(0.1 * 0.5, abs=0.005)  # layers are independent


def test_without_scaling_and_at_rate_one() -> None:
    model = Branches((0.5,), scale_by_keep=False)
    assert masks(model, DropPathKeys(model), torch.arange(100)).unique().tolist() == [0.0, 1.0]
    model = Branches((1.0,))
    assert masks(model, DropPathKeys(model), torch.arange(100)).unique().tolist() == [0.0]


def test_draws_are_the_stated_function_of_key_layer_and_position() -> None:
    model = Branches((0.3, 0.3))
    positions = torch.tensor([0, 5, 2**40, 123_456_789])
    found = masks(model, DropPathKeys(model), positions)
    for layer in range(2):
        for i, position in enumerate(positions.tolist()):
            uniform = (rng.hash64(7, "drop path", 1, layer, position) >> 40) * 2.0**-24
            assert (found[layer, i] == 0) == (uniform >= 0.7)


def test_same_sample_same_mask_however_the_batch_is_split() -> None:
    model = Branches((0.5, 0.2))
    keys = DropPathKeys(model)
    whole = masks(model, keys, torch.arange(64))
    shuffled = torch.randperm(64)
    assert torch.equal(masks(model, keys, shuffled), whole[:, shuffled])
    assert torch.equal(
        torch.cat([masks(model, keys, part) for part in torch.arange(64).split(24)], 1), whole
    )
    torch.manual_seed(1)
    assert torch.equal(masks(model, keys, torch.arange(64)), whole)
    assert not torch.equal(masks(model, keys, torch.arange(64, 128)), whole)
    assert not torch.equal(masks(model, keys, torch.arange(64), key=KEY + 1), whole)


@pytest.mark.parametrize("name", ["cifar_resnet14", "test_vit", "test_convnext", "test_resnet"])
def test_real_models_train_the_same_in_micro_batches_and_leave_the_generator_alone(
    name: str,
) -> None:
    size = {"img_size": 64} if name == "test_vit" else {}
    model = timm.create_model(name, num_classes=5, drop_path_rate=0.8, **size).train()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()  # its statistics look at the batch, which is not what is tested
            nn.init.ones_(m.weight)  # timm starts some branches at zero
    keys = DropPathKeys(model)
    assert keys.layers
    assert not any(isinstance(m, DropPath) and m.drop_prob for m in model.modules())
    x, positions = torch.randn(12, 3, 64, 64), torch.arange(100, 112)
    before = torch.get_rng_state()
    keys.set(KEY, positions)
    whole = model(x)
    assert torch.equal(torch.get_rng_state(), before)
    parts = []
    for part in (slice(0, 4), slice(4, 12)):
        keys.set(KEY, positions[part])
        parts.append(model(x[part]))
    keys.set(KEY + 1, positions)
    other = model(x)
    # Layer scale keeps untrained branches small, so what another key changes is the yardstick.
    assert (torch.cat(parts) - whole).norm() < 0.01 * (other - whole).norm()


def test_eval_is_the_identity_and_layers_keep_their_mode() -> None:
    model = timm.create_model("cifar_resnet14", drop_path_rate=0.5).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    layers = replace_drop_path(model)
    assert [layer.drop_prob for layer in layers] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert torch.equal(model(x), expected)
    assert set(model.state_dict()) == set(timm.create_model("cifar_resnet14").state_dict())


def test_a_layer_used_under_two_names_stays_one_layer() -> None:
    shared = DropPath(0.5)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    assert len(replace_drop_path(model)) == 1
    assert model["a"] is model["b"][0]
    assert isinstance(model["a"], PositionDropPath)


def test_forgotten_or_stale_positions_are_caught() -> None:
    model = Branches((0.5,))
    keys = DropPathKeys(model)
    with pytest.raises(AssertionError, match="before each training forward"):
        model(torch.ones(4, 2))
    keys.set(KEY, torch.arange(3))
    with pytest.raises(InputError, match="4 rows where the batch has 3 samples"):
        model(torch.ones(4, 2))


def test_a_model_without_drop_path_needs_nothing() -> None:
    keys = DropPathKeys(timm.create_model("cifar_resnet8"))
    keys.set(KEY, torch.arange(3))
    assert keys.layers == []


def test_gradients_follow_the_mask_and_dtype_is_kept() -> None:
    model = Branches((0.5,))
    keys = DropPathKeys(model)
    keys.set(KEY, torch.arange(32))
    x = torch.ones(32, 2, dtype=torch.bfloat16, requires_grad=True)
    out = model(x)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert torch.equal(x.grad, out[0].detach())


def test_compiled_steps_do_not_recompile_and_see_new_masks() -> None:
    import torch._dynamo

    model = Branches((0.5, 0.5))
    keys = DropPathKeys(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    x = torch.ones(16, 2)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(3):
            keys.set(KEY, torch.arange(16) + 16 * step)
            assert torch.equal(compiled(x), model(x))
