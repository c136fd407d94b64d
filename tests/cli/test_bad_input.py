"""Bad input through the real command line: one clear line that names the key or file and the fix,
exit code 2, nothing lost.
"""

import errno
import hashlib
import importlib.util
import json
import os
import pickle
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from bad_input_cases import RECIPES, Case, train
from bad_input_elsewhere import DATA, FINISHED, MACHINE, MODELS
from command import Cli, Outcome
from PIL import Image

from distill.__main__ import explain_error
from distill.data.loading.rank_slice import TrainBuilder
from distill.recipe import Recipe, load_recipe
from distill.training.summary import Summary

CASES = (RECIPES, DATA, MODELS, MACHINE, FINISHED)
ALL = {name: case for cases in CASES for name, case in cases.items()}
assert len(ALL) == sum(map(len, CASES))

CLASSES = ("ant", "bee", "cow")
IMAGES_A_CLASS = 16

BASE = """
name: folder
data:
  root: good
  train: {kind: image_folder, path: train}
  eval: {kind: image_folder, path: val}
  image_size: 16
  num_workers: 0
  augment: {crop: none}
train: {budget: 3 iterations, batch_size_global: 16, micro_batch_size: 8}
student:
  model: cifar_resnet8
  optimizer: {name: sgd, lr: 0.05}
  objective: {hard: {loss: ce}}
students:
  one: {}
"""


class Payload:
    """Runs code when unpickled: makes the file PAYLOAD_RAN in the working directory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("PAYLOAD_RAN",)


def image_folder(root: Path, classes: tuple[str, ...], count: int) -> None:
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02d}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Path:
    """A folder with good and bad input of every kind. Tests read it, or write below `out/`."""
    root = tmp_path_factory.mktemp("place")
    image_folder(root / "good/train", CLASSES, IMAGES_A_CLASS)
    image_folder(root / "good/val", CLASSES, 3)
    image_folder(root / "other/val", ("ant", "bee", "dog"), 2)
    shutil.copytree(root / "good/train", root / "hole/train")
    shutil.rmtree(root / "hole/train/cow")
    (root / "hole/train/cow").mkdir()
    shutil.copytree(root / "good", root / "broken")
    cut = root / "broken/train/bee/03.png"
    cut.write_bytes(cut.read_bytes()[:300])
    (root / "broken/train/ant/05.png").write_bytes(b"")
    (root / "nothing").mkdir()
    (root / "file").write_text("precious")
    (root / "recipe.yaml").write_text(BASE)
    torch.save({"state_dict": {"a": torch.ones(1)}, "x": Payload()}, root / "evil.pth")
    (root / "evil_plain.pth").write_bytes(pickle.dumps(Payload()))
    (root / "junk.pth").write_bytes(b"not a checkpoint" * 20)
    (root / "junk.parquet").write_bytes(b"not a table" * 20)
    (root / "syntax.yaml").write_text("name: [x\nfoo: }\n")
    (root / "list.yaml").write_text("- a\n- b\n")
    (root / "empty.yaml").write_text("")
    (root / "noise.yaml").write_bytes(bytes(range(128, 256)))
    (root / "twice.yaml").write_text(BASE + "seed: 1\nseed: 2\n")
    (root / "no_students.yaml").write_text(BASE.replace("students:\n  one: {}", "students: {}"))
    (root / "list_students.yaml").write_text(BASE.replace("  one: {}", "  - one"))
    (root / "extends_none.yaml").write_text(f"extends: nowhere.yaml\n{BASE}")
    (root / "extends_number.yaml").write_text(f"extends: 3\n{BASE}")
    (root / "names.txt").write_text("ant\nbee\nant\n")
    shutil.copytree(tiny_run, root / "run")
    shutil.copytree(tiny_run, root / "damaged")
    weights = root / "damaged/best/kd/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (root / "damaged/best/alone/config.json").write_text("{")
    (root / "damaged/best/vit/distill.json").write_text("{")
    (root / "damaged/report.json").write_text("{")
    newest = max((root / "damaged/checkpoints").iterdir()) / "kd.model.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    (root / "stopped_early").mkdir()
    shutil.copy(root / "run/recipe.yaml", root / "stopped_early")
    (root / "unreadable_run").mkdir()
    shutil.copy(root / "syntax.yaml", root / "unreadable_run/recipe.yaml")
    return root


def digest_of(folder: Path) -> str:
    """Every file below a folder, by name and content."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(p).encode() + p.read_bytes() for p in files)).hexdigest()


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands run in `place`, as a user's would; what was there before is there afterwards, byte
    for byte.
    """
    monkeypatch.chdir(place)
    before = digest_of(place)
    yield
    shutil.rmtree(place / "out", ignore_errors=True)
    assert digest_of(place) == before
    assert not (place / "PAYLOAD_RAN").exists()


def refused(outcome: Outcome, *needles: str) -> None:
    """Exit code 2, a short message on stderr with all of `needles`; on stdout the header of a run
    at most.
    """
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.out + outcome.err
    assert "Warning" not in outcome.err
    assert all(line.startswith("  ") for line in outcome.out.splitlines()[1:]), outcome.out
    for needle in needles:
        assert needle in outcome.err, outcome.err
    assert outcome.err.startswith("distill: ")
    assert len(outcome.err.splitlines()) <= 12, outcome.err


# ---- what is known before training ---------------------------------------------------------------


@pytest.mark.parametrize("case", ALL.values(), ids=ALL.keys())
def test_bad_input_is_one_clear_message(
    case: Case, cli: Cli, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    # Whatever a developer's machine has in its cache or has installed:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "wandb" else find_spec(name, *a),
    )
    refused(cli(*case.command), *case.says)
    assert not (place / "out").exists(), "training had begun before the input was refused"


@pytest.mark.parametrize("start", [["train"], ["recipe", "check"]], ids=str)
def test_zero_without_deepspeed_says_what_to_install(
    start: list[str], cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # as where it is not installed
    sharded = "teacher={model: test_vit, weights: random, placement: zero3}"
    outcome = cli(*start, *train("train.zero_stage=1", sharded)[1:])
    refused(
        outcome,
        "train.zero_stage and teacher.placement: the package deepspeed is not installed",
        "pip install 'vanillakd[deepspeed]', or set train.zero_stage: 0",
    )
    assert not (place / "out").exists()


# ---- what only training can know -----------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_image_ends_the_run_by_its_path(cli: Cli, num_workers: int) -> None:
    outcome = cli(*train("data.root=broken", "data.eval=null", f"data.num_workers={num_workers}"))
    refused(outcome, "broken/train/", "unreadable image", "set data.unreadable to skip")


def test_an_unreadable_image_is_skipped_and_counted_where_asked(cli: Cli, place: Path) -> None:
    outcome = cli(*train("data.root=broken", "data.unreadable=skip", "data.eval.path=../good/val"))
    assert outcome.code == 0, outcome
    assert "2 unreadable images skipped" in outcome.out  # three steps of 16 are one epoch of the 48
    assert json.loads((place / "out/report.json").read_text())["num_skipped"] == 2


def test_an_unreadable_image_in_an_evaluation(cli: Cli, place: Path) -> None:
    assert cli(*train("data.eval=null")).code == 0
    command = ["evaluate", "out", "--data", "broken/train", "--num-workers", "0"]
    refused(cli(*command), "broken/train/ant/05.png: unreadable image", "give --unreadable skip")
    outcome = cli(*command, "--unreadable", "skip")
    assert outcome.code == 0
    assert "out: 46 images, 2 unreadable skipped" in outcome.out


def test_a_run_without_its_data_can_be_evaluated_on_other_data(cli: Cli, place: Path) -> None:
    assert cli(*train()).code == 0
    (place / "good").rename(place / "moved")
    try:
        refused(cli("evaluate", "out"), "data.eval.path: good/val does not exist", "--data")
        assert cli("evaluate", "out", "--data", "moved/val", "--num-workers", "0").code == 0
    finally:
        (place / "moved").rename(place / "good")


def test_another_class_order_gives_the_same_scores(cli: Cli, place: Path, tmp_path: Path) -> None:
    assert cli(*train("data.eval=null")).code == 0
    (tmp_path / "order.txt").write_text("bee\nant\ncow\n")
    evaluate = ("evaluate", "out", "--data", "good/val", "--num-workers", "0")
    as_sorted = cli(*evaluate)
    reordered = cli(*evaluate, "--classes", tmp_path / "order.txt")
    assert "matched by name: bee = 1, ant = 0, cow = 2" in reordered.out
    tables = (outcome.out.partition("weights")[2] for outcome in (as_sorted, reordered))
    # Without the last column, images/s.
    table = [re.sub(r" +[\d.]+$", "", each, flags=re.MULTILINE) for each in tables]
    assert "top-1 %" in table[0]
    assert table[0] == table[1]


# ---- faults that are not the input's -------------------------------------------------------------


def test_a_disk_that_fills_up_anywhere_is_one_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Summary, **_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk/report.json")

    monkeypatch.setattr(Summary, "write", full)
    outcome = cli(*train("data.eval=null"))
    assert outcome.code == 2
    assert outcome.err == "distill: /disk/report.json: No space left on device\n"


@pytest.mark.parametrize("option", ["output", "name"])
def test_a_path_that_is_too_long_is_one_line(option: str, cli: Cli) -> None:
    outcome = cli("train", "recipe.yaml", f"{option}={'x' * 300}")
    assert outcome.code == 2
    assert outcome.err.endswith("x: File name too long\n")
    assert outcome.err.count("\n") == 1


def fault_in_worker(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Let `act` happen in the worker that prepares the second batch."""
    build = TrainBuilder._build

    def built(self: TrainBuilder, step: int, micro: int) -> Any:
        if step == 1:
            act()
        return build(self, step, micro)

    monkeypatch.setattr(TrainBuilder, "_build", built)


def test_a_fault_in_a_worker_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong() -> None:
        raise KeyError("nowhere")

    fault_in_worker(monkeypatch, wrong)
    outcome = cli(*train("data.eval=null", "data.num_workers=1"))
    assert outcome.code == 1
    assert "a fault in a process that decodes images: KeyError: 'nowhere'" in outcome.err
    assert "test_bad_input.py, line" in outcome.err
    assert "Traceback" not in outcome.err


def test_the_death_of_a_worker_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    fault_in_worker(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL))
    outcome = cli(*train("data.eval=null", "data.num_workers=1"))
    assert outcome.code == 1
    assert "a process that decodes images" in outcome.err
    assert "data.num_workers" in outcome.err
    assert "Traceback" not in outcome.err


def test_the_end_of_another_process_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """As gloo says it when a peer is gone (its own words, of torch 2.15)."""

    def gone(self: Summary, **_: object) -> None:
        raise RuntimeError(
            "[/pytorch/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:5412"
        )

    monkeypatch.setattr(Summary, "write", gone)
    with pytest.raises(RuntimeError):
        cli(*train("data.eval=null"))  # alone it has no peers: a fault
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert explain_error(RuntimeError("Connection closed by peer [127.0.0.1]:5412")) == (
        (
            "another process of this run has ended: see its own message, unless it was killed"
            " (often because memory ran out). Seen here: Connection closed by peer [127.0.0.1]:5412"
        ),
        1,
    )
    assert explain_error(RuntimeError("anything else")) is None


def test_other_faults_keep_their_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Summary, **_: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(Summary, "write", wrong)
    with pytest.raises(KeyError, match="ours"):
        cli(*train("data.eval=null"))


def test_the_traceback_of_bad_input_can_be_asked_for(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown key"):
        cli(*train("train.zzz=1"))


def test_the_base_of_these_cases_trains(cli: Cli) -> None:
    assert cli(*train()).code == 0
    assert isinstance(load_recipe("recipe.yaml"), Recipe)
    assert yaml.safe_load(BASE)["train"]["batch_size_global"] < len(CLASSES) * IMAGES_A_CLASS
