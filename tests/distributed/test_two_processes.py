"""Two processes compute what one does: weights, optimizers, averages, statistics, losses,
accuracies; and they end together.

One launch of `driver.py` makes all the runs of two processes (the imports cost more than the runs),
while this process makes those of one. What must be equal bit for bit is compared so; elsewhere only
the order of additions differs, and the bound is stated.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from imagenet_sets import build, export_model
from launch import Launch, deviation
from tiny import (
    EVERYTHING,
    assert_equal_but_statistics,
    best,
    checkpoint,
    records,
    report,
    run,
    stop_after,
    tensors,
    write_recipe,
)

from distill.release.evaluate import evaluate_models
from distill.release.similarity.compare import Choice, compare_models
from distill.training.loop import DONE, INTERRUPTED

STUDENTS = {
    **EVERYTHING["students"],
    # timm's BatchNormAct2d, squeeze-and-excitation, drop path between BatchNorms.
    "effnet": {
        "model": "test_efficientnet",
        "drop_path": 0.3,
        "seed": 3,
        "optimizer": {"name": "momentum", "lr": 0.01},
        "objective": {"hard": {"loss": "ce"}, "soft": {"loss": "dist"}},
        "ema": {"decays": [0.8]},
    },
    # Heads with BatchNorm, from a feature map of the teacher larger than the student's.
    "fitnet": {
        "seed": 4,
        "drop_path": 0.2,
        "optimizer": {"name": "lamb", "lr": 5e-3, "weight_decay": 0.02, "clip_grad_norm": 1.0},
        "objective": {"hard": {"loss": "ce"}, "hint": {"loss": "fitnet", "student_stage": -1}},
        "ema": {"decays": [0.5]},
    },
    "fitnet-vit": {
        **EVERYTHING["students"]["adamw"],
        "objective": {
            "soft": {"loss": "kl"},
            "hint": {"loss": "fitnet", "distance": "l1", "weight": 3.0},
        },
    },
    # No classifier, and a last norm that the loss does not read.
    "backbone": {
        **EVERYTHING["students"]["adamw"],
        "objective": {"hard": None, "hint": {"loss": "feature", "level": "dense"}},
    },
    # Relations of all samples of a micro-batch; those of neighbours depend on their order.
    "rkd": {"objective": {"hard": {"loss": "ce"}, "hint": {"loss": "rkd", "weight": 0.1}}},
    "cc": {"objective": {"hard": {"loss": "ce"}, "hint": {"loss": "cc", "weight": 5.0}}},
    # BatchNorm of pooled features, and of maps before an activation.
    "reviewkd": {
        "objective": {"hard": {"loss": "ce"}, "hint": {"loss": "reviewkd", "warmup_epochs": 0}}
    },
}
# Two forwards a step in one process, one in each of two.
MICRO = {"students": STUDENTS}
# The whole batch at once: BatchNorm and DIST look at the samples of all processes. Few steps, since
# small networks amplify the rounding of every step. Dropout proper draws once a forward, so here it
# would be another draw.
SYNCED = {
    "students": {name: {**student, "drop_rate": 0.0} for name, student in STUDENTS.items()},
    "train": {"micro_batch_size": None, "budget": "4 iterations"},
}
# Two forwards a step on each of two processes, four in one.
QUARTERS = {"students": STUDENTS, "train": {"micro_batch_size": 4, "budget": "4 iterations"}}
# The hint ends, and another begins: DDP wraps the model with other heads, in which BatchNorm sees
# the samples of both processes. The optimizer state of the model stays.
HINTS: dict[str, Any] = {
    "train": {"budget": None, "micro_batch_size": None},
    "students": {"fitnet": {**STUDENTS["fitnet"], "objective": {"hard": {"loss": "ce"}}}},
    "stages": [
        {
            "name": name,
            "budget": "2 iterations",
            "student": {"objective": {"hint": hint}},
        }
        for name, hint in (
            ("middle", {"loss": "fitnet"}),
            ("none", None),
            ("last", {"loss": "fitnet", "student_stage": -1, "teacher_stage": -1}),
        )
    ],
}
# A mean of two teachers and a loss of each, over the samples of both processes, and a teacher
# without classes, whose weights the two processes partition.
TEACHERS: dict[str, Any] = {
    "teacher": None,
    "teachers": {
        "big": {"model": "cifar_resnet14", "weights": "random", "image_size": 16},
        "wide": {
            "model": "test_vit",
            "weights": "random",
            "image_size": 32,
            "model_args": {"patch_size": 8},
        },
        "dino": {
            "model": "vit_small_patch14_dinov2",
            "weights": "random",
            "image_size": 28,
            "model_args": {"depth": 2, "embed_dim": 32, "num_heads": 2},
            "placement": "zero3",
        },
    },
    "train": {"micro_batch_size": None, "budget": "3 iterations"},
    "student": {"objective": {"hard": {"loss": "ce"}, "soft_teachers": {"big": 2, "wide": 1}}},
    "students": {
        "mean": {"objective": {"soft": {"loss": "kl", "temperature": 2.0}}},
        "losses": {"objective": {"soft": {"loss": "dist"}, "combine": "losses"}},
        "backbone": {
            "model": "test_vit",
            "model_args": {"patch_size": 4},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "objective": {
                "hard": None,
                "hint": {"loss": "feature", "level": "dense"},
                "hint_teacher": "dino",
            },
        },
    },
}
# Bound on `deviation` where sums are taken in another order. Measured: up to 2e-3 for the
# EfficientNet, whose BatchNorm and DIST see four samples at a time, 1e-4 for the others.
ROUNDING = 1e-2
DIVERGING = {
    "students": {
        "sound": {},
        "bad": {"schedule": {"name": "step", "milestones": ["4 iterations"], "decay_factor": 1e30}},
    }
}


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Everything that two processes do, and beside it what one does: "micro-1" is the run of one,
    "micro-2" that of two.
    """
    folder = tmp_path_factory.mktemp("two")
    launch = Launch(folder)

    def recipe(name: str, *changes: dict[str, Any]) -> Path:
        return write_recipe(folder, EVERYTHING, *changes, name=name)

    pairs = (
        ("micro", MICRO),
        ("synced", SYNCED),
        ("quarters", QUARTERS),
        ("diverging", DIVERGING),
        ("hints", HINTS),
        ("teachers", TEACHERS),
    )
    for name, changes in pairs:
        launch.add(name, recipe(f"{name}-2", changes))
    # Stopped in the middle of an epoch and, where an evaluation is due, at the end.
    for name, changes, step in (
        ("micro", MICRO, 5),
        ("synced", SYNCED, 3),
        ("evaluated", MICRO, 8),
    ):
        path = recipe(f"{name}-1-to-2", changes)
        with pytest.MonkeyPatch.context() as monkeypatch:
            stop_after(step, monkeypatch)
            assert run(path) == INTERRUPTED
        launch.add(f"{name}-1-to-2", path)
        launch.add(f"{name}-2-to-1", recipe(f"{name}-2-to-1", changes), stop_rank=1, stop_step=step)
    damaged = recipe("damaged", {"students": {"alone": {}}, "train": {"budget": "1 iterations"}})
    assert run(damaged) == DONE
    (checkpoint(folder / "damaged") / "state.json").write_text("{}")
    launch.add("damaged", damaged)
    launch.add("complete", recipe("diverging-2", DIVERGING))  # the same command again
    export = export_model(folder / "export")
    build(folder / "sets", export)
    evaluate = ["evaluate", export, "--sets", "val,real,a", "--root", folder / "sets"]
    # 60 images: the last batch of the second process is half empty.
    launch.command("sets", *evaluate, "--batch-size", 8, "--json", folder / "sets-2.json")
    # Four minibatches: of 16, 16, 16 and 5 images.
    pair = ["similarity", export, export_model(folder / "other", seed=1), "--num-workers", 0]
    pair += ["--data", "fashion_mnist", "--images", 53, "--batch-size", 16]
    launch.command("layers", *pair, "-o", folder / "layers-2")

    launch.start()
    try:
        for name, changes in pairs:
            assert run(recipe(f"{name}-1", changes)) == DONE
    finally:
        launch.finish()
    yield launch
    shutil.rmtree(folder)


def losses(output: Path) -> torch.Tensor:
    """[steps, students] total loss."""
    lines = [line["students"] for line in records(output) if line["event"] == "train"]
    return torch.tensor([[figures["loss_total"] for figures in line.values()] for line in lines])


def test_micro_batches_on_two_processes_are_those_of_one(launch: Launch) -> None:
    """Weights and optimizers bit for bit (a sum of two gradients has one order); running statistics
    within their rounding.
    """
    assert launch.codes("micro") == [DONE, DONE]
    one, two = (tensors(launch.folder / f"micro-{n}") for n in (1, 2))
    assert_equal_but_statistics(two, one)
    assert torch.allclose(
        losses(launch.folder / "micro-1"), losses(launch.folder / "micro-2"), rtol=1e-6
    )


def test_each_process_accumulates_its_share(launch: Launch) -> None:
    assert launch.codes("quarters") == [DONE, DONE]
    apart = deviation(
        launch.folder / "quarters-1",
        launch.folder / "quarters-2",
        launch.folder / "quarters-1.yaml",
    )
    assert max(apart.values()) < ROUNDING
    assert torch.allclose(
        losses(launch.folder / "quarters-1"), losses(launch.folder / "quarters-2"), rtol=1e-3
    )


def test_synchronised_statistics_and_gathered_relations_are_those_of_one_process(
    launch: Launch,
) -> None:
    assert launch.codes("synced") == [DONE, DONE]
    apart = deviation(
        launch.folder / "synced-1", launch.folder / "synced-2", launch.folder / "synced-1.yaml"
    )
    assert max(apart.values()) < ROUNDING
    assert torch.allclose(
        losses(launch.folder / "synced-1"), losses(launch.folder / "synced-2"), rtol=1e-3
    )
    assert "Warning" not in "".join(launch.shown("synced"))


def test_heads_that_begin_and_end_with_stages_are_those_of_one_process(launch: Launch) -> None:
    assert launch.codes("hints") == [DONE, DONE], launch.shown("hints")
    apart = deviation(
        launch.folder / "hints-1", launch.folder / "hints-2", launch.folder / "hints-1.yaml"
    )
    assert max(apart.values()) < ROUNDING
    one, two = (tensors(launch.folder / f"hints-{n}") for n in (1, 2))
    assert len([name for name in one if ".heads/" in name]) == 6
    assert one["fitnet.ema-0.5/bn1.num_batches_tracked"] == 6, "the average follows the model"
    for name, tensor in one.items():
        if not name.startswith("fitnet.optimizer/"):
            torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    counted = {n: t for n, t in one.items() if n.endswith("/step")}
    assert {n: int(t) for n, t in counted.items()} == {n: int(two[n]) for n in counted}


def test_several_teachers_are_those_of_one_process(launch: Launch) -> None:
    assert launch.codes("teachers") == [DONE, DONE], launch.shown("teachers")
    apart = deviation(
        launch.folder / "teachers-1",
        launch.folder / "teachers-2",
        launch.folder / "teachers-1.yaml",
    )
    assert max(apart.values()) < ROUNDING
    assert torch.allclose(
        losses(launch.folder / "teachers-1"), losses(launch.folder / "teachers-2"), rtol=1e-3
    )
    by_one, by_two = (report(launch.folder / f"teachers-{n}") for n in (1, 2))
    assert by_one["teachers"].keys() == {"teacher/big", "teacher/wide"}
    for name, figures in by_one["teachers"].items():
        assert figures["top1"] == by_two["teachers"][name]["top1"]
    for name in ("mean", "losses"):
        ours, theirs = (each["students"][name]["last"] for each in (by_one, by_two))
        assert ours["teacher_kl"] == pytest.approx(theirs["teacher_kl"], rel=1e-3)


@pytest.mark.parametrize("name", ["micro", "synced"])
def test_a_run_continues_with_another_number_of_processes(name: str, launch: Launch) -> None:
    assert launch.codes(f"{name}-1-to-2") == [DONE, DONE]
    assert run(launch.folder / f"{name}-2-to-1.yaml") == DONE
    whole = launch.folder / f"{name}-1"
    for changed in (f"{name}-1-to-2", f"{name}-2-to-1"):
        apart = deviation(whole, launch.folder / changed, launch.folder / f"{name}-1.yaml")
        assert max(apart.values()) < (1e-5 if name == "micro" else ROUNDING)
        assert torch.allclose(losses(whole), losses(launch.folder / changed), rtol=1e-3)
        assert [line["step"] for line in records(whole)] == [
            line["step"] for line in records(launch.folder / changed)
        ]


def test_a_signal_to_one_rank_stops_both_at_the_same_step(launch: Launch) -> None:
    for name, step in (("micro-2-to-1", 5), ("synced-2-to-1", 3), ("evaluated-2-to-1", 8)):
        assert launch.codes(name) == [INTERRUPTED, INTERRUPTED]
        shown = launch.shown(name)
        assert f"a signal: stopped after step {step}, saved in" in shown[0], (
            "rank 0 was told by rank 1"
        )
        assert "stopped after step" not in shown[1]


def test_sets_of_imagenet_have_the_same_counts(launch: Launch) -> None:
    assert launch.codes("sets") == [DONE, DONE]
    by_two = json.loads((launch.folder / "sets-2.json").read_text())["sets"]
    by_one = evaluate_models(
        launch.folder / "export", sets="val,real,a", root=launch.folder / "sets", num_workers=0
    )
    assert list(by_two) == list(by_one.sets) == ["val", "real", "a", "a-clean"]
    for name, of_set in by_one.sets.items():
        one, two = of_set.scores["export"], by_two[name]["models"]["export"]
        for key in ("top1", "top5", "num_samples", "num_skipped"):
            assert two[key] == getattr(one, key), (name, key)
        assert two["ece"] == pytest.approx(one.ece, abs=1e-6)


def test_layers_are_as_similar(launch: Launch) -> None:
    assert launch.codes("layers") == [DONE, DONE]
    by_two = json.loads((launch.folder / "layers-2/similarity.json").read_text())
    by_one = compare_models(
        Choice(str(launch.folder / "export")),
        [Choice(str(launch.folder / "other"))],
        launch.folder / "layers-1",
        data="fashion_mnist",
        num_images=53,
        batch_size=16,
        num_workers=0,
    )
    assert by_two["num_images"] == by_one.num_images == 53
    values = torch.tensor(by_two["pairs"][0]["cka"])
    torch.testing.assert_close(values, torch.tensor(by_one.pairs[0].cka), rtol=0, atol=1e-6)
    assert values.max() - values.min() > 0.1
    shown = launch.shown("layers")
    assert "most similar" in shown[0]
    assert shown[1] == ""


def test_an_odd_set_is_evaluated_alike(launch: Launch) -> None:
    """One process trains weights; one and two evaluate them: integer counts, so equal to the last
    bit.
    """
    assert launch.codes("evaluated-1-to-2") == [DONE, DONE]
    by_two, by_one = (report(launch.folder / name) for name in ("evaluated-1-to-2", "micro-1"))
    assert by_two["students"].keys() == by_one["students"].keys()
    for name, student in by_one["students"].items():
        if name == "backbone":
            assert student["last"] is None
            continue
        pairs = [(student["last"], by_two["students"][name]["last"])]
        pairs += [
            (student["averages"][key], by_two["students"][name]["averages"][key])
            for key in student["averages"]
        ]
        for one, two in pairs:
            for figure in ("top1", "top5", "agreement", "num_samples"):
                assert one[figure] == two[figure]
            assert one["loss"] == pytest.approx(two["loss"], rel=1e-9)
        assert student["best"] == by_two["students"][name]["best"]
    assert by_one["teacher"]["top1"] == by_two["teacher"]["top1"]


def test_a_student_that_diverges_stops_on_both_ranks_at_the_same_step(launch: Launch) -> None:
    assert launch.codes("diverging") == [DONE, DONE]
    for output in ("diverging-1", "diverging-2"):
        assert report(launch.folder / output)["students"]["bad"]["stopped_at"] == 6
        stops = [line for line in records(launch.folder / output) if line["event"] == "stopped"]
        assert stops == [{"event": "stopped", "step": 6, "student": "bad"}]
    assert launch.shown("diverging")[0].count("the loss of step 6 is not finite") == 1
    one, two = (tensors(launch.folder / f"diverging-{n}", "sound") for n in (1, 2))
    assert torch.equal(one["sound.model/conv1.weight"], two["sound.model/conv1.weight"])
    assert best(launch.folder / "diverging-2", "bad")[1]["step"] == 3


def test_what_is_wrong_on_the_main_process_ends_both_with_one_message(launch: Launch) -> None:
    assert launch.codes("damaged") == [2, 2]
    shown = launch.shown("damaged")
    assert "all checkpoints are damaged" in shown[0]
    assert shown[1] == ""


def test_a_complete_run_is_reported_again(launch: Launch) -> None:
    assert launch.codes("complete") == [DONE, DONE]
    assert "this run is complete" in launch.shown("complete")[0]
    assert launch.shown("complete")[1] == ""
