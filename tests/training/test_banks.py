"""CRD's bank before training: its size is shown, and what cannot be is refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import Cli
from tiny import run, write_recipe

from distill.engine.host_memory import available_bytes
from distill.errors import InputError
from distill.losses.bank import bank_bytes
from distill.recipe import load_recipe
from distill.training import banks
from distill.training.plan import make_plan

CRD = {"loss": "crd", "negatives": 64}


def crd(*names: str, **hint: Any) -> dict[str, Any]:
    objective = {"hard": {"loss": "ce"}, "hint": {**CRD, **hint}}
    return {"students": {name: {"objective": objective} for name in names or ("one",)}}


def staged(second_student: dict[str, Any] | None = None, **second: Any) -> dict[str, Any]:
    """Two stages: the data of the second, and its changes of all students."""
    return {
        "train": {"budget": None},
        "stages": [
            {"name": "first", "budget": "4 iterations"},
            {
                "name": "second",
                "budget": "4 iterations",
                "data": second,
                "student": second_student or {},
            },
        ],
    }


def test_the_size_is_shown_before_training(tmp_path: Path, cli: Cli) -> None:
    recipe = write_recipe(tmp_path, crd("one", "two"), {"train": {"budget": "1 iterations"}})
    outcome = cli("train", recipe)
    assert outcome.code == 0
    shown = " ".join(outcome.out.split())
    for name in ("one", "two"):
        line = f"bank {name}: 120 x 128 x 2, 0.12 MB on the device; negatives are of other classes"
        assert line in shown
        assert shown.index(line) < shown.index("step 1/1")


def test_the_bank_of_imagenet_has_1_3_gb() -> None:
    assert bank_bytes(1_281_167, 128) == 1_281_167 * (2 * 128 * 4 + 8)
    assert banks.shown_bytes(bank_bytes(1_281_167, 128)) == "1.32 GB"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [crd(reference="original", negatives=121)],
            r"students\.one\.objective\.hint\.negatives: 121 .* 120 training images: set it to 120",
        ),
        (
            [crd(reference="original", negatives=121), staged(fraction=0.03)],
            r"stages\.first\.students\.one\.objective\.hint\.negatives: 121",
        ),
        (
            [crd(), staged(fraction=0.03), {"train": {"zero_stage": 1}}],
            r"students\.one\.objective\.hint: the stages train on other images.*zero_stage: 0",
        ),
        (
            [crd(), staged(second_student={"objective": {"hint": {"bank": "host"}}})],
            r"students\.one\.objective\.hint\.bank: differs between the stages",
        ),
        ([crd(momentum=1.0)], r"hint\.momentum"),
        ([crd(bank="disk")], r"hint\.bank"),
        ([crd(), {"teacher": None}], r"objective\.hint learns from a teacher"),
    ],
)
def test_what_cannot_be_is_refused_before_training(
    changes: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        run(write_recipe(tmp_path, *changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["device", "host"])
def test_a_bank_that_does_not_fit_is_refused(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = bank_bytes(120, 128)
    recipe = write_recipe(tmp_path, crd("one", "two", bank=place))
    stages = make_plan(load_recipe(recipe, [])).stages

    class Machine:
        device, world_size = "cuda:0", 2
        free = 2 * needed

        def free_memory_bytes(self) -> int:
            return self.free if place == "device" else 0

    machine: Any = Machine()
    monkeypatch.setattr(
        banks, "available_bytes", lambda: 2 * machine.free if place == "host" else 0
    )
    banks.refuse_large_banks(stages, machine)
    machine.free -= 1
    fix = "bank: host, or a smaller width" if place == "device" else "a smaller width"
    with pytest.raises(
        InputError, match=rf"students\.one\..*takes 0\.25 MB on the {place}.*set {fix}"
    ):
        banks.refuse_large_banks(stages, machine)


def test_a_new_bank_is_made_while_the_old_one_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {}
    for name, second in (("same", {}), ("other", {"fraction": 0.03})):
        recipe = write_recipe(tmp_path, crd(), staged(**second), name=name)
        stages = make_plan(load_recipe(recipe, [])).stages
        engine: Any = type(
            "Machine", (), {"device": "cpu", "world_size": 1, "free_memory_bytes": lambda _: None}
        )()
        sizes[name] = 0
        for free in range(100_000, 400_000, 1000):
            monkeypatch.setattr(banks, "available_bytes", lambda free=free: free)
            try:
                banks.refuse_large_banks(stages, engine)
            except InputError:
                sizes[name] = free
    assert sizes["same"] == bank_bytes(120, 128) // 1000 * 1000
    assert sizes["other"] == bank_bytes(300, 128) // 1000 * 1000


CODE = """
import resource, sys
from pathlib import Path
import distill.training.loop
from distill.errors import InputError
from distill.recipe import load_recipe
from distill.training import build

def bounded(models, *arguments, plain=build.stage_settings):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), -1))
    return plain(models, *arguments)

distill.training.loop.stage_settings = bounded
try:
    distill.training.loop.train(load_recipe(Path(sys.argv[1]), []))
except InputError as error:
    print("refused:", error)
"""


@pytest.mark.slow
def test_a_process_of_bounded_memory_refuses(tmp_path: Path) -> None:
    """6,000 images x 8 KiB x width 4,096 need 197 MB a student; two of them do not fit."""
    changes = {"data": {"fraction": 1.0}, "train": {"budget": "1 iterations"}}
    recipe = write_recipe(tmp_path, crd("one", "two", width=4096), changes)
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(recipe)], capture_output=True, text=True, check=False
    )
    assert "refused: students.one.objective.hint: CRD's bank" in done.stdout, done.stderr
    assert "0.39 GB" in done.stdout


def test_available_memory_is_some() -> None:
    assert 2**20 < available_bytes() < 2**60
