"""What each of two ranks has of a partitioned teacher and student. Called by driver.py, once a
rank.
"""

from typing import Any
from unittest.mock import patch

import timm
import torch
from tiny import sees
from torch import nn

from distill.engine import Engine, zero
from distill.losses import FeatureKey, Outputs
from distill.losses.fitnet import FitNet
from distill.models.pixels import Pixels
from distill.models.teacher import Teacher
from distill.student import Averages, Partitioned
from distill.student.learner import Learner
from distill.training.teachers import place_teacher

IMAGE_SIZE = 64
# The paper's two large teachers, their widths kept small enough for two cores and their depths
# reduced.
TEACHERS = {
    "beitv2": (
        "beitv2_base_patch16_224",
        {"depth": 2, "img_size": IMAGE_SIZE},
        (0, 1),
    ),
    "convnext": (
        "convnext_xlarge",
        {"depths": (1, 1, 1, 1), "dims": (32, 64, 128, 256)},
        (1, 3),
    ),
    "batch norm": ("cifar_resnet8", {}, (0, 2)),
    "scalars": ("test_nfnet", {}, (1,)),
}


_LINEAR = (
    nn.functional.linear
)  # DeepSpeed puts its own in torch's place, for the whole process, unless told not to


def _teacher(name: str, dtype: torch.dtype) -> Teacher:
    torch.manual_seed(0)
    model_name, arguments, _ = TEACHERS[name]
    model = timm.create_model(model_name, num_classes=10, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                torch.randn_like(parameter), alpha=0.02
            )  # fresh heads are zero, and zero agrees with anything
    return Teacher(model, sees(IMAGE_SIZE), num_classes=10, dtype=dtype)


def teachers(rank: int) -> dict[str, Any]:
    """For each teacher and dtype: largest differences from the replicated one, and how much of it
    lies here.
    """
    engine = Engine(
        precision="fp32", channels_last=False
    )  # partitioned weights are contiguous, and the order decides the rounding
    results: dict[str, Any] = {}
    # Ranks hold batches of different sizes.
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(rank))[: 3 - 2 * rank]
    for name, (_, _, stages) in TEACHERS.items():
        for dtype in (torch.float32, torch.bfloat16):
            whole = place_teacher(_teacher(name, dtype), engine)
            teacher = _teacher(name, dtype)
            num_elements = sum(parameter.numel() for parameter in teacher.parameters())
            sharded = place_teacher(teacher, engine, placement="zero3")
            assert whole is not None
            assert sharded is not None
            keys = tuple(map(FeatureKey, stages))
            expected, found = (each.outputs(images, keys) for each in (whole, sharded))
            again = sharded(images)  # and without features
            results[f"{name} {dtype}"] = {
                "logits": _apart(found.logits, expected.logits),
                "again": _apart(again, expected.logits),
                "features": {
                    key.stage: _apart(found.features[key], expected.features[key]) for key in keys
                },
                "dtypes": [str(found.features[key].dtype) for key in keys],
                "spread": float(expected.logits.std()) if expected.logits.numel() else None,
                "held": (
                    sum(p.ds_tensor.numel() for p in sharded.net.parameters())
                    / max(num_elements, 1)
                ),
                "left": sum(p.numel() for p in sharded.net.parameters() if not p.ds_persist),
                "same_fingerprint": whole.fingerprint == sharded.fingerprint,
            }
    results["linear"] = nn.functional.linear is _LINEAR
    engine.close()
    return results


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a.float() - b.float()).abs().max()) if a.numel() else 0.0


def students(rank: int) -> dict[str, Any]:
    """By stage: the part of masters, of optimizer state and of whole parameters that lies on this
    rank after a step.
    """
    results: dict[str, Any] = {}
    engine = Engine(precision="fp32", zero_stage=3, timeout_s=123)
    for stage in (3, 2, 1):
        engine.accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]["stage"] = (
            stage
        )
        torch.manual_seed(0)
        net = timm.create_model("test_vit", num_classes=10, patch_size=4, img_size=32)
        num_elements = sum(parameter.numel() for parameter in net.parameters())
        placement = Partitioned(
            Learner(net, Pixels((0.5,) * 3, (0.5,) * 3)).train(),
            _adamw,
            engine,
            clip_grad_norm=None,
            averages=Averages((0.5,)),
            micro_batch_size=2,
            num_forwards=1,
        )
        failed = []
        for gradient in (1.0, float("nan")):
            handle = net.head.weight.register_hook(lambda grad, factor=gradient: grad * factor)
            placement.backward(
                placement.forward(torch.rand(2, 3, 32, 32)).logits.square().mean(),
                more_to_come=False,
            )
            placement.step(1e-3)
            failed.append(placement.failed)
            handle.remove()
        placement.backward(
            placement.forward(torch.rand(2, 3, 32, 32)).logits.square().mean(), more_to_come=False
        )
        placement.step(1e-3)
        placement.update_averages()
        partition = placement._partition
        state = [
            t for slots in partition.base_optimizer.state.values() for t in slots.values() if t.ndim
        ]
        results[str(stage)] = {
            "failed": [*failed, placement.failed],
            "timeout_s": _timeout_s(placement._model),
            "masters": sum(flat.numel() for flat in partition.flats) / num_elements,
            "state": sum(t.numel() for t in state) / num_elements,
            "average": (
                sum(
                    t.numel()
                    for n, t in placement._emas["ema-0.5"].weights().items()
                    if n.isdigit()
                )
                / num_elements
            ),
            # Stage 3 keeps small parameters whole (10^5 elements): here all but the largest.
            "weights": (
                sum(p.numel() for p in net.parameters() if not getattr(p, "ds_persist", False))
                / num_elements
            ),
        }
    engine.close()
    results["linear"] = nn.functional.linear is _LINEAR
    return results


def direct_parameters(rank: int) -> dict[str, float]:
    """Largest differences between ZeRO-3 and a whole model where every weight is partitioned, also
    the small ones that stage 3 keeps whole by default: the ViT's class token and position embedding
    are parameters of a module whose own forward is not called.
    """
    engine = Engine(precision="fp32", zero_stage=3, channels_last=False)
    options = {"stage3_param_persistence_threshold": 0}
    engine.accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"] |= options
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def learner() -> Learner:
        torch.manual_seed(0)
        net = timm.create_model("test_vit", num_classes=10, patch_size=4, img_size=32)
        torch.nn.init.normal_(net.head.weight)
        heads = FitNet(64, 5, "l2")
        return Learner(net, Pixels((0.5,) * 3, (0.5,) * 3), heads, (FeatureKey(0),)).train()

    whole, spread = learner(), learner()
    placement = Partitioned(
        spread,
        lambda each: torch.optim.SGD(each.parameters(), lr=1.0),
        engine,
        clip_grad_norm=None,
        averages=Averages((0.5,)),
        micro_batch_size=2,
        num_forwards=1,
    )
    held = sum(p.numel() for p in spread.net.parameters())

    def loss(outputs: Outputs) -> torch.Tensor:
        return outputs.logits.square().mean() + outputs.features[0].square().sum()

    expected, found = whole(images), placement.forward(images)
    results = {
        "held": float(held),
        "logits": _apart(found.logits, expected.logits),
        "features": _apart(found.features[0], expected.features[0]),
    }
    loss(expected).backward()
    placement.backward(loss(found), more_to_come=False)
    placement.step(1e-3)
    state = placement.state()[0]
    if engine.is_main:
        for name in ("cls_token", "pos_embed", "head.weight"):
            parameter = whole.net.get_parameter(name)
            assert parameter.grad is not None
            moved = parameter.detach() - 1e-3 * parameter.grad
            results[name] = _apart(state["model"][name], moved)
            results[f"{name} moved"] = _apart(moved, parameter)
        weight = whole.heads.get_parameter("conv.weight")
        assert weight.grad is not None
        results["heads"] = _apart(
            state["heads"]["conv.weight"], weight.detach() - 1e-3 * weight.grad
        )
    with patch.object(zero, "_zero_options", lambda *_: {"stage": 3, **options}):
        frozen = [_vit_teacher(), _vit_teacher()]
        expected = place_teacher(frozen[0], engine)
        partitioned = place_teacher(frozen[1], engine, placement="zero3")
        assert expected
        assert partitioned
        key = FeatureKey(1)
        for name, found in (("first", partitioned), ("again", partitioned)):
            one, two = (each.outputs(images, (key,)) for each in (expected, found))
            results[f"teacher, {name}"] = max(
                _apart(one.logits, two.logits), _apart(one.features[key], two.features[key])
            )
    engine.close()
    return results


def _vit_teacher() -> Teacher:
    torch.manual_seed(1)
    net = timm.create_model("test_vit", num_classes=10, patch_size=4, img_size=32)
    torch.nn.init.normal_(net.head.weight)
    return Teacher(net, sees(32), num_classes=10)


def _adamw(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=1e-3)


def _timeout_s(engine: Any) -> float:
    """How long the group that DeepSpeed reduces in waits for a rank."""
    return float(
        engine.data_parallel_group._get_backend(
            torch.device("cpu")
        ).options._timeout.total_seconds()
    )
