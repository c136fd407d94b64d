"""Training as a whole: golden losses, company = alone, accumulation = large batch, precision,
compilation, skipped images.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    EVERYTHING,
    assert_equal_tensors,
    checkpoint,
    records,
    relative_difference,
    report,
    run,
    stop_after,
    tensors,
    write_recipe,
)
from torch._dynamo.utils import counters

from distill.data.loading.loader import Batch
from distill.losses import TeacherOutputs
from distill.recipe import load_recipe
from distill.student.student import Student
from distill.training.build import build_models
from distill.training.loop import INTERRUPTED
from distill.training.plan import make_plan

VIT = {"model": "test_vit", "model_args": {"patch_size": 4}}


# ---- golden losses -------------------------------------------------------------------------------

GOLDEN = Path(__file__).parents[1] / "golden" / "losses.json"
CE, BCE = {"loss": "ce"}, {"loss": "bce"}
METHODS: dict[str, Any] = {
    "ce": {"hard": CE},
    "bce-mean": {"hard": BCE},
    "bce-sum": {"hard": {**BCE, "class_reduction": "sum", "smoothing": 0.1}},
    "kl": {"hard": CE, "soft": {"loss": "kl", "temperature": 4.0}},
    "bkl": {"hard": CE, "soft": {"loss": "bkl"}},
    "bce-teacher": {"hard": BCE, "soft": {"loss": "bce_teacher"}},
    "dkd": {"hard": CE, "soft": {"loss": "dkd", "temperature": 2.0}},
    "dist": {"hard": CE, "soft": {"loss": "dist", "weight": 2.0}},
}


def test_losses_of_every_method_are_those_recorded(tmp_path: Path) -> None:
    """Six steps of a student a method behind a seeded teacher.

    If a change is meant to move them, run this with UPDATE_GOLDEN=1 and say why in the commit.
    """
    changes = {
        "train": {"budget": "6 iterations"},
        "data": {"mixing": {"mixup": 0.2, "cutmix": 1.0, "group_size": 8}, "eval": None},
        "student": {"optimizer": {"lr": 0.02}},
        "students": {name: {"objective": objective} for name, objective in METHODS.items()},
    }
    assert run(write_recipe(tmp_path, changes)) == 0
    curves: dict[str, dict[str, list[float]]] = {name: {} for name in METHODS}
    for record in records(tmp_path / "run"):
        for name, figures in record["students"].items():
            for key, value in figures.items():
                curves[name].setdefault(key, []).append(round(value, 6))
    if os.environ.get("UPDATE_GOLDEN"):
        lines = [f" {json.dumps(name)}: {json.dumps(curve)}" for name, curve in curves.items()]
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    golden = json.loads(GOLDEN.read_text())
    assert golden.keys() == curves.keys()
    for name, curve in curves.items():
        assert curve.keys() == golden[name].keys()
        for key, values in curve.items():
            # Processors round differently; over six steps that comes to far less than 1e-4.
            assert values == pytest.approx(golden[name][key], rel=1e-4), f"{name} {key}"


# ---- company = alone -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three students behind one teacher."""
    folder = tmp_path_factory.mktemp("company")
    assert run(write_recipe(folder, EVERYTHING)) == 0
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    "students", [["lamb"], ["adamw"], ["sgd"], ["sgd", "lamb", "adamw"]], ids="-".join
)
def test_a_student_in_company_ends_as_alone(
    company: Path, students: list[str], tmp_path: Path
) -> None:
    """Weights, optimizer state and averages, bit for bit, with any other students and in any
    order.
    """
    chosen = {"students": {name: EVERYTHING["students"][name] for name in students}}
    assert run(write_recipe(tmp_path, EVERYTHING, chosen)) == 0
    for name in students:
        assert_equal_tensors(tensors(tmp_path / "run", name), tensors(company, name))


def test_no_teacher_is_plain_supervised_training(tmp_path: Path) -> None:
    """Bit for bit what the student that learns from labels alone becomes beside a teacher and a
    distilled student.
    """
    taught = {"objective": {"soft": {"loss": "kl"}}}
    assert (
        run(write_recipe(tmp_path, {"students": {"alone": {}, "taught": taught}}, name="with")) == 0
    )
    assert run(write_recipe(tmp_path, {"teacher": None}, name="without")) == 0
    assert_equal_tensors(
        tensors(tmp_path / "without", "alone"), tensors(tmp_path / "with", "alone")
    )
    assert report(tmp_path / "without")["teacher"] is None
    assert "agreement" not in report(tmp_path / "without")["students"]["alone"]["last"]
    assert [
        set(record["students"]["alone"])
        for record in records(tmp_path / "without")
        if "students" in record
    ] == [{"loss_total", "loss_hard", "lr"}] * 8


# ---- accumulation --------------------------------------------------------------------------------


def test_accumulation_is_a_large_batch(tmp_path: Path) -> None:
    """Without BatchNorm samples of a micro-batch are independent. Measured: 3e-7 after 8 steps."""
    student = {
        **VIT,
        "drop_path": 0.3,
        "objective": {"soft": {"loss": "kl"}},
        "optimizer": {"clip_grad_norm": 0.5},
    }
    for name, micro_batch_size in (("full", None), ("halves", 8), ("quarters", 4)):
        train = {"micro_batch_size": micro_batch_size}
        assert run(write_recipe(tmp_path, {"train": train, "student": student}, name=name)) == 0
    for name in ("halves", "quarters"):
        assert relative_difference(tensors(tmp_path / name), tensors(tmp_path / "full")) < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_one_step_by_hand(precision: str, tmp_path: Path) -> None:
    """SGD: weights move by lr times the gradient, which is clipped after the scaler's factor is
    out; an average moves by half.
    """
    student = {
        "optimizer": {"lr": 0.3, "clip_grad_norm": 0.01, "weight_decay": 0.0},
        "ema": {"decays": [0.5]},
    }
    recipe = write_recipe(
        tmp_path, {"student": student, "train": {"budget": "1 iterations", "precision": precision}}
    )
    before = build_models(make_plan(load_recipe(recipe))).nets["alone"].state_dict()
    assert run(recipe) == 0
    after = tensors(tmp_path / "run")
    gradients = {
        name.split("/")[1]: tensor
        for name, tensor in after.items()
        if name.endswith("/momentum_buffer")
    }
    norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    assert norm == pytest.approx(0.01, rel=1e-3)
    for name, gradient in gradients.items():
        moved = after[f"alone.model/{name}"]
        torch.testing.assert_close(moved, before[name] - 0.3 * gradient)
        torch.testing.assert_close(after[f"alone.ema-0.5/{name}"], (before[name] + moved) / 2)


def test_running_statistics_move_once_a_step_by_the_mean_of_its_forwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    before: list[dict[str, torch.Tensor]] = []
    learn = Student.learn

    def watched(self: Student, batch: Batch, teacher: TeacherOutputs | None) -> torch.Tensor:
        if not before:
            before.append({name: tensor.clone() for name, tensor in self.net.state_dict().items()})
        seen.append(batch.images)
        return learn(self, batch, teacher)

    monkeypatch.setattr(Student, "learn", watched)
    students: list[Student] = []
    monkeypatch.setattr(Student, "__post_init__", _keeping(Student.__post_init__, students))
    assert run(write_recipe(tmp_path, {"train": {"budget": "1 iterations"}})) == 0
    assert len(seen) == 2

    learner, after = students[0].learner.train(), {}
    for images in seen:
        students[0].net.load_state_dict(before[0])
        with torch.no_grad():
            learner(images)
        for name, buffer in students[0].net.named_buffers():
            after.setdefault(name, []).append(buffer.clone())
    saved = tensors(tmp_path / "run", "alone")
    statistics = [name for name in after if name.endswith(("running_mean", "running_var"))]
    assert len(statistics) > 10
    for name in statistics:
        first, second = after[name]
        assert not torch.allclose(first, second), "forwards must differ, or their mean says nothing"
        torch.testing.assert_close(saved[f"alone.model/{name}"], (first + second) / 2)
        count = saved[f"alone.model/{name.rpartition('.')[0]}.num_batches_tracked"]
        assert count == 1


def _keeping(method: Any, students: list[Student]) -> Any:
    def keep(self: Student) -> None:
        method(self)
        students.append(self)

    return keep


# ---- precision and compilation -------------------------------------------------------------------


def scales(output: Path) -> dict[str, float]:
    values = json.loads((checkpoint(output) / "state.json").read_text())["students"]
    return {name: state["scaler"]["scale"] for name, state in values.items()}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_averages_stay_float32(precision: str, tmp_path: Path) -> None:
    train = {"precision": precision, "budget": "3 iterations"}
    assert run(write_recipe(tmp_path, EVERYTHING, {"train": train})) == 0
    assert (
        run(write_recipe(tmp_path, EVERYTHING, {"train": {"budget": "3 iterations"}}, name="fp32"))
        == 0
    )
    half, full = tensors(tmp_path / "run"), tensors(tmp_path / "fp32")
    assert all(
        t.isfinite().all() and t.dtype in (torch.float32, torch.int64) for t in half.values()
    )
    assert any(not torch.equal(half[name], full[name]) for name in half), (
        "autocast must change something"
    )
    losses = [
        [r["students"][s]["loss_total"] for s in r["students"]]
        for r in records(tmp_path / "run")
        if "students" in r
    ]
    expected = [
        [r["students"][s]["loss_total"] for s in r["students"]]
        for r in records(tmp_path / "fp32")
        if "students" in r
    ]
    assert torch.allclose(torch.tensor(losses), torch.tensor(expected), rtol=0.05)


def test_an_overflow_under_fp16_leaves_the_scale_of_the_others_alone(tmp_path: Path) -> None:
    """The loud student's gradients overflow in fp16 while its loss, 2e6, is finite: its scale
    falls, no student stops.
    """
    loud = {"objective": {"hard": {"loss": "ce", "weight": 1e6}}}
    changes = {
        "train": {"precision": "fp16", "budget": "3 iterations"},
        "students": {"quiet": {}, "loud": loud},
    }
    assert run(write_recipe(tmp_path, changes)) == 0
    assert scales(tmp_path / "run")["quiet"] == 2**16
    assert scales(tmp_path / "run")["loud"] == 2**13
    start = write_recipe(tmp_path, changes, {"train": {"budget": "1 iterations"}}, name="start")
    assert run(start) == 0
    loud_now, loud_then = (tensors(tmp_path / name, "loud") for name in ("run", "start"))
    assert torch.equal(loud_now["loud.model/fc.weight"], loud_then["loud.model/fc.weight"]), (
        "overflowing steps are skipped"
    )
    alone = {"train": changes["train"], "students": {"quiet": {}}}
    assert run(write_recipe(tmp_path, alone, name="alone")) == 0
    assert_equal_tensors(tensors(tmp_path / "run", "quiet"), tensors(tmp_path / "alone", "quiet"))


def test_compilation_traces_each_model_once_for_training_and_once_for_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the tracer alone, whose graphs run the same kernels: the same bits, and no new graph a
    step or a drop-path mask.
    """
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda module, **options: compile_module(module, backend="eager", **options),
    )
    students = {
        "students": {"lamb": EVERYTHING["students"]["lamb"]},
        "train": {"budget": "4 iterations"},
    }
    assert run(write_recipe(tmp_path, EVERYTHING, students, name="eager")) == 0
    torch._dynamo.reset()
    counters.clear()
    assert run(write_recipe(tmp_path, EVERYTHING, students), "train.compile=true") == 0
    assert_equal_tensors(tensors(tmp_path / "run"), tensors(tmp_path / "eager"))
    # The teacher's two are for the two batch sizes.
    assert counters["stats"]["unique_graphs"] == 4
    assert not counters["graph_break"]


@pytest.mark.slow
def test_a_compiled_run_agrees_with_eager_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inductor fuses, so it rounds differently (measured: 3e-5 of a tensor's largest entry after 4
    steps); stopped and continued it is still itself.
    """
    # Dropout's draws are its own.
    students = {
        name: {**student, "drop_rate": 0.0} for name, student in EVERYTHING["students"].items()
    }
    changes = {"train": {"budget": "4 iterations"}, "students": students}
    compiled = "train.compile=true"
    assert run(write_recipe(tmp_path, EVERYTHING, changes, name="eager")) == 0
    assert run(write_recipe(tmp_path, EVERYTHING, changes, name="uninterrupted"), compiled) == 0
    eager = tensors(tmp_path / "eager")
    for name, tensor in tensors(tmp_path / "uninterrupted").items():
        if ".model/" in name:
            # AdamW scales the rounding noise of gradients that are 0 by theory (a key's bias) up to
            # steps near lr.
            torch.testing.assert_close(tensor, eager[name], rtol=1e-3, atol=5e-5)
    recipe = write_recipe(tmp_path, EVERYTHING, changes)
    stop_after(2, monkeypatch)
    assert run(recipe, compiled) == INTERRUPTED
    assert run(recipe, compiled) == 0
    assert_equal_tensors(tensors(tmp_path / "run"), tensors(tmp_path / "uninterrupted"))
