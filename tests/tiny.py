"""Real runs, small enough for a test: recipes as dictionaries, and the results as tensors and
records.
"""

import json
import os
import signal
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import distill.training.loop
from distill.data.decode import read_image
from distill.data.fashion import EmbeddedFashionMnist
from distill.models.view import ModelView, view_of_config
from distill.recipe import load_recipe
from distill.recipe.resolve import merge
from distill.training.loop import train

IMAGE_SIZE = 16
NUM_EVAL = 53  # odd, and no multiple of the evaluation batch
# 120 training images and batches of 16: 7 steps an epoch, so 8 steps cross into the second one.
BASE: dict[str, Any] = {
    "name": "tiny",
    "teacher": {"model": "cifar_resnet14", "weights": "random", "image_size": IMAGE_SIZE},
    "data": {
        "train": {"kind": "fashion_mnist", "split": "train"},
        "fraction": 0.02,
        "image_size": IMAGE_SIZE,
        "num_workers": 0,
        "augment": {"crop": "padded", "padding": 2},
        "eval_view": {"crop_fraction": 1.0},
    },
    "train": {"budget": "8 iterations", "batch_size_global": 16, "micro_batch_size": 8},
    "evaluate": {"every": "4 iterations", "batch_size_process": 20},
    "checkpoint": {"every": "4 iterations"},
    "log": {"every": "1 iterations"},
    "student": {
        "model": "cifar_resnet8",
        "objective": {"hard": {"loss": "ce"}},
        "optimizer": {"name": "momentum", "lr": 0.05},
    },
    "students": {"alone": {}},
}

# All that is random or has state, in one recipe: three students that share only batches and
# teacher.
EVERYTHING: dict[str, Any] = {
    "data": {
        "augment": {
            "crop": "random_resized",
            "repeats": 3,
            "auto_augment": "rand-m7-mstd0.5-inc1",
            "random_erasing": 0.5,
        },
        "mixing": {"mixup": 0.2, "cutmix": 1.0, "group_size": 8},
    },
    "log": {"every": "2 iterations"},
    "evaluate": {"every": "3 iterations"},
    "students": {
        "lamb": {
            "drop_path": 0.2,
            "optimizer": {"name": "lamb", "lr": 5e-3, "weight_decay": 0.02, "clip_grad_norm": 1.0},
            "objective": {
                "hard": {"loss": "bce", "class_reduction": "sum"},
                "soft": {"loss": "kl", "temperature": 2.0},
            },
            "ema": {"decays": [0.5, 0.9], "warmup": True},
        },
        "adamw": {
            "model": "test_vit",
            "model_args": {"patch_size": 4},
            "drop_path": 0.3,
            "drop_rate": 0.1,
            "seed": 1,
            "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
            "objective": {
                "hard": {"loss": "ce", "smoothing": 0.1},
                "soft": {"loss": "dkd", "temperature": 2.0},
            },
            "schedule": {"warmup": "2 iterations"},
            "ema": {"decays": [0.8]},
        },
        "sgd": {
            "seed": 2,
            "optimizer": {"name": "momentum", "lr": 0.05, "weight_decay": 5e-4, "momentum": 0.8},
            "objective": {"hard": {"loss": "ce"}, "soft": {"loss": "dist"}},
        },
    },
}


# A backbone that reconstructs removed patches: 1 of 4 stays.
MASKED: dict[str, Any] = {
    "teacher": None,
    "data": {"image_size": 64, "augment": {"crop": "random_resized"}},
    "train": {"budget": "6 iterations"},
    "checkpoint": {"every": "2 iterations"},
    "students": {
        "pre": {
            "model": "convnextv2_atto",
            "model_args": {"dims": [8, 16, 24, 32], "depths": [1, 1, 2, 1]},
            "drop_path": 0.1,
            "optimizer": {"name": "adamw", "lr": 3e-3, "args": {"betas": [0.9, 0.95]}},
            "objective": {"hard": None, "masked": {"loss": "fcmae", "decoder_width": 16}},
            "ema": {"decays": [0.5]},
        }
    },
}


def write_recipe(folder: Path, *changes: dict[str, Any], name: str = "run") -> Path:
    """Write BASE with changes to `folder/<name>.yaml`; the run writes to `folder/<name>`.
    "students" is replaced, not merged.
    """
    tree = deepcopy(BASE)
    for change in changes:
        tree = merge(tree, change)
        if "students" in change:
            tree["students"] = change["students"]
    eval_folder = eval_set(folder / "eval")
    tree["data"].setdefault(
        "eval", {"kind": "fashion_mnist", "split": "test", "path": str(eval_folder)}
    )
    tree["output"] = str(folder / name)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def eval_set(folder: Path) -> Path:
    """Write NUM_EVAL images of the embedded test set, every 17th, as IDX files."""
    if not folder.exists():
        folder.mkdir(parents=True)
        source = EmbeddedFashionMnist("test")
        chosen = [17 * i % len(source) for i in range(NUM_EVAL)]
        images = np.stack([np.asarray(read_image(source, i).convert("L")) for i in chosen])
        for name, array in (
            ("images-idx3", images),
            ("labels-idx1", source.labels[chosen].astype(np.uint8)),
        ):
            header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
            (folder / f"t10k-{name}-ubyte").write_bytes(header + array.tobytes())
    return folder


def sees(size: int = IMAGE_SIZE) -> ModelView:
    """What a model of a test sees: mean and std 0.5."""
    return view_of_config(
        {"input_size": (3, size, size), "mean": (0.5,) * 3, "std": (0.5,) * 3}, "a test"
    )


def run(recipe: Path, *overrides: str) -> int:
    """Train in this process. Returns the exit code."""
    return train(load_recipe(recipe, overrides))


# ---- signals -------------------------------------------------------------------------------------


def send_during(
    owner: Any,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    call: int = 1,
    number: int = signal.SIGTERM,
) -> None:
    """Send this process a real signal at the `call`-th call of `owner.name`."""
    original, calls = getattr(owner, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGTERM) -> None:
    """Send a signal when the `step`-th step of the next run begins; the run stops after it."""
    send_during(distill.training.loop.Run, "_step", monkeypatch, step, number)


# ---- results of a run ----------------------------------------------------------------------------


def checkpoint(output: Path) -> Path:
    """The newest checkpoint."""
    return max((output / "checkpoints").glob("step-*"))


def tensors(output: Path, student: str = "") -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint, or of one student in it: "sgd.model/conv1.weight",
    "sgd.optimizer/...".
    """
    return {
        f"{file.stem}/{name}": tensor
        for file in sorted(checkpoint(output).glob("*.safetensors"))
        if file.name.startswith(f"{student}." if student else "")
        for name, tensor in load_file(file).items()
    }


def best(output: Path, student: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A student's best weights and their record."""
    folder = output / "best" / student
    return load_file(folder / "model.safetensors"), json.loads(
        (folder / "distill.json").read_text()
    )


def records(output: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without values that depend on time or machine."""
    measured = ("time", "seconds", "images_per_s", "memory_bytes", "data_wait_s")
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in measured} for line in lines]


def report(output: Path) -> dict[str, Any]:
    """report.json without values that depend on time, machine or paths."""
    values = json.loads((output / "report.json").read_text())
    of_one_machine = (
        "seconds",
        "device_hours",
        "energy_j",
        "num_processes",
        "throughput",
        "data",
        "versions",
    )
    return {key: value for key, value in values.items() if key not in of_one_machine}


def assert_equal_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert one
    assert one.keys() == other.keys()
    differ = [name for name in one if not torch.equal(one[name], other[name])]
    assert not differ, f"{len(differ)} of {len(one)} differ, first {differ[:3]}"


def assert_equal_but_statistics(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]
) -> None:
    """Bit for bit; BatchNorm's running statistics, which two processes average, within their
    rounding.
    """
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        if "running_" in name:
            torch.testing.assert_close(one[name], tensor, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(one[name], tensor), name


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, optimizers, averages, best exports, metrics and report, bit for bit."""
    assert_equal_tensors(tensors(one), tensors(other))
    states = [
        json.loads((checkpoint(output) / "state.json").read_text()) for output in (one, other)
    ]
    for state in states:
        del state["seconds"], state["device_seconds"], state["training"]
        state.pop("energy_j", None)  # of GPUs
    assert states[0] == states[1]
    assert records(one) == records(other)
    assert report(one) == report(other)
    names = sorted(path.name for path in (one / "best").iterdir())
    assert names == sorted(path.name for path in (other / "best").iterdir())
    for name in names:
        (weights_one, record_one), (weights_other, record_other) = (
            best(one, name),
            best(other, name),
        )
        assert_equal_tensors(weights_one, weights_other)
        assert record_one == record_other


def relative_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest |a - b| over the largest |b| of the same tensor."""
    assert one.keys() == other.keys()
    gaps = [
        (one[n].double() - other[n].double()).abs().max()
        / other[n].double().abs().max().clamp(min=1e-12)
        for n in one
    ]
    return float(max(gaps))
