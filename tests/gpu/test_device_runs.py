"""Runs on a device: those of the CPU within rounding, in half precision, compiled, stopped and
resumed, under a launcher, under ZeRO with one process.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ports import free_ports
from tiny import (
    EVERYTHING,
    assert_equal_tensors,
    assert_same_run,
    checkpoint,
    records,
    run,
    stop_after,
    tensors,
    write_recipe,
)

import distill.training.loop
from distill.engine import Engine
from distill.recipe import load_recipe
from distill.training.build import build_models
from distill.training.loop import DONE, INTERRUPTED
from distill.training.plan import make_plan

CNN = {
    "objective": {"hard": {"loss": "ce"}, "soft": {"loss": "kl", "temperature": 2.0}},
    "optimizer": {"name": "momentum", "lr": 0.02, "weight_decay": 1e-3},
    "ema": {"decays": [0.8]},
}
VIT = {
    "model": "test_vit",
    "model_args": {"patch_size": 4},
    "objective": {"hard": {"loss": "bce"}, "soft": {"loss": "dkd"}},
    # The k part of qkv.bias has no gradient but rounding, which Adam would blow up to whole steps.
    "optimizer": {"name": "adamw", "lr": 1e-3, "clip_grad_norm": 0.5, "args": {"eps": 1e-4}},
}
HINT = {
    **CNN,
    "seed": 1,
    "objective": {
        "hard": {"loss": "ce"},
        "hint": {"loss": "fitnet", "student_stage": 2, "teacher_stage": 2},
    },
}
SMALL: dict[str, Any] = {
    "data": {"mixing": {"mixup": 0.2, "cutmix": 1.0, "group_size": 8}, "eval": None},
    "students": {"cnn": CNN, "vit": VIT, "hint": HINT},
    "train": {"budget": "2 iterations"},
    "evaluate": {"every": "8 iterations"},
    "checkpoint": {"every": "2 iterations"},
}


def moved(one: Path, two: Path, recipe: Path) -> dict[str, float]:
    """How far apart the weights of each student ended in two runs, in units of how far training
    moved them.
    """
    found = {}
    for name, net in build_models(make_plan(load_recipe(recipe))).nets.items():
        start = {key: value.detach().double() for key, value in net.named_parameters()}
        ends = [tensors(output, name) for output in (one, two)]
        first, second = (
            {key: end[f"{name}.model/{key}"].double() for key in start} for end in ends
        )
        apart = sum(float((first[key] - second[key]).square().sum()) for key in start)
        far = sum(float((second[key] - start[key]).square().sum()) for key in start)
        found[name] = (apart / far) ** 0.5
    return found


def losses(output: Path) -> torch.Tensor:
    return torch.tensor(
        [
            [each["loss_total"] for each in record["students"].values()]
            for record in records(output)
            if "students" in record
        ]
    )


@pytest.fixture
def same_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same kernels in every run: cuDNN's deterministic ones, without a choice by time."""
    init = Engine.__init__

    def deterministic(self: Engine, **settings: Any) -> None:
        init(self, **settings)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True

    monkeypatch.setattr(Engine, "__init__", deterministic)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.mark.parametrize(("tf32", "bound"), [(False, 5e-3), (True, 0.1)], ids=["fp32", "tf32"])
def test_training_steps(
    tf32: bool, bound: float, tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of a convnet, a ViT and a hint against the CPU's, in units of how far they moved;
    with float32 products, and with TF32 as runs have them.
    """
    init = Engine.__init__

    def chosen(self: Engine, **settings: Any) -> None:
        init(self, **settings)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32

    monkeypatch.setattr(Engine, "__init__", chosen)
    recipe = write_recipe(tmp_path, SMALL)
    assert run(recipe) == DONE
    with monkeypatch.context() as on_cpu:
        on_cpu.setenv("ACCELERATE_USE_CPU", "true")
        assert run(write_recipe(tmp_path, SMALL, name="cpu")) == DONE
    found = moved(tmp_path / "run", tmp_path / "cpu", recipe)
    assert max(found.values()) <= (bound if device.type == "cuda" else 0), found


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.05), ("fp16", 0.02)])
def test_half_precision(precision: str, bound: float, tmp_path: Path, device: torch.device) -> None:
    """Losses near those of float32; weights, averages and optimizers stay float32; a scaler for
    each student, and none for bf16.
    """
    half = {"train": {"precision": precision}, "teacher": {"dtype": precision}}
    assert run(write_recipe(tmp_path, SMALL)) == DONE
    assert run(write_recipe(tmp_path, SMALL, half, name="half")) == DONE
    found = tensors(tmp_path / "half")
    assert all(t.dtype in (torch.float32, torch.int64) for t in found.values())
    assert all(bool(t.isfinite().all()) for t in found.values())
    torch.testing.assert_close(
        losses(tmp_path / "half"), losses(tmp_path / "run"), rtol=bound, atol=0
    )
    state = json.loads((checkpoint(tmp_path / "half") / "state.json").read_text())
    scaled = [name for name, each in state["students"].items() if "scaler" in each]
    assert scaled == (list(SMALL["students"]) if precision == "fp16" else [])


def test_an_overflow_skips_the_step(tmp_path: Path, device: torch.device) -> None:
    """Gradients beyond fp16 at a finite loss: the weights stay, the scale halves a step."""
    loud = {**CNN, "objective": {"hard": {"loss": "ce", "weight": 1e6}}}
    changes = {"students": {"loud": loud}, "train": {"precision": "fp16"}}
    recipe = write_recipe(tmp_path, SMALL, changes)
    assert run(recipe) == DONE
    state = json.loads((checkpoint(tmp_path / "run") / "state.json").read_text())
    assert state["students"]["loud"]["scaler"]["scale"] == 2**14
    (net,) = build_models(make_plan(load_recipe(recipe))).nets.values()
    after = tensors(tmp_path / "run")
    for name, parameter in net.named_parameters():
        assert torch.equal(after[f"loud.model/{name}"], parameter.detach()), name


@pytest.mark.usefixtures("same_kernels")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_stopped_run_resumes_bit_for_bit(
    precision: str, tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is random or has state: weights, optimizers, averages, scalers, metrics, report."""
    own = {"train": {"precision": precision, "budget": "4 iterations"}}
    assert run(write_recipe(tmp_path, EVERYTHING, own, name="whole")) == DONE
    recipe = write_recipe(tmp_path, EVERYTHING, own)
    with monkeypatch.context() as stopping:
        stop_after(2, stopping)
        assert run(recipe) == INTERRUPTED
    assert run(recipe) == DONE
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.usefixtures("same_kernels")
def test_a_launcher_s_only_process(
    tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under NCCL, or gloo, and DDP it trains what it trains without a launcher."""
    assert run(write_recipe(tmp_path, SMALL)) == DONE
    seen: list[tuple[str, set[str]]] = []
    train = distill.training.loop.Run.train

    def watched(self: Any, signals: Any) -> int:
        models = {type(student.placement._model).__name__ for student in self.students}
        seen.append((dist.get_backend(), models))
        return train(self, signals)

    monkeypatch.setattr(distill.training.loop.Run, "train", watched)
    (port,) = free_ports(1)
    launched = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
    for name, value in {**launched, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    assert run(write_recipe(tmp_path, SMALL, name="launched")) == DONE
    backend = "nccl" if device.type == "cuda" else "gloo"
    assert seen == [(backend, {"DistributedDataParallel"})]
    assert_equal_tensors(tensors(tmp_path / "launched"), tensors(tmp_path / "run"))


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_with_one_process(stage: int, tmp_path: Path, device: torch.device) -> None:
    """One process partitions what it moves to the host: students under ZeRO-2 and 3, a teacher
    under ZeRO-3, within 1e-5 of the replicated ones in units of how far they moved (TF32: 0.02).
    """
    pytest.importorskip("deepspeed")
    if device.type == "cpu" and torch.cuda.is_available():
        pytest.skip("DeepSpeed takes the GPUs that it finds")
    students = {"students": {"cnn": CNN, "vit": VIT}}
    recipe = write_recipe(tmp_path, SMALL, students)
    assert run(recipe) == DONE
    partitioned = {
        "train": {"zero_stage": stage, "zero_offload": True},
        "teacher": {"placement": "zero3", "offload": True},
    }
    assert run(write_recipe(tmp_path, SMALL, students, partitioned, name="zero")) == DONE
    found = moved(tmp_path / "zero", tmp_path / "run", recipe)
    assert max(found.values()) <= (0.02 if device.type == "cuda" else 1e-5), found
    assert "ACCELERATE_USE_DEEPSPEED" not in os.environ


def test_compilation(tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled run is near an eager one. On the CPU the graphs run the same kernels, so that the
    bits are the same; what torch compiles there, tests/training/test_train.py runs.
    """
    if device.type == "cpu":
        compile_module = torch.nn.Module.compile
        monkeypatch.setattr(
            torch.nn.Module,
            "compile",
            lambda module, **options: compile_module(module, backend="eager", **options),
        )
    one = {"students": {"cnn": CNN}}  # the compiler takes long for each model
    recipe = write_recipe(tmp_path, SMALL, one)
    assert run(recipe) == DONE
    torch._dynamo.reset()
    compiled = write_recipe(tmp_path, SMALL, one, {"train": {"compile": True}}, name="compiled")
    assert run(compiled) == DONE
    found = moved(tmp_path / "compiled", tmp_path / "run", recipe)
    assert max(found.values()) <= (0.1 if device.type == "cuda" else 0), found
