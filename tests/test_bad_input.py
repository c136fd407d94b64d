"""Bad input through the real command line: one clear line that names the key or file and the mend, exit code 2, nothing lost."""

import errno
import hashlib
import importlib.util
import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Cli, Outcome
from PIL import Image

from distill.data.shard import TrainBuilder
from distill.recipe import Recipe, load_recipe
from distill.summary import Summary

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
    return root


def digest_of(folder: Path) -> str:
    """Every file below a folder, by name and content."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(p).encode() + p.read_bytes() for p in files)).hexdigest()


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands run in `place`, as a user's would; what was there before is there afterwards, byte for byte."""
    monkeypatch.chdir(place)
    before = digest_of(place)
    yield
    shutil.rmtree(place / "out", ignore_errors=True)
    assert digest_of(place) == before
    assert not (place / "PAYLOAD_RAN").exists()


def refused(outcome: Outcome, *needles: str) -> None:
    """Exit code 2, a short message on stderr with all of `needles`, nothing else."""
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.out + outcome.err
    assert "Warning" not in outcome.err
    assert outcome.out == ""
    for needle in needles:
        assert needle in outcome.err, outcome.err
    assert outcome.err.startswith("distill: ")
    assert len(outcome.err.splitlines()) <= 12, outcome.err


@dataclass
class Case:
    """A command, and what its message must say. `environment` is set while it runs."""

    command: list[str]
    says: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def train(*overrides: str, recipe: str = "recipe.yaml") -> list[str]:
    return ["train", recipe, *overrides, "output=out"]


# ---- recipes ---------------------------------------------------------------------------------------------------------

TEACHER = "teacher={model: cifar_resnet14, weights: random}"

RECIPES = {
    "misspelt key": Case(train("train.buget='3 epochs'"), ["recipe.yaml", "train.buget: unknown key", "'budget'"]),
    "misspelt inside": Case(train("students.one.optimiser.lr=1"), ["students.one.optimiser", "'optimizer'"]),
    "misspelt in a kind": Case(train("data.train.pth=x"), ["data.train.pth: unknown key", "'path'"]),
    "no key like it": Case(train("train.zzz=1"), ["train.zzz: unknown key", "known here: batch_size_global, budget"]),
    "wrong type": Case(
        train("train.batch_size_global=many"), ["train.batch_size_global: should be a valid integer, not 'many'"]
    ),
    "no unit": Case(train("train.budget=300"), ["train.budget", "300 is no duration", "'300 epochs'"]),
    "negative": Case(train("student.optimizer.lr=-1"), ["students.one.optimizer.lr: should be greater than 0, not -1"]),
    "unknown kind": Case(train("data.train.kind=imagefolder"), ["data.train.kind: no 'imagefolder'", "'image_folder'"]),
    "unknown loss": Case(
        train("student.objective.hard.loss=bse"), ["students.one.objective.hard.loss", "it is one of ce, bce"]
    ),
    "no kind": Case(train("student.objective.soft={}", TEACHER), ["students.one.objective.soft.loss: missing"]),
    "unknown precision": Case(
        train("train.precision=fp8"), ["train.precision: should be 'fp32', 'bf16' or 'fp16', not 'fp8'"]
    ),
    "scalar for mapping": Case(train("train=3"), ["train: should be a mapping of keys, not 3"]),
    "list for mapping": Case(train("data=[1, 2]"), ["data: should be a mapping of keys, not [1, 2]"]),
    "scalar for list": Case(train("log.trackers=wandb"), ["log.trackers: should be a list, not 'wandb'"]),
    "null data": Case(train("data.train=null"), ["data.train: should be a mapping of keys"]),
    "short list": Case(train("student.mean=[0.5]"), ["students.one.mean.1: missing"]),
    "no students": Case(train(recipe="no_students.yaml"), ["no_students.yaml", "students: should have at least 1"]),
    "list of students": Case(train(recipe="list_students.yaml"), ["student and students are mappings"]),
    "student named teacher": Case(train("students.teacher={}"), ['the name "teacher" is taken']),
    "student's name": Case(train("students.a b={}"), ["students.a b: a name is letters, digits, - and _"]),
    "soft without teacher": Case(
        train("student.objective.soft={loss: kl}"), ["teacher is null", "set objective.soft to null"]
    ),
    "nothing to learn": Case(train("student.objective.hard=null"), ["students.one.objective", "give objective.hard"]),
    "LAMB with ZeRO": Case(
        train("student.optimizer.name=lamb", "train.zero_stage=2"),
        ["students.one.optimizer: LAMB", "use zero_stage: 0, or AdamW"],
    ),
    "micro-batch": Case(train("train.micro_batch_size=6"), ["micro_batch_size 6 does not divide batch_size_global 16"]),
    "odd batch": Case(
        train("train.batch_size_global=17"), ["train.batch_size_global: should be a multiple of 2, not 17"]
    ),
    "override without value": Case(train("train.budget"), ["override 'train.budget': write key=value"]),
    "override without key": Case(train("=3"), ["override '=3'"]),
    "override not YAML": Case(train("train.budget=[3"), ["override 'train.budget=[3'", "not valid YAML", "column 3"]),
    "override of extends": Case(train("extends=x.yaml"), ["extends stands in a recipe file"]),
    "no such recipe": Case(
        train(recipe="quickstart/student"),
        ["no recipe 'quickstart/student'", "'quickstart/students'", "distill recipe list"],
    ),
    "recipe is a folder": Case(train(recipe="nothing"), ["nothing: a folder without recipe.yaml"]),
    "YAML syntax": Case(train(recipe="syntax.yaml"), ["syntax.yaml: not valid YAML: line 2, column 4"]),
    "YAML list": Case(
        train(recipe="list.yaml"), ["list.yaml: a recipe is a mapping of keys, and this file holds a list"]
    ),
    "empty file": Case(
        train(recipe="empty.yaml"), ["empty.yaml: a recipe is a mapping of keys, and this file holds nothing"]
    ),
    "not text": Case(train(recipe="noise.yaml"), ["noise.yaml: cannot be read"]),
    "key twice": Case(train(recipe="twice.yaml"), ["twice.yaml: not valid YAML: line 18", "'seed' is given twice"]),
    "extends nothing": Case(train(recipe="extends_none.yaml"), ["extends 'nowhere.yaml'", "does not exist"]),
    "extends a number": Case(train(recipe="extends_number.yaml"), ["extends is a path or a list of paths, not 3"]),
}

# ---- data ------------------------------------------------------------------------------------------------------------

DATA = {
    "missing root": Case(train("data.root=gone"), ["data.train.path: gone/train does not exist", "data.root"]),
    "misspelt path": Case(
        train("data.train.path=trian"), ["data.train.path: good/trian does not exist", "did you mean 'train'"]
    ),
    "empty class": Case(train("data.root=hole"), ["class folder hole/train/cow has no images", "fill it or remove it"]),
    "no classes": Case(train("data.train.path=../nothing"), ["nothing has no class folders"]),
    "file for a folder": Case(train("data.train.path=../file"), ["file is not a folder"]),
    "other classes in eval": Case(
        train("data.eval.path=../other/val"), ["the lists differ", "'cow'", "'dog'", "data.eval.classes"]
    ),
    "class list missing": Case(train("data.train.classes=gone.txt"), ["data.train.classes: cannot read good/gone.txt"]),
    "class list twice": Case(train("data.train.classes=../names.txt"), ["data.train.classes", "names 'ant' twice"]),
    "bad table": Case(
        train("data.train={kind: parquet, path: ../junk.parquet}"), ["data.train.path", "junk.parquet as parquet"]
    ),
    "no table": Case(
        train("data.train={kind: parquet, path: ../gone.parquet}"), ["data.train.path", "gone.parquet does not exist"]
    ),
    "no IDX files": Case(
        train("data.train={kind: fashion_mnist, split: train, path: ../nothing}"), ["neither train-images-idx3-ubyte"]
    ),
    "batch over data": Case(
        train("train.batch_size_global=64"),
        ["train.batch_size_global is 64 and there are 48 training samples", "set it to 48 or less"],
    ),
    "no step": Case(train("train.budget='0 epochs'"), ["train.budget 0 epochs comes to no step at all"]),
    "warm-up over budget": Case(
        train("student.schedule.warmup='3 iterations'"), ["students.one.schedule.warmup", "lengthen train.budget"]
    ),
}

# ---- models, weights, optimizers -------------------------------------------------------------------------------------

MODELS = {
    "unknown student": Case(
        train("student.model=resnet51"), ["students.one: timm", "no model 'resnet51'", "'resnet50'"]
    ),
    "unknown teacher": Case(
        train("teacher={model: cifar_resnet15, weights: random}"),
        ["teacher: timm", "no model 'cifar_resnet15'", "'cifar_resnet14'"],
    ),
    "unknown tag": Case(
        train("student.model=resnet50.a1_in2k"), ["students.one: resnet50 has no pretrained tag 'a1_in2k'", "'a1_in1k'"]
    ),
    "model's arguments": Case(
        train("student.model_args={foo: 1}"), ["students.one: model_args of cifar_resnet8", "'foo'"]
    ),
    "no drop path": Case(
        train("student.model=vgg11", "student.drop_path=0.1"), ["students.one: drop_path: vgg11", "set drop_path to 0"]
    ),
    "size too small": Case(train("student.model=vgg11"), ["students.one.model vgg11", "data.image_size 16"]),
    "size between patches": Case(
        train("student.model=test_vit", "data.image_size=33"), ["students.one.model test_vit", "data.image_size 33"]
    ),
    "unknown optimizer": Case(
        train("student.optimizer.name=adamv"), ["students.one.optimizer.name", "no optimizer 'adamv'", "'adam'"]
    ),
    "optimizer's arguments": Case(
        train("student.optimizer.args={dampning: 1}"), ["students.one.optimizer.args.dampning", "'dampening'"]
    ),
    "unknown policy": Case(train("data.augment.auto_augment=rnd-m9"), ["data.augment.auto_augment", "'rnd-m9'"]),
    "evil student": Case(
        train("student.weights=evil.pth"), ["students.one: evil.pth would run code", "mkdir", "safetensors"]
    ),
    "evil teacher": Case(
        train("teacher={model: cifar_resnet8, weights: evil.pth}"), ["teacher: evil.pth would run code"]
    ),
    "evil pickle": Case(train("student.weights=evil_plain.pth"), ["evil_plain.pth would run code"]),
    "junk weights": Case(train("student.weights=junk.pth"), ["students.one: junk.pth: damaged"]),
    "no weights": Case(train("student.weights=gone.pth"), ["students.one: gone.pth: no such file"]),
    "no network, teacher": Case(
        train("teacher={model: test_resnet, weights: pretrained}"),
        ["teacher: the pretrained weights of test_resnet could not be loaded", "HF_HOME"],
    ),
    "no network, student": Case(
        train("student={model: test_resnet, weights: pretrained}"),
        ["students.one: the pretrained weights of test_resnet", "safetensors"],
    ),
    "other classes in teacher": Case(
        train("teacher={weights: run}"), ["the teacher's head has 10 classes, the data 3"]
    ),
    "no teacher there": Case(
        train("teacher={weights: runn}"), ["teacher.weights: runn does not exist", "did you mean 'run'"]
    ),
    "teacher not finished": Case(
        train("teacher={weights: stopped_early}"), ["teacher.weights: stopped_early", "nor a finished run"]
    ),
    "teacher's student": Case(
        train("teacher={weights: run, student: knd}"), ["teacher.student", "'kd'", "alone, kd, vit"]
    ),
}

# ---- machine and folders ---------------------------------------------------------------------------------------------

MACHINE = {
    "processes": Case(train(), ["train.batch_size_global 16", "on 3 processes: start 1 or 2 processes"], {"WORLD_SIZE": "3", "RANK": "0"}),
    "launcher's precision": Case(train(), ["ACCELERATE_MIXED_PRECISION=bf16", "train.precision"], {"ACCELERATE_MIXED_PRECISION": "bf16"}),
    "unknown tracker": Case(train("log.trackers=[wandbb]"), ["log.trackers: no tracker 'wandbb'", "'wandb'"]),
    "tracker not installed": Case(train("log.trackers=[wandb]"), ["log.trackers: the package wandb is not installed", "pip install wandb"]),
    "ZeRO": Case(train("train.zero_stage=1"), ["train.zero_stage: 1 is not built yet", "zero_stage: 0"]),
    "output is a file": Case(["train", "recipe.yaml", "output=file"], ["file: is a file; choose another folder with output="]),
    "output below a file": Case(["train", "recipe.yaml", "output=file/x"], ["file/x: cannot be written: Not a directory", "output="]),
    "another recipe": Case(["train", "run", "students.kd.optimizer.lr=0.06"], ["is of another recipe", "students.kd.optimizer.lr: 0.05 -> 0.06", "output=", "resume=never"]),
    "damaged recipe in a run": Case(["evaluate", "stopped_early/../syntax.yaml"], ["give --model"]),
}  # fmt: skip

# ---- evaluate and export ---------------------------------------------------------------------------------------------

FINISHED = {
    "nothing there": Case(["evaluate", "gone"], ["gone: there is no such run"]),
    "no run": Case(["evaluate", "good"], ["good: neither a run (recipe.yaml), a checkpoint"]),
    "not judged yet": Case(["evaluate", "stopped_early"], ["no best weights", "--weights last"]),
    "no checkpoint yet": Case(["evaluate", "stopped_early", "--weights", "last"], ["this run has no checkpoint"]),
    "no model named": Case(["evaluate", "junk.pth"], ["junk.pth: a file of weights does not name its architecture", "--model"]),
    "model for a run": Case(["evaluate", "run", "--model", "resnet18"], ["--model", "run is a folder"]),
    "evil weights": Case(["evaluate", "evil.pth", "--model", "cifar_resnet8"], ["evil.pth would run code"]),
    "junk": Case(["evaluate", "junk.pth", "--model", "cifar_resnet8"], ["junk.pth: damaged"]),
    "not weights": Case(["evaluate", "file", "--model", "cifar_resnet8"], ["file: weights are read from .safetensors"]),
    "unknown model": Case(["evaluate", "junk.pth", "--model", "resnet51"], ["no model 'resnet51'", "'resnet50'"]),
    "no such student": Case(["evaluate", "run", "--student", "knd"], ["no student 'knd'", "'kd'", "alone, kd, vit"]),
    "no such average": Case(["evaluate", "run", "--weights", "ema-0.55"], ["no weights 'ema-0.55'", "'ema-0.5'", "best", "last"]),
    "weights of an export": Case(["evaluate", "run/best/kd", "--weights", "last"], ["--weights last picks among what a run holds"]),
    "student of an export": Case(["evaluate", "run/best/kd", "--student", "kd"], ["--student kd picks among what a run holds"]),
    "no data named": Case(["evaluate", "run/best/kd"], ["run/best/kd does not say what to judge it on: give --data"]),
    "no data there": Case(["evaluate", "run", "--data", "gone"], ["--data gone: there is no such file or folder"]),
    "no images": Case(["evaluate", "run", "--data", "nothing"], ["--data: nothing has no class folders"]),
    "other data": Case(["evaluate", "run", "--data", "good/val"], ["alone's head has 10 classes, the data 3"]),
    "classes without data": Case(["evaluate", "run", "--classes", "imagenet-1k"], ["--classes names the classes of --data"]),
    "unknown classes": Case(["evaluate", "run", "--data", "good/val", "--classes", "imagenet-2k"], ["--classes imagenet-2k: neither a file nor a label set"]),
    "class list": Case(["evaluate", "run", "--data", "good/val", "--classes", "names.txt"], ["--classes: names.txt names 'ant' twice"]),
    "damaged weights": Case(["evaluate", "damaged", "--student", "kd"], ["best/kd/model.safetensors: damaged"]),
    "damaged config": Case(["evaluate", "damaged", "--student", "alone"], ["best/alone/config.json: not the config.json"]),
    "damaged record": Case(["evaluate", "damaged", "--student", "vit"], ["best/vit/distill.json: cannot be read"]),
    "damaged checkpoint": Case(["evaluate", "damaged", "--weights", "last"], ["kd.model.safetensors: damaged: 1000 bytes"]),
    "export of nothing": Case(["export", "gone", "out"], ["gone: there is no such run"]),
    "export of a file": Case(["export", "junk.pth", "out"], ["junk.pth: an export is made from a run or a checkpoint"]),
    "export of no student": Case(["export", "run", "out", "--student", "knd"], ["no student 'knd'", "'kd'"]),
    "export of no average": Case(["export", "run", "out", "--weights", "bst"], ["no weights 'bst'", "'best'"]),
    "export, damaged report": Case(["export", "damaged", "out"], ["damaged/report.json: damaged", "name the student"]),
    "export over a file": Case(["export", "run", "file"], ["file: is a file, and an export is a folder"]),
    "export over a folder": Case(["export", "run", "good"], ["good: holds 'train', which is no part of an export", "choose another folder"]),
    "export below a file": Case(["export", "run", "file/x"], ["file/x: cannot be written: Not a directory"]),
}  # fmt: skip

ALL = RECIPES | DATA | MODELS | MACHINE | FINISHED
assert len(ALL) == sum(map(len, (RECIPES, DATA, MODELS, MACHINE, FINISHED)))


@pytest.mark.parametrize("case", ALL.values(), ids=ALL.keys())
def test_bad_input_is_one_clear_message(
    case: Case, cli: Cli, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    # Whatever a developer's machine has in its cache or has installed:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else find_spec(name, *a))
    refused(cli(*case.command), *case.says)
    assert not (place / "out").exists(), "training had begun before the input was refused"


# ---- what only training can know -------------------------------------------------------------------------------------


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


def test_a_run_without_its_data_can_be_judged_on_other_data(cli: Cli, place: Path) -> None:
    assert cli(*train()).code == 0
    (place / "good").rename(place / "moved")
    try:
        refused(cli("evaluate", "out"), "data.eval.path: good/val does not exist", "--data")
        assert cli("evaluate", "out", "--data", "moved/val", "--num-workers", "0").code == 0
    finally:
        (place / "moved").rename(place / "good")


def test_another_class_order_is_refused(cli: Cli, place: Path, tmp_path: Path) -> None:
    assert cli(*train("data.eval=null")).code == 0
    (tmp_path / "order.txt").write_text("bee\nant\ncow\n")
    outcome = cli("evaluate", "out", "--data", "good/val", "--classes", tmp_path / "order.txt")
    refused(outcome, "class 0 is 'ant' for one and 'bee' in the data")


# ---- faults that are not the input's ---------------------------------------------------------------------------------


def test_a_disk_that_fills_up_anywhere_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Summary) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk/report.json")

    monkeypatch.setattr(Summary, "write", full)
    outcome = cli(*train("data.eval=null"))
    assert outcome.code == 2
    assert outcome.err == "distill: /disk/report.json: No space left on device\n"


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


def test_other_faults_keep_their_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Summary) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(Summary, "write", wrong)
    with pytest.raises(KeyError, match="ours"):
        cli(*train("data.eval=null"))


def test_the_traceback_of_bad_input_can_be_asked_for(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown key"):
        cli(*train("train.zzz=1"))


def test_the_base_of_these_cases_trains(cli: Cli) -> None:
    assert cli(*train()).code == 0
    assert isinstance(load_recipe("recipe.yaml"), Recipe)
    assert yaml.safe_load(BASE)["train"]["batch_size_global"] < len(CLASSES) * IMAGES_A_CLASS
