"""Optimizers: what decays, what clips (nothing), the learning rate against timm's and torch's,
state that continues bitwise.
"""

import copy
import json

import pytest
import timm.optim
import torch
from safetensors.torch import load, save
from timm.optim import get_optimizer_info
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler
from torch import nn

from distill.errors import InputError
from distill.recipe import schema
from distill.student.optimizer import (
    build_optimizer,
    load_state,
    lr_at,
    resolve_schedule,
    set_lr,
    split_state,
)


class Net(nn.Module):
    """Convolution, norm, a token without decay, a frozen and a tied parameter."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 48, 3)
        self.norm = nn.BatchNorm2d(48)
        self.token = nn.Parameter(torch.randn(1, 1, 48))
        self.head = nn.Linear(48, 10)
        self.tied = self.head
        self.frozen = nn.Parameter(torch.randn(3, 3), requires_grad=False)

    def no_weight_decay(self):
        return {"tok*"}

    def group_matcher(self, coarse):
        return {"stem": r"conv|norm|token", "blocks": [(r"head", None)]}

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)) + self.token[0])


@pytest.fixture(autouse=True)
def _one_thread():
    """Layers this small only wait for other threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def spec(name="sgd", lr=0.1, **keys):
    return schema.OptimizerSpec(name=name, lr=lr, **keys)


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return Net().to(dtype=dtype, memory_format=torch.channels_last)


def train(module, optimizer, steps):
    for step in steps:
        set_lr(optimizer, 0.01 / (step + 1))
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(4, 16, 8, 8, generator=generator).to(module.conv.weight.dtype)
        module(x.contiguous(memory_format=torch.channels_last)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def supported():
    known = [(name, get_optimizer_info(name)) for name in timm.optim.list_optimizers()]
    return [
        n
        for n, info in known
        if not isinstance(info.opt_class, str) and "kron" not in n and not info.second_order
    ]


def one_of_each_class():
    by_length = sorted(supported(), key=len, reverse=True)
    return list({get_optimizer_info(name).opt_class: name for name in by_length}.values())


def decay_by_name(module, optimizer):
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {
        names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }


# ---- groups and arguments ------------------------------------------------------------------------


def test_norm_bias_and_named_parameters_do_not_decay():
    module = net()
    decays = decay_by_name(module, build_optimizer(module, spec(weight_decay=0.3)))
    assert {name for name, decay in decays.items() if decay == 0.3} == {
        "conv.weight",
        "head.weight",
    }
    assert decays.keys() == {name for name, p in module.named_parameters() if p.requires_grad}


def test_decay_norm_and_bias_takes_all():
    module = net()
    decays = decay_by_name(
        module, build_optimizer(module, spec(weight_decay=0.3, decay_norm_and_bias=True))
    )
    assert set(decays.values()) == {0.3}
    assert "frozen" not in decays


def test_unknown_names_and_arguments_name_the_nearest():
    with pytest.raises(
        InputError, match=r"students\.a\.optimizer\.name: timm has no optimizer 'lambb'.*'lamb'"
    ):
        build_optimizer(net(), spec("lambb"), key="students.a.optimizer")
    with pytest.raises(
        InputError, match=r"optimizer\.args\.beta: adamw takes no such argument.*'betas'"
    ):
        build_optimizer(net(), spec("adamw", args={"beta": [0.9, 0.99]}))
    # timm itself drops this one without a word
    with pytest.raises(
        InputError, match=r"optimizer\.args\.betas: sgd takes no such argument.*nesterov"
    ):
        build_optimizer(net(), spec("sgd", args={"betas": [0.9, 0.99]}))


@pytest.mark.parametrize(
    ("argument", "own"),
    [("lr", "lr"), ("weight_decay", "weight_decay"), ("max_grad_norm", "clip_grad_norm")],
)
def test_arguments_that_have_their_own_key(argument, own):
    with pytest.raises(
        InputError, match=rf"args\.{argument}: write students\.\*\.optimizer\.{own} instead"
    ):
        build_optimizer(net(), spec("lamb", args={argument: 1.0}))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("adamw", {"betas": [0.9, 1.5]}),  # refused by the constructor
        ("adamw", {"eps": "small"}),
        ("lamb", {"betas": [0.9]}),  # refused only by the first step
        ("adan", {"betas": [0.9, 0.99]}),
    ],
)
def test_bad_values_are_refused_before_training(name, args):
    with pytest.raises(InputError, match=rf"students\.\*\.optimizer\.args: {name} refuses"):
        build_optimizer(net(), spec(name, args=args))


@pytest.mark.parametrize("name", ["fusedlamb", "bnbadamw8bit", "adahessian", "kron"])
def test_optimizers_that_a_run_cannot_keep_its_word_with(name):
    with pytest.raises(InputError, match=rf"optimizer\.name: {name}"):
        build_optimizer(net(), spec(name))


def test_arguments_arrive_and_draw_no_random_numbers():
    module = net()
    before = torch.get_rng_state()
    optimizer = build_optimizer(
        module, spec("adamw", lr=0.5, args={"betas": [0.8, 0.9], "eps": 1e-3})
    )
    assert torch.equal(before, torch.get_rng_state())
    assert {(g["betas"], g["eps"], g["lr"]) for g in optimizer.param_groups} == {
        ((0.8, 0.9), 1e-3, 0.5)
    }
    assert (
        build_optimizer(module, spec("momentum", momentum=0.7)).param_groups[0]["momentum"] == 0.7
    )


@pytest.mark.parametrize("name", supported())
def test_no_optimizer_clips_gradients_unasked(name):
    optimizer = build_optimizer(net(), spec(name))
    assert optimizer.defaults.get("max_grad_norm") is None
    assert all(group.get("max_grad_norm") is None for group in optimizer.param_groups)


def test_lamb_is_lamb_without_clipping():
    """Against LAMB's equations in float64, with gradients whose norm jumps past 1: clipped, they
    would mix otherwise.
    """
    torch.manual_seed(0)
    module = nn.Linear(8, 6, bias=False)
    weight, m, v = module.weight.detach().double(), 0.0, 0.0
    optimizer = build_optimizer(module, spec("lamb", lr=0.02, weight_decay=0.05))
    for t, scale in enumerate((0.1, 50.0, 3.0), start=1):
        gradient = torch.randn(6, 8) * scale
        module.weight.grad = gradient.clone()
        optimizer.step()
        m = 0.9 * m + 0.1 * gradient.double()
        v = 0.999 * v + 0.001 * gradient.double() ** 2
        update = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-6) + 0.05 * weight
        weight = weight - 0.02 * weight.norm() / update.norm() * update
        torch.testing.assert_close(module.weight.detach().double(), weight, rtol=1e-5, atol=1e-6)


# ---- learning rate -------------------------------------------------------------------------------

TOTAL, WARMUP = 200, 30


def timm_lrs(make, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=5e-3)
    scheduler = make(optimizer)
    lrs = []
    for step in steps:
        scheduler.step_update(step)
        lrs.append(optimizer.param_groups[0]["lr"])
    return lrs


def our_lrs(steps, **keys):
    values = {
        "base_lr": 5e-3,
        "total_steps": TOTAL,
        "warmup_steps": WARMUP,
        "warmup_lr": 1e-6,
        **keys,
    }
    return [lr_at(step, **values) for step in steps]


def test_cosine_is_timms():
    steps = range(TOTAL + 20)
    timm = timm_lrs(
        lambda o: CosineLRScheduler(
            o,
            TOTAL,
            lr_min=1e-5,
            warmup_t=WARMUP,
            warmup_lr_init=1e-6,
            warmup_prefix=False,
            t_in_epochs=False,
        ),
        steps,
    )
    assert our_lrs(steps, name="cosine", min_lr=1e-5) == pytest.approx(timm, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize(("name", "power"), [("linear", 1.0), ("polynomial", 2.5)])
def test_polynomials_are_timms(name, power):
    steps = range(TOTAL + 20)
    timm = timm_lrs(
        lambda o: PolyLRScheduler(
            o,
            TOTAL,
            power=power,
            lr_min=1e-5,
            warmup_t=WARMUP,
            warmup_lr_init=1e-6,
            t_in_epochs=False,
        ),
        steps,
    )
    assert our_lrs(steps, name=name, power=power, min_lr=1e-5) == pytest.approx(
        timm, rel=1e-9, abs=1e-18
    )


def test_steps_are_torchs_and_timms_one_step_later():
    steps, milestones = range(TOTAL), (60, 120, 150)
    ours = our_lrs(steps, name="step", milestones_steps=milestones, decay_factor=0.2)
    timm = timm_lrs(
        lambda o: MultiStepLRScheduler(
            o,
            [m + 1 for m in milestones],
            0.2,
            WARMUP,
            1e-6,
            warmup_prefix=False,
            t_in_epochs=False,
        ),
        steps,
    )
    assert ours == pytest.approx(timm, rel=1e-12)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=5e-3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(milestones), gamma=0.2)
    torchs = []
    for _ in steps:
        torchs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert ours[WARMUP:] == pytest.approx(torchs[WARMUP:], rel=1e-12)


def test_a_floor_holds_the_steps_and_constant_is_constant():
    assert our_lrs([199], name="step", milestones_steps=(50, 100), min_lr=1e-3) == [1e-3]
    assert our_lrs([0, 29, 30, 500], name="constant") == pytest.approx(
        [1e-6, 1e-6 + 29 * (5e-3 - 1e-6) / 30, 5e-3, 5e-3]
    )


def schedule(**keys):
    return schema.ScheduleSpec.model_validate(keys)


def test_durations_become_steps():
    keys = {"total_steps": 1000, "steps_per_epoch": 100, "batch_size_global": 64}
    lr = resolve_schedule(schedule(warmup="2 epochs", warmup_lr=0.1), 0.5, **keys)
    assert [lr(0), lr(100)] == pytest.approx([0.1, 0.3])
    assert lr(200) == lr_at(200, name="cosine", base_lr=0.5, total_steps=1000)
    assert lr(199) == pytest.approx(0.498)
    step = resolve_schedule(
        schedule(name="step", milestones=["32000 samples", "600 iterations"]), 0.5, **keys
    )
    assert [step(499), step(500), step(600)] == pytest.approx([0.5, 0.05, 0.005])


def test_schedules_that_cannot_be():
    keys = {"total_steps": 500, "steps_per_epoch": 100, "batch_size_global": 64}
    with pytest.raises(
        InputError,
        match=r"students\.a\.schedule\.warmup: 5 epochs is 500 steps and the whole budget is 500",
    ):
        resolve_schedule(schedule(warmup="5 epochs"), 0.5, **keys, key="students.a.schedule")
    with pytest.raises(InputError, match=r"schedule\.min_lr: 0\.7 lies above optimizer\.lr 0\.5"):
        resolve_schedule(schedule(min_lr=0.7), 0.5, **keys)


def test_set_lr_keeps_layer_scales_and_plain_floats():
    module = net()
    optimizer = build_optimizer(module, spec("adamw", lr=0.4, args={"layer_decay": 0.5}))
    scales = [group["lr_scale"] for group in optimizer.param_groups]
    assert len(set(scales)) > 1
    set_lr(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2 * scale for scale in scales]
    assert all(type(group["lr"]) is float for group in optimizer.param_groups)


# ---- state ---------------------------------------------------------------------------------------


def resumed(module, optimizer, build):
    """The same module and optimizer after a journey through a file."""
    tensors, values = split_state(optimizer, module)
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    tensors, values = load(save(tensors)), json.loads(json.dumps(values))
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.manual_seed(1)
    other = Net().to(dtype=module.conv.weight.dtype, memory_format=torch.channels_last)
    other.load_state_dict(weights)
    new = build(other)
    load_state(new, other, tensors, values)
    return other, new


@pytest.mark.parametrize("name", one_of_each_class())
def test_a_resumed_optimizer_continues_bitwise(name):
    def build(module):
        return build_optimizer(module, spec(name, lr=0.01, weight_decay=0.05))

    module = net()
    optimizer = build(module)
    train(module, optimizer, range(4))
    other, new = resumed(module, optimizer, build)
    train(module, optimizer, range(4, 8))
    train(other, new, range(4, 8))
    assert all(
        torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", ["momentum", "adamw", "lamb"])
def test_a_resumed_optimizer_continues_bitwise_in_bf16(name):
    def build(module):
        return build_optimizer(module, spec(name, lr=0.01, weight_decay=0.05))

    module = net(torch.bfloat16)
    optimizer = build(module)
    train(module, optimizer, range(3))
    other, new = resumed(module, optimizer, build)
    for parameter, state in new.state.items():
        assert all(
            v.stride() == parameter.stride()
            for v in state.values()
            if torch.is_tensor(v) and v.ndim
        )
    train(module, optimizer, range(3, 6))
    train(other, new, range(3, 6))
    assert all(
        torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True)
    )


def test_state_is_keyed_by_parameter_and_loading_does_not_alias():
    module = net()
    optimizer = build_optimizer(module, spec("lamb"))
    train(module, optimizer, range(2))
    tensors, values = split_state(optimizer, module)
    assert tensors["head.weight/exp_avg"].shape == (10, 48)
    assert tensors["param_groups[0]/step"].item() == 2
    assert "frozen/exp_avg" not in tensors
    kept = copy.deepcopy(tensors)
    other = net()
    new = build_optimizer(other, spec("lamb"))
    load_state(new, other, tensors, values)
    train(other, new, range(2))
    assert all(torch.equal(kept[name], tensors[name]) for name in kept)
    assert new.param_groups[0]["step"].item() == 4


def test_state_of_another_optimizer_or_model_is_refused():
    module = net()
    optimizer = build_optimizer(module, spec("lamb"))
    train(module, optimizer, range(1))
    tensors, values = split_state(optimizer, module)
    with pytest.raises(InputError, match=r"is of Lamb over .* has AdamW"):
        load_state(build_optimizer(module, spec("adamw")), module, tensors, values)
    module.token.requires_grad_(False)
    with pytest.raises(InputError, match="first that differ: token"):
        load_state(build_optimizer(module, spec("lamb")), module, tensors, values)
