"""Runs of several budgets from one trunk: each ends as the run trained alone, bit for bit."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny import assert_same_run, best, stop_after, write_recipe
from tiny import run as train_alone

from distill.checkpoint.layout import TRUNK_FILE, trunk_dir
from distill.recipe import load_recipe
from distill.training.loop import train

# With everything that has a state: averages, momentum, a random transform, dropped paths. An
# evaluation and a checkpoint fall on neither end of the trunk.
SETTINGS: dict[str, Any] = {
    "data": {"augment": {"horizontal_flip": 0.5}, "mixing": {"mixup": 0.2, "group_size": 8}},
    "evaluate": {"every": "3 iterations"},
    "checkpoint": {"every": "5 iterations", "keep_last": 1},
    "log": {"every": "2 iterations"},
    "student": {
        "drop_path": 0.1,
        "ema": {"decays": [0.8]},
        "schedule": {"name": "constant", "warmup": "2 iterations", "cooldown": "25%"},
    },
    "students": {
        "alone": {},
        "kd": {"objective": {"soft": {"loss": "kl", "temperature": 2.0}}, "seed": 1},
    },
}
SHORT, LONG = "8 iterations", "16 iterations"  # the cool-downs begin after 6 and 12 steps


def written(folder: Path, name: str, budget: str, *changes: dict[str, Any]) -> Path:
    return write_recipe(folder, SETTINGS, {"train": {"budget": budget}}, *changes, name=name)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all runs, since the path of the evaluation set is part of what a run is."""
    return tmp_path_factory.mktemp("trunks")


@pytest.fixture(scope="module")
def short(home: Path) -> Path:
    """A finished run of the short budget, which keeps its trunk."""
    assert train_alone(written(home, "short", SHORT)) == 0
    return home / "short"


@pytest.fixture(scope="module")
def alone(home: Path) -> Path:
    """A finished run of the long budget from step 0."""
    assert train_alone(written(home, "alone", LONG)) == 0
    return home / "alone"


def test_a_longer_run_from_a_trunk_is_the_run_alone(
    home: Path, short: Path, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert train(load_recipe(written(home, "branch", LONG)), trunk=short) == 0
    said = capsys.readouterr().out
    assert f"starting from step 6 of {short}" in said
    assert "step 6/16" not in said, "it trains only what the trunk lacks"
    assert_same_run(home / "branch", alone)
    origin = json.loads((home / "branch" / TRUNK_FILE).read_text())
    assert (origin["run"], origin["step"]) == (str(short), 6)
    assert origin["seconds"] > 0


def test_a_branch_that_was_stopped_resumes_and_keeps_its_trunk(
    home: Path, short: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(written(home, "stopped", LONG))
    stop_after(1, monkeypatch)
    assert train(recipe, trunk=short) == 75
    monkeypatch.undo()
    for student in ("alone", "kd"):  # no evaluation came since
        record = json.loads((trunk_dir(short) / "best" / student / "distill.json").read_text())
        assert best(home / "stopped", student)[1] == record
    assert train(recipe, trunk=short) == 0
    assert_same_run(home / "stopped", alone)
    trunks = [
        sorted(path.name for path in (trunk_dir(folder) / "checkpoints").iterdir())
        for folder in (short, home / "stopped", alone)
    ]
    assert trunks == [["step-00000006"], ["step-00000012"], ["step-00000012"]]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 5}, "the steps of .* differ from those of this run"),
        ({"student": {"schedule": {"cooldown": "11 iterations"}}}, "6 steps, is longer than that"),
        ({"student": {"schedule": {"name": "cosine", "cooldown": "0 iterations"}}}, "differ"),
    ],
)
def test_another_trunk_is_not_used(
    changes: dict[str, Any],
    reason: str,
    home: Path,
    short: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = f"other-{abs(hash(str(changes)))}"
    recipe = load_recipe(written(home, name, LONG, changes))
    assert train(recipe, trunk=short) == 0
    said = capsys.readouterr().out
    assert re.search(rf"{reason}.*: starting at step 0", said.replace("\n", " "))
    assert not (home / name / TRUNK_FILE).exists()


def test_without_a_trunk_the_run_starts_at_step_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(written(tmp_path, "other", SHORT))
    assert train(recipe, trunk=tmp_path / "nothing") == 0
    assert "keeps no trunk that can be read: starting at step 0" in capsys.readouterr().out


def test_the_files_of_a_trunk_stay_as_they_were(short: Path) -> None:
    """Links must not change with the run's later evaluations."""
    record = json.loads((trunk_dir(short) / "best/kd/distill.json").read_text())
    assert record["step"] <= 6
    steps = [
        json.loads(line)["step"]
        for line in (trunk_dir(short) / "metrics.jsonl").read_text().splitlines()
    ]
    assert max(steps) == 6
