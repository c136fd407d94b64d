"""Where checkpoints of other trainers hold the weights: loaded when there is one answer, refused
with the choices otherwise.
"""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from distill.errors import InputError
from distill.models.fitting import apply_weights, head_classes
from distill.models.weights import load_state_dict


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return timm.create_model("cifar_resnet8", num_classes=5).state_dict()


def applied(path: Path) -> nn.Module:
    """A model with the weights of a file, built as a teacher is."""
    state_dict, _ = load_state_dict(path)
    classes = head_classes({"classifier": "fc", "num_classes": 100}, state_dict)
    model = timm.create_model("cifar_resnet8", num_classes=classes)
    apply_weights(model, state_dict, str(path))
    return model


def inside(prefix: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


def nested(kind: str, weights: dict[str, torch.Tensor]) -> Any:
    other = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    return {
        "net": {"net": weights, "acc": 91.2, "epoch": 3},
        "model_state_dict": {
            "model_state_dict": weights,
            "optimizer_state_dict": {"state": {}, "param_groups": []},
        },
        "teacher": {"teacher": weights, "epoch": 1},
        "deepspeed": {
            "module": weights,
            "buffer_names": ["x"],
            "optimizer": None,
            "global_steps": 3,
        },
        "lightning": {
            "state_dict": inside("model.", weights) | {"criterion.weight": torch.ones(5)},
            "pytorch-lightning_version": "2.5",
            "callbacks": {},
        },
        "lightning, deeper": {"state_dict": inside("learner.net.", weights)},
        "compiled in lightning": {"state_dict": inside("model._orig_mod.", weights)},
        "empty average": {"state_dict": weights, "model_ema": {}, "state_dict_ema": None},
        "average in a module": {"model": other, "ema": {"module": weights, "updates": 7}},
        "AveragedModel": inside("module.", weights) | {"n_averaged": torch.tensor(3)},
        "parameters": {
            name: nn.Parameter(t) if t.is_floating_point() else t for name, t in weights.items()
        },
    }[kind]


KINDS = (
    "net",
    "model_state_dict",
    "teacher",
    "deepspeed",
    "lightning",
    "lightning, deeper",
    "compiled in lightning",
    "empty average",
    "average in a module",
    "AveragedModel",
    "parameters",
)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_found_where_trainers_put_them(
    kind: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(nested(kind, weights), tmp_path / "w.pt")
    model = applied(tmp_path / "w.pt")
    assert model.num_classes == 5
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_several_that_fit_are_listed(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"student": weights, "teacher": weights}, tmp_path / "dino.pth")
    with pytest.raises(InputError, match=r"holds several state dicts \(student, teacher\)"):
        load_state_dict(tmp_path / "dino.pth")
    torch.save(
        {"state_dict": inside("student.", weights) | inside("teacher.", weights)},
        tmp_path / "two.ckpt.pt",
    )
    with pytest.raises(InputError, match=r"holds several models that fit \(student, teacher\)"):
        applied(tmp_path / "two.ckpt.pt")


def test_a_missing_counter_is_nothing_and_a_missing_statistic_is_refused(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(
        {k: v for k, v in weights.items() if "num_batches_tracked" not in k}, tmp_path / "old.pth"
    )
    model = applied(tmp_path / "old.pth")
    assert all(
        torch.equal(t, weights[name])
        for name, t in model.state_dict().items()
        if "num_batches" not in name
    )
    torch.save({k: v for k, v in weights.items() if "running_mean" not in k}, tmp_path / "cut.pth")
    with pytest.raises(InputError, match=r"missing: bn1\.running_mean"):
        applied(tmp_path / "cut.pth")


def test_a_pickle_is_refused_with_a_command_that_converts_it(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 2), tmp_path / "whole.pth")
    with pytest.raises(InputError, match="refused") as info:
        load_state_dict(tmp_path / "whole.pth")
    code = str(info.value).split('python -c "')[1].rsplit('"', 1)[0]
    exec(code)  # what the message says
    assert load_state_dict(tmp_path / "whole_weights.pth")[0].keys() == {"weight", "bias"}
