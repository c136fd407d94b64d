"""Runs with a hint: FitNet on a ResNet and a ViT behind one teacher."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    EVERYTHING,
    assert_equal_tensors,
    assert_same_run,
    best,
    records,
    report,
    run,
    stop_after,
    tensors,
    write_recipe,
)

from distill.data.loading.loader import Batch
from distill.errors import InputError
from distill.losses import FeatureKey, Lessons
from distill.recipe import load_recipe
from distill.student.student import Student
from distill.training.check import check_recipe
from distill.training.loop import DONE, INTERRUPTED

HINT = {"loss": "fitnet", "weight": 2.0}
STUDENTS: dict[str, Any] = {
    "resnet": {
        "objective": {"hard": {"loss": "ce"}, "hint": HINT},
        "optimizer": {"name": "lamb", "lr": 5e-3, "weight_decay": 0.02, "clip_grad_norm": 1.0},
        "ema": {"decays": [0.5]},
        "drop_path": 0.2,
    },
    "vit": {
        "model": "test_vit",
        "model_args": {"patch_size": 4},
        "drop_path": 0.3,
        "objective": {
            "hard": {"loss": "ce"},
            "soft": {"loss": "kl"},
            "hint": {**HINT, "student_stage": 0, "teacher_stage": -1, "distance": "l1"},
        },
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
    },
    "plain": {"objective": {"hard": {"loss": "ce"}, "soft": {"loss": "kl"}}},
}


def test_a_hint_trains_its_heads_and_leaves_no_trace_in_an_export(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, EVERYTHING, {"students": STUDENTS})
    assert run(recipe) == DONE
    saved = tensors(tmp_path / "run", "resnet")
    assert saved["resnet.heads/conv.weight"].shape == (32, 32, 1, 1)
    assert saved["resnet.heads/norm.num_batches_tracked"] == 8, "once a step of two forwards"
    assert float(saved["resnet.optimizer/heads.conv.weight/exp_avg"].abs().max()) > 0
    plain = tensors(tmp_path / "run", "plain")
    assert not [name for name in plain if "heads" in name]
    averages = {name for name in saved if name.startswith("resnet.ema-0.5/")}
    assert not [name for name in averages if "heads" in name]
    for name in STUDENTS:
        assert not [key for key in best(tmp_path / "run", name)[0] if "heads" in key]
    students = report(tmp_path / "run")["students"]
    heads = {name: students[name]["parameters_of_heads"] for name in students}
    # A 1x1 convolution to the 32 and 64 channels of the teacher's stages, and its BatchNorm.
    assert heads == {"resnet": 32 * 32 + 2 * 32, "vit": 64 * 64 + 2 * 64, "plain": 0}
    losses = [line["students"] for line in records(tmp_path / "run") if line["event"] == "train"]
    assert all("loss_hint" not in line["plain"] for line in losses)
    for line in losses:
        for name, terms in (("resnet", ("hard",)), ("vit", ("hard", "soft"))):
            own = line[name]
            expected = sum(own[f"loss_{term}"] for term in terms) + 2 * own["loss_hint"]
            assert own["loss_total"] == pytest.approx(expected, rel=1e-5)
    first, last = losses[0]["resnet"]["loss_hint"], losses[-1]["resnet"]["loss_hint"]
    assert last < first, "the projection should approach the teacher's features"


def test_the_students_beside_a_hint_learn_as_alone(tmp_path: Path) -> None:
    for name in STUDENTS:
        changes = {"students": {name: STUDENTS[name]}, "train": {"budget": "3 iterations"}}
        assert run(write_recipe(tmp_path, EVERYTHING, changes, name=name)) == DONE
    together = {"students": STUDENTS, "train": {"budget": "3 iterations"}}
    assert run(write_recipe(tmp_path, EVERYTHING, together)) == DONE
    for name in STUDENTS:
        assert_equal_tensors(tensors(tmp_path / "run", name), tensors(tmp_path / name, name))


@pytest.mark.parametrize("step", [1, 5])
def test_a_stopped_run_ends_with_the_same_bits(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = (EVERYTHING, {"students": STUDENTS})
    assert run(write_recipe(tmp_path, *changes, name="whole")) == DONE
    recipe = write_recipe(tmp_path, *changes)
    with monkeypatch.context() as patch:
        stop_after(step, patch)
        assert run(recipe) == INTERRUPTED
    assert run(recipe) == DONE
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_the_gradient_is_that_of_a_loop_by_hand(tmp_path: Path) -> None:
    """One step of plain SGD: student and head move by the gradient of CE + 2 MSE, clipped by their
    joint norm.
    """
    student = {
        "objective": STUDENTS["resnet"]["objective"],
        "optimizer": {"name": "momentum", "lr": 0.1, "momentum": 0.0, "clip_grad_norm": 0.5},
    }
    one_step = {
        "students": {"one": student},
        "train": {"budget": "1 iterations", "micro_batch_size": 16},
    }
    seen: dict[str, Any] = {}
    learn = Student.learn

    def watched(self: Student, batch: Batch, lessons: Lessons) -> torch.Tensor:
        teacher = lessons.outputs["teacher"]
        seen.update(learner=copy.deepcopy(self.learner), batch=batch, teacher=teacher)
        return learn(self, batch, lessons)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Student, "learn", watched)
        assert run(write_recipe(tmp_path, one_step)) == DONE
    learner, batch, teacher = seen["learner"], seen["batch"], seen["teacher"]
    net, heads = learner.net, learner.heads
    x = net.act1(net.bn1(net.conv1(learner.pixels(batch.images))))
    middle = net.layer2(net.layer1(x))
    logits = net.fc(net.layer3(middle).mean((2, 3)))
    projected = heads.norm(heads.conv(middle))
    key = FeatureKey(2)
    assert teacher.features.keys() == {key}
    hint = (projected - teacher.features[key]).square().mean()
    hard = -(batch.label_probs * logits.log_softmax(1)).sum(1).mean()
    (hard + 2 * hint).backward()
    saved = tensors(tmp_path / "run", "one")
    of_net, of_heads = (
        torch.stack([p.grad.norm() for p in module.parameters()]).norm() for module in (net, heads)
    )
    joint = (of_net**2 + of_heads**2) ** 0.5
    assert joint > 0.6
    assert of_heads > 0.1 * joint, "clipping without the heads should be seen"
    lr = 0.1 * 0.5 / joint
    for file, module in (("model", net), ("heads", heads)):
        for name, parameter in module.named_parameters():
            moved = parameter.detach() - lr * parameter.grad
            torch.testing.assert_close(saved[f"one.{file}/{name}"], moved, atol=1e-6, rtol=1e-4)


def test_a_compiled_run_gives_the_same_weights(tmp_path: Path) -> None:
    changes = {"students": {"resnet": STUDENTS["resnet"]}, "train": {"budget": "2 iterations"}}
    assert run(write_recipe(tmp_path, changes, name="eager")) == DONE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.Module,
            "compile",
            lambda self, **_: setattr(
                self, "_compiled_call_impl", torch.compile(self._call_impl, backend="eager")
            ),
        )
        assert run(write_recipe(tmp_path, changes, {"train": {"compile": True}})) == DONE
    one, two = (tensors(tmp_path / name, "resnet") for name in ("eager", "run"))
    assert_equal_tensors(one, two)


# ---- stages --------------------------------------------------------------------------------------


def staged(first: dict[str, Any] | None, second: dict[str, Any] | None, **stage: Any) -> Any:
    """Two stages of four steps whose hints are given."""
    return {
        "train": {"budget": None},
        "students": {
            "one": {
                "optimizer": {"name": "lamb", "lr": 5e-3, "clip_grad_norm": 1.0},
                "ema": {"decays": [0.5]},
            }
        },
        "stages": [
            {
                "name": name,
                "budget": "4 iterations",
                "student": {"objective": {"hard": {"loss": "ce"}, "hint": hint}},
                **(stage if name == "second" else {}),
            }
            for name, hint in (("first", first), ("second", second))
        ],
    }


OTHER = {**HINT, "teacher_stage": -1}


@pytest.mark.parametrize(
    ("hints", "optimizer"),
    [
        ((HINT, HINT), "carry"),
        ((HINT, {**HINT, "weight": 0.5}), "carry"),
        ((HINT, OTHER), "carry"),
        ((HINT, None), "carry"),
        ((None, HINT), "carry"),
        ((HINT, OTHER), "reset"),
    ],
    ids=["same", "other weight", "other stage", "ends", "begins", "other stage, new optimizer"],
)
def test_heads_begin_and_end_with_their_stage(
    hints: tuple[Any, Any], optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = staged(*hints, optimizer=optimizer)
    assert run(write_recipe(tmp_path, changes, name="whole")) == DONE
    end = tensors(tmp_path / "whole", "one")
    carried = hints[0] is not None and hints[1] is not None and hints[1] is not OTHER
    expected = 8 if carried else 4
    heads = {name for name in end if name.startswith("one.heads/")}
    assert bool(heads) == (hints[1] is not None)
    # LAMB counts the steps of each parameter group: two of the model, two of the heads.
    counts = [int(end[f"one.optimizer/param_groups[{i}]/step"]) for i in range(2)]
    assert counts == [8 if optimizer == "carry" else 4] * 2
    if hints[1] is not None:
        assert end["one.heads/norm.num_batches_tracked"] == expected
        counts = [int(end[f"one.optimizer/param_groups[{i}]/step"]) for i in (2, 3)]
        assert counts == [expected] * 2
    # Stopped in the second stage, and at the boundary.
    for step in (4, 6):
        recipe = write_recipe(tmp_path, changes, name=f"from-{step}")
        with monkeypatch.context() as patch:
            stop_after(step, patch)
            assert run(recipe) == INTERRUPTED
        assert run(recipe) == DONE
        assert_same_run(tmp_path / f"from-{step}", tmp_path / "whole")


def test_averages_go_over_a_change_of_heads(tmp_path: Path) -> None:
    """An average follows the model: with decay 0.5 it is soon near. The gains of NFNet are weights
    that a second move to channels-last would copy.
    """
    changes = staged(HINT, OTHER)
    changes["students"]["one"] |= {"model": "test_nfnet"}
    assert run(write_recipe(tmp_path, changes, name="whole")) == DONE
    end = tensors(tmp_path / "whole", "one")
    gains = [name for name in end if name.endswith(".gain") and ".model/" in name]
    assert gains
    with pytest.MonkeyPatch.context() as patch:
        stop_after(6, patch)
        assert run(write_recipe(tmp_path, changes)) == INTERRUPTED
    before = tensors(tmp_path / "run", "one")
    assert run(tmp_path / "run.yaml") == DONE
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    for name in gains:
        average = name.replace(".model/", ".ema-0.5/")
        assert not torch.equal(end[average], before[average]), "the average has stopped"


def test_students_of_other_seeds_have_other_heads(tmp_path: Path) -> None:
    students = {f"seed{seed}": {**STUDENTS["resnet"], "seed": seed} for seed in (0, 1)}
    changes = {"students": students, "train": {"budget": "1 iterations"}}
    assert run(write_recipe(tmp_path, changes)) == DONE
    one, two = (tensors(tmp_path / "run", name) for name in students)
    assert not torch.equal(one["seed0.heads/conv.weight"], two["seed1.heads/conv.weight"])


# ---- wrong recipes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher=null"], r"students.resnet.objective.hint learns from a teacher, .* to null"),
        (
            ["students.resnet.objective.hint.student_stage=4"],
            r"students.resnet.objective.hint.student_stage: 4, and .*cifar_resnet8 has stages 0 to"
            r" 3 .*0: 16 x 16 x 16",
        ),
        (
            ["students.vit.objective.hint.teacher_stage=-5"],
            r"students.vit.objective.hint.teacher_stage: -5, and teacher cifar_resnet14",
        ),
        (["students.vit.objective.hint.loss=fitnets"], r"hint.loss: .*fitnet"),
        (["students.vit.objective.hint.distance=l3"], r"hint.distance"),
        (
            ["students.vit.objective.hard=null", "students.vit.objective.soft=null"],
            r"students.vit.objective: .*objective.hint alone trains no classifier",
        ),
    ],
)
def test_a_hint_that_cannot_be_is_refused_by_check_and_by_train(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, {"students": STUDENTS})
    with pytest.raises(InputError, match=message):
        check_recipe(load_recipe(recipe, overrides))
    with pytest.raises(InputError, match=message):
        run(recipe, *overrides)
    assert not (tmp_path / "run").exists()


def test_check_knows_the_stages_of_a_student_and_of_a_teacher_that_is_not_here(
    tmp_path: Path,
) -> None:
    recipe = write_recipe(
        tmp_path,
        {"students": STUDENTS, "teacher": {"weights": "nowhere.pth", "image_size": None}},
    )
    assert check_recipe(load_recipe(recipe))
    for side, model in (("student", "cifar_resnet8"), ("teacher", "cifar_resnet14")):
        key = f"students.resnet.objective.hint.{side}_stage"
        with pytest.raises(InputError, match=rf"{key}: 9, and .*{model} has stages"):
            check_recipe(load_recipe(recipe, [f"{key}=9"]))


def test_check_builds_a_teacher_that_is_not_here_for_the_size_of_its_arguments(
    tmp_path: Path,
) -> None:
    teacher = {
        "model": "vit_tiny_patch16_224",
        "weights": "nowhere.pth",
        "image_size": None,
        "model_args": {"img_size": 64, "depth": 2},
    }
    recipe = write_recipe(tmp_path, {"students": STUDENTS, "teacher": teacher})
    changes = ["students.resnet.objective.hint.teacher_stage=1"]
    changes.append("students.vit.objective.hint.teacher_stage=0")
    assert check_recipe(load_recipe(recipe, changes))


def test_a_student_that_drops_tokens_has_no_map(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"students": STUDENTS})
    override = "students.vit.model_args.patch_drop_rate=0.5"
    message = r"students.vit.objective.hint: .*test_vit drops tokens"
    with pytest.raises(InputError, match=message):
        check_recipe(load_recipe(recipe, [override]))
    with pytest.raises(InputError, match=message):
        run(recipe, override)


def test_a_stopped_student_is_reported_as_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a run that resumed in a later stage, which has no hint."""
    changes = staged(HINT, None)
    changes["students"] = {
        "one": changes["students"]["one"],
        "bad": {"schedule": {"name": "step", "milestones": ["1 iterations"], "decay_factor": 1e30}},
    }
    assert run(write_recipe(tmp_path, changes, name="whole")) == DONE
    recipe = write_recipe(tmp_path, changes)
    with monkeypatch.context() as patch:
        stop_after(6, patch)
        assert run(recipe) == INTERRUPTED
    assert run(recipe) == DONE
    one, two = (report(tmp_path / name)["students"]["bad"] for name in ("whole", "run"))
    assert one["stopped_at"] is not None
    assert one["stopped_at"] <= 4
    assert one["parameters_of_heads"] > 0
    assert one == two


def test_zero_refuses_heads_that_change_between_stages(tmp_path: Path) -> None:
    changes = staged(HINT, OTHER)
    changes["students"]["one"]["optimizer"] = {"name": "adamw", "lr": 1e-3}
    recipe = write_recipe(tmp_path, changes)
    with pytest.raises(
        InputError, match=r"stages.second.students.one.objective.hint: .*zero_stage"
    ):
        load_recipe(recipe, ["train.zero_stage=2"])
