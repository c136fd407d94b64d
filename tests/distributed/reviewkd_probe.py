"""ReviewKD under ZeRO-3 where every weight is partitioned. Called by driver.py, once a rank."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import timm
import torch
from tiny import sees

from distill.engine import Engine, zero
from distill.losses import FeatureMap, Outputs
from distill.losses.reviewkd import ReviewKD
from distill.models.pixels import Pixels
from distill.models.teacher import Teacher
from distill.student import Averages, Partitioned
from distill.student.learner import Learner
from distill.training.hints import FeatureSource
from distill.training.teachers import place_teacher

_LR = 1e-3


def partitioned(rank: int) -> dict[str, float]:
    """Largest differences between ZeRO-3 and whole models: what the heads give, the teacher's maps,
    and how far one step of SGD moves the weights.
    """
    engine = Engine(precision="fp32", zero_stage=3, channels_last=False)
    options = {"stage3_param_persistence_threshold": 0}
    engine.accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"] |= options
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    teacher, theirs = _teacher()
    with patch.object(zero, "_zero_options", lambda *_: {"stage": 3, **options}):
        frozen = place_teacher(_teacher()[0], engine, placement="zero3")
    assert frozen
    keys = tuple(each.key for each in theirs)
    maps = teacher.outputs(images, keys).read(keys)
    found_maps = frozen.outputs(images, keys).read(keys)
    whole, spread = _learner(theirs), _learner(theirs)
    placement = Partitioned(
        spread,
        lambda each: torch.optim.SGD(each.parameters(), lr=1.0),
        engine,
        clip_grad_norm=None,
        averages=Averages((0.5,)),
        micro_batch_size=8,
        num_forwards=1,
    )
    parameters = [*spread.net.parameters(), *frozen.net.parameters()]
    results = {
        "held": float(sum(parameter.numel() for parameter in parameters)),
        "maps": max(_apart(one, two) for one, two in zip(maps, found_maps, strict=True)),
    }

    def loss(learner: Learner, outputs: Outputs) -> torch.Tensor:
        assert isinstance(learner.heads, ReviewKD)
        batch: Any = SimpleNamespace(epoch=0)
        return outputs.logits.square().mean() + learner.heads.loss(outputs.features, maps, batch)

    expected, found = whole(images, maps), placement.forward(images, found_maps)
    for level, (one, two) in enumerate(zip(expected.features, found.features, strict=True)):
        results[f"level {level}"] = _apart(one, two)
    loss(whole, expected).backward()
    placement.backward(loss(spread, found), more_to_come=False)
    placement.step(_LR)
    state = placement.state()[0]
    if engine.is_main:
        for file, module in (("model", whole.net), ("heads", whole.heads)):
            assert module
            moved = dict(module.named_parameters())
            for name, parameter in moved.items():
                assert parameter.grad is not None
                step = _LR * parameter.grad
                results[f"{file} {name}"] = _apart(state[file][name], parameter.detach() - step)
            largest = max(float(p.grad.abs().max()) for p in moved.values() if p.grad is not None)
            results[f"{file} moved"] = _LR * largest
    engine.close()
    return results


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).detach().abs().max())


def _teacher() -> tuple[Teacher, tuple[FeatureMap, ...]]:
    torch.manual_seed(1)
    net = timm.create_model("cifar_resnet14", num_classes=10)
    levels = FeatureSource(net, 32, "the teacher").levels(None, preactivation=True)
    return Teacher(net, sees(32), num_classes=10), levels


def _learner(theirs: tuple[FeatureMap, ...]) -> Learner:
    torch.manual_seed(0)
    net = timm.create_model("cifar_resnet8", num_classes=10)
    ours = FeatureSource(net, 32, "the student").levels(None, preactivation=True)
    heads = ReviewKD(ours, theirs, warmup_epochs=0)
    keys = tuple(each.key for each in ours)
    return Learner(net, Pixels((0.5,) * 3, (0.5,) * 3), heads, keys).train()
