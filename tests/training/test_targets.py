"""Stored targets: a run from a store is the run behind the teacher; other stores are refused."""

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Cli
from safetensors.torch import load_file
from tiny import (
    EVERYTHING,
    assert_equal_tensors,
    assert_same_run,
    records,
    relative_difference,
    run,
    stop_after,
    tensors,
    write_recipe,
)

import distill.training.targets
import distill.training.write_targets
from distill.errors import InputError
from distill.models.teacher import Teacher
from distill.recipe import load_recipe
from distill.training.check import check_recipe
from distill.training.loop import DONE, INTERRUPTED
from distill.training.write_targets import write_targets

# 7 steps an epoch: 16 steps are 3 epochs, of which the last one has 2.
THREE: dict[str, Any] = {"train": {"budget": "16 iterations"}}
SMALL: dict[str, Any] = {
    "students": {"kd": {"objective": {"soft": {"loss": "kl", "temperature": 2.0}}}},
    "train": {"budget": "4 iterations"},
}


def files_of(folder: Path) -> dict[str, bytes]:
    """The store without its lock."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != ".lock"}


def write(recipe: Path, *overrides: str, **options: Any) -> int:
    return write_targets(load_recipe(recipe, overrides), **options)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with all that is random, mixed and repeated images too, and its store."""
    folder = tmp_path_factory.mktemp("everything")
    recipe = write_recipe(folder, EVERYTHING)
    assert write(recipe, f"targets={folder / 'store'}", keep="all") == 0
    return recipe


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of one student with `targets`, and its store of 3 of 10 logits."""
    folder = tmp_path_factory.mktemp("small")
    recipe = write_recipe(folder, SMALL, {"targets": str(folder / "store")})
    assert write(recipe, keep=3) == 0
    return recipe


@pytest.fixture
def no_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher that is built is an error."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a teacher was built")

    monkeypatch.setattr(Teacher, "__init__", refuse)


@pytest.mark.slow
def test_a_run_from_all_logits_is_the_run_behind_the_teacher(
    everything: Path, tmp_path: Path
) -> None:
    live, stored, split = (tmp_path / name for name in ("live", "stored", "split"))
    assert run(everything, f"output={live}") == DONE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teacher, "__init__", None)
        arguments = (f"targets={everything.parent / 'store'}",)
        assert run(everything, f"output={stored}", *arguments) == DONE
        stop_after(3, patch)
        assert run(everything, f"output={split}", *arguments) == INTERRUPTED
        assert run(everything, f"output={split}", *arguments) == DONE
    assert_equal_tensors(tensors(live), tensors(stored))
    assert_same_run(stored, split)
    losses = [
        [line for line in records(output) if line["event"] == "train"] for output in (live, stored)
    ]
    assert losses[0] == losses[1]
    # The licence of the teacher may bind the students: exports say the same of it.
    recorded = [
        json.loads((output / "best/lamb/distill.json").read_text())["teacher"]
        for output in (live, stored)
    ]
    assert recorded[0] == recorded[1]


def test_the_largest_logits_train_without_a_teacher(
    small: Path, tmp_path: Path, no_teacher: None, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert run(small, f"output={output}") == DONE
    warning = "its gradient is far from the teacher's"  # the rest is spread evenly
    assert warning in " ".join(capsys.readouterr().out.split())
    assert (
        run(small, f"output={tmp_path / 'one'}", "students.kd.objective.soft.temperature=1") == DONE
    )
    assert warning not in " ".join(capsys.readouterr().out.split())
    report = json.loads((output / "report.json").read_text())
    assert report["teacher"] is None  # nothing evaluates it
    assert report["origins"]["teacher"]["weights"] == "random weights"
    assert report["views"]["teacher"]["image_size"] == 16
    soft = [
        line["students"]["kd"]["loss_soft"] for line in records(output) if line["event"] == "train"
    ]
    assert len(soft) == 4


@pytest.mark.slow
def test_more_logits_are_nearer_to_the_teacher(small: Path, tmp_path: Path) -> None:
    assert run(small, f"output={tmp_path / 'live'}", "targets=null") == DONE
    live = {k: v for k, v in tensors(tmp_path / "live", "kd").items() if "model" in k}
    gaps = []
    for keep in (1, 9):
        store, output = tmp_path / f"store{keep}", tmp_path / f"run{keep}"
        assert write(small, f"targets={store}", keep=keep) == 0
        assert run(small, f"targets={store}", f"output={output}") == DONE
        found = {k: v for k, v in tensors(output, "kd").items() if "model" in k}
        gaps.append(relative_difference(found, live))
    assert 0 < gaps[1] < gaps[0]
    assert gaps[1] < 0.1  # small networks amplify the rounding to fp16


@pytest.mark.slow
def test_bf16_teachers_are_stored_in_two_bytes(small: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    arguments = ("teacher.dtype=bf16", f"output={tmp_path / 'stored'}")
    assert write(small, *arguments, f"targets={store}", keep="all") == 0
    logits = load_file(store / "epoch-00000-part-00000")["logits"]
    assert (logits.dtype, tuple(logits.shape)) == (torch.bfloat16, (112, 10))
    assert run(small, *arguments, f"targets={store}") == DONE
    live = (arguments[0], f"output={tmp_path / 'live'}")
    assert run(small, *live, "targets=null") == DONE
    assert_equal_tensors(tensors(tmp_path / "stored"), tensors(tmp_path / "live"))


# ---- the writer ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stopped_writer_resumes_to_the_same_bytes(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert write(small, f"targets={whole}", "train.budget=4 epochs", keep=3) == 0
    names = sorted(files_of(whole))
    assert names == [*(f"epoch-0000{epoch}-part-00000" for epoch in range(4)), "manifest.json"]
    calls, forward = 0, Teacher.forward

    def counted(self: Teacher, images: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 20:  # of 14 in a shard: in the second one
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, images)

    monkeypatch.setattr(Teacher, "forward", counted)
    capsys.readouterr()
    assert write(small, f"targets={stopped}", "train.budget=4 epochs", keep=3) == INTERRUPTED
    assert "SIGTERM: 112 of 448 images written; the same command resumes" in capsys.readouterr().out
    assert sorted(files_of(stopped)) == [names[0], "manifest.json"]
    shutil.copy(stopped / names[0], stopped / names[2])  # a wrong shard is written again
    (stopped / ".tmp-epoch-00003-part-00000--host-1").write_bytes(b"half")
    assert write(small, f"targets={stopped}", "train.budget=4 epochs", keep=3) == 0
    out = capsys.readouterr().out
    assert "1 of 4 shards are complete" in out
    assert "it holds other rows: it is written again" in re.sub(r"\s+", " ", out)
    assert calls == 20 + 3 * 14
    assert files_of(stopped) == files_of(whole)


@pytest.mark.slow
def test_epochs_are_written_in_any_order(small: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert write(small, f"targets={whole}", keep=3, epochs=[0, 1, 2]) == 0
    for epochs in ([2], [0, 1]):
        assert write(small, f"targets={parts}", keep=3, epochs=epochs) == 0
    assert files_of(parts) == files_of(whole)


def test_the_numbers_are_printed_before_the_first_row(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise InputError("the first row")

    monkeypatch.setattr(distill.training.write_targets.TargetStore, "write", stop)
    with pytest.raises(InputError, match="the first row"):
        write(small, f"targets={tmp_path / 'store'}", keep=3)
    out = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "10 bytes an image; 112 images in 1 epochs, 1.12 kB" in out
    assert re.search(r"about \S+ hours, at [\d,]+ images/s on 1 x cpu", out)


def test_a_small_disk_is_refused(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"needs 1.12 kB more and its disk has 1 kB free"):
        write(small, f"targets={tmp_path / 'store'}", keep=3)


@pytest.mark.parametrize(
    ("overrides", "keep", "message"),
    [
        ((), 4, "has the 3 largest .* and the 4 largest .* asked for: give the same --keep"),
        (("seed=1",), 3, "seed: 0 in the store, 1 here"),
        (("train.micro_batch_size=16",), 3, "with 8 images in a forward.*micro_batch_size: 8"),
        (("teacher.model=cifar_resnet20",), 3, "teacher.model: .*cifar_resnet14.*cifar_resnet20"),
        ((), 10, "--keep 10: should be from 1 to 9"),
        (("teacher.placement=zero3",), 3, "set teacher.placement: replicated"),
        (("targets=.",), 3, "holds .* and no manifest.json"),
    ],
)
def test_another_store_is_not_overwritten(
    small: Path,
    overrides: tuple[str, ...],
    keep: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(small.parent)
    before = files_of(small.parent / "store")
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)):
        write(small, *overrides, keep=keep)
    assert files_of(small.parent / "store") == before


# ---- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("train.batch_size_global=8",), "train.batch_size_global: 16 in the store, 8 here"),
        (("data.pipeline=fast",), 'data.pipeline: "reference" in .* "fast" here.*simplejpeg'),
        (("data.image_size=24",), "data.image_size: 16 in the store, 24 here.*set these keys"),
        (("data.augment.padding=3",), "data.augment.padding: 2 in the store, 3 here"),
        (("data.fraction=0.03",), "data.fraction: 0.02 in the store, 0.03 here"),
        (("data.mixing.mixup=0.1",), "data.mixing.mixup: 0.0 in the store, 0.1 here"),
        (("seed=3",), "seed: 0 in the store, 3 here"),
        (("teacher.dtype=bf16",), "teacher.dtype: .*teacher: name the teacher of the store"),
        (("train.budget=8 iterations",), "lacks rows of epochs 2, and this run reads 2.*2"),
        (("targets=nothing",), "nothing is no store of targets"),
    ],
)
def test_a_store_of_other_rows_is_refused(
    small: Path, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)):
        run(small, f"output={tmp_path / 'run'}", *overrides)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_other_libraries_are_refused(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = distill.training.targets.metadata.version
    monkeypatch.setattr(
        distill.training.targets.metadata,
        "version",
        lambda name: "1.0" if name == "pillow" else version(name),
    )
    with pytest.raises(InputError, match=r"pillow: \S+ in the store, 1.0 here\n.*install these"):
        run(small, f"output={tmp_path / 'run'}")


def test_other_images_are_refused(small: Path, tmp_path: Path) -> None:
    from distill.training.plan import StagePlan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StagePlan, "_contents", {"training contents": "other"})
        with pytest.raises(InputError, match=r"training contents: .absent. in the store, other"):
            run(small, f"output={tmp_path / 'run'}")


@pytest.mark.slow
def test_a_damaged_shard_stops_the_run_which_then_resumes(small: Path, tmp_path: Path) -> None:
    store, output = tmp_path / "store", tmp_path / "run"
    budget, targets = "train.budget=8 iterations", f"targets={store}"
    assert write(small, targets, budget, keep=3) == 0
    path = store / "epoch-00001-part-00000"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"epoch-00001-part-00000: is damaged: its checksum"):
        run(small, targets, budget, f"output={output}")
    assert write(small, targets, budget, keep=3) == 0
    assert path.read_bytes() == content
    assert run(small, targets, budget, f"output={output}") == DONE
    assert run(small, targets, budget, f"output={tmp_path / 'straight'}") == DONE
    assert_equal_tensors(tensors(output), tensors(tmp_path / "straight"))


@pytest.mark.slow
def test_a_run_does_not_resume_with_another_store(small: Path, tmp_path: Path) -> None:
    output = f"output={tmp_path / 'run'}"
    assert run(small, output) == DONE
    assert write(small, f"targets={tmp_path / 'other'}", keep=2) == 0
    for targets in (f"targets={tmp_path / 'other'}", "targets=null"):
        with pytest.raises(InputError, match=r"targets \(SHA-256\): \w+ -> "):
            run(small, output, targets)
    moved = shutil.copytree(small.parent / "store", tmp_path / "moved")
    assert run(small, output, f"targets={moved}") == DONE


@pytest.mark.slow
def test_weights_may_move(small: Path, tmp_path: Path) -> None:
    """The teacher of a store may lie elsewhere, or be absent; another file is another teacher."""
    assert run(small, f"output={tmp_path / 'first'}") == DONE
    weights = tmp_path / "first/best/kd/model.safetensors"
    of = ("teacher.model=cifar_resnet8", f"targets={tmp_path / 'store'}")
    output = f"output={tmp_path / 'run'}"
    assert write(small, *of, f"teacher.weights={weights}", keep=3) == 0
    moved = tmp_path / "moved"
    shutil.copytree(weights.parent, moved)
    weights.unlink()
    assert run(small, *of, output, f"teacher.weights={weights}") == DONE
    assert run(small, *of, output, f"teacher.weights={moved}", "resume=never") == DONE
    content = bytearray((moved / weights.name).read_bytes())
    content[-1] ^= 1
    (moved / weights.name).write_bytes(content)
    with pytest.raises(InputError, match=r"teacher.weights, the file \(SHA-256\)"):
        run(small, *of, output, f"teacher.weights={moved}", "resume=never")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": None}, "teacher is null"),
        ({"teacher": None, "teachers": {"a": {"model": "resnet18"}}}, "one teacher"),
        (
            {"train": {"budget": None}, "stages": [{"name": "a", "budget": "2 epochs"}]},
            "no stages",
        ),
        (
            {"students": {"a": {"objective": {"hint": {"loss": "fitnet"}}}}},
            r"students.a.objective.hint: fitnet reads feature maps",
        ),
        ({"evaluate": {"metric": "agreement"}}, "evaluate.metric: agreement compares"),
        ({"data": {"train": {"kind": "stream", "path": "x-{0..3}.tar"}}}, "kind: stream"),
    ],
)
def test_recipes_that_a_store_cannot_serve(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    recipe = write_recipe(tmp_path, {"targets": "store"}, change)
    with pytest.raises(InputError, match=message):
        load_recipe(recipe)


def test_check_needs_no_teacher(small: Path, tmp_path: Path) -> None:
    recipe = load_recipe(small, [f"targets={tmp_path}/none", "teacher.weights=none.pth"])
    assert check_recipe(recipe).not_here == [f"targets: {tmp_path}/none is not here"]


# ---- the command ---------------------------------------------------------------------------------


def test_the_command(small: Path, tmp_path: Path, cli: Cli) -> None:
    store = tmp_path / "store"
    outcome = cli("targets", small, f"targets={store}", "--keep", "3", "--epochs", "2")
    assert outcome.code == 0, outcome.err
    assert sorted(files_of(store)) == ["epoch-00001-part-00000", "manifest.json"]
    outcome = cli("targets", small, "targets=null")
    assert (outcome.code, "name the folder of the store" in outcome.err) == (2, True)
    outcome = cli("targets", small, "--keep", "10")
    assert (outcome.code, "--keep 10" in outcome.err) == (2, True)
