"""Studies that train: fleets equal runs alone, failures, kills, restarts, one trunk for budgets."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from studies import write_study
from tiny import assert_equal_tensors, assert_same_run, run, tensors

from distill.recipe import load_recipe
from distill.study.stored import StudyPlan, plan_study, read_plan, write_plan
from distill.study.work import INTERRUPTED, left_jobs, run_all, run_job

GRID = {"student": ["alone", "kd"], "optimizer.lr": [0.05, 0.1]}
# Students of different models, averages and random regularisation behind one teacher.
CHANGES: dict[str, Any] = {
    "data": {"augment": {"horizontal_flip": 0.5}},
    "student": {"drop_path": 0.1, "ema": {"decays": [0.8]}},
}


def planned(folder: Path, study: dict[str, Any], *changes: dict[str, Any]) -> StudyPlan:
    plan = plan_study(str(write_study(folder, study, *changes)))
    write_plan(plan)
    return plan


def distill(*arguments: object, **keys: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "distill", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **keys)


def test_a_fleet_is_its_runs_alone_bit_for_bit(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"axes": GRID}, CHANGES)
    assert run_job(plan, 0) == 0
    (fleet,) = plan.runs
    for student, lr in (("alone", 0.05), ("kd", 0.1)):
        other = "alone" if student == "kd" else "kd"
        overrides = [f"students.{other}=null", f"students.{student}.optimizer.lr={lr}"]
        assert run(tmp_path / "base.yaml", *overrides, f"output={tmp_path / student}") == 0
        name = f"{student}-{str(lr).replace('.', 'p')}"
        ours = tensors(plan.output(fleet), name)
        renamed = {key.replace(f"{name}.", f"{student}.", 1): own for key, own in ours.items()}
        assert_equal_tensors(renamed, tensors(tmp_path / student, student))


def test_one_of_three_runs_fails_and_the_others_end(tmp_path: Path) -> None:
    missing = {"data.train.path": str(tmp_path / "nowhere")}
    study = {
        "axes": {
            "student": ["kd"],
            "data": {"a": {"seed": 0}, "lost": missing, "b": {"seed": 1}},
        },
        "table": {"rows": ["data"]},
    }
    path = write_study(tmp_path, study)
    first = distill("study", path)
    assert first.returncode == 1, first.stderr
    assert "nowhere" in first.stderr
    assert "Traceback" not in first.stderr
    assert first.stdout.count("job ") == 3
    assert "failed: lost, exit code 2; the same command tries it again" in first.stdout
    plan = read_plan(tmp_path / "out")
    assert [plan.state(each) for each in plan.runs] == ["done", "new", "done"]
    table = (tmp_path / "out/table.md").read_text()
    assert [line.split("|")[1].strip() for line in table.splitlines()[4:7]] == ["a", "lost", "b"]
    assert table.splitlines()[5].endswith("| not run |")

    before = [(plan.output(each) / "report.json").stat() for each in (plan.runs[0], plan.runs[2])]
    again = distill("study", path)
    assert again.returncode == 1
    assert again.stdout.count("job ") == 1, "what is done is not started again"
    assert "failed: lost, exit code 2" in again.stdout
    after = [(plan.output(each) / "report.json").stat() for each in (plan.runs[0], plan.runs[2])]
    assert [each.st_mtime_ns for each in after] == [each.st_mtime_ns for each in before]


def test_a_single_job_needs_no_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object) -> int:
        raise AssertionError("torch and timm would be imported again")

    monkeypatch.setattr("distill.study.work._Child.run", start)
    said: list[str] = []
    plan = planned(tmp_path, {"axes": {"student": ["kd"]}, "set": {"train.budget": "1 iterations"}})
    outcome = run_all(plan, None, said.append)
    assert (outcome.code, outcome.failed) == (0, [])
    assert said == ["study grid: job 1 of 1: all (kd)"]
    assert left_jobs(plan) == []

    lost = {"axes": {"student": ["kd"]}, "set": {"data.train.path": str(tmp_path / "nowhere")}}
    failing = planned(tmp_path, {**lost, "output": str(tmp_path / "lost")})
    failed = run_all(failing, None, said.append)
    assert failed.code == 1
    assert [(each.name, code) for each, code in failed.failed] == [("all", 2)]


def wait_for(file: Path, text: str, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 900
    while not (file.is_file() and text in file.read_text()):
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_started_again_ends_with_the_same_weights(
    number: signal.Signals, tmp_path: Path
) -> None:
    study = {"axes": {"student": ["kd"], "optimizer.lr": [0.05, 0.1], "seed": [0, 1]}}
    long = {
        "train": {"budget": "120 iterations"},
        "checkpoint": {"every": "10 iterations"},
        "evaluate": {"every": "120 iterations"},
    }
    path = write_study(tmp_path, study, long)
    command = [sys.executable, "-m", "distill", "study", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    second = tmp_path / "out/seed1"
    wait_for(second / "metrics.jsonl", '"step": 20,', process)
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    expected = -signal.SIGKILL if number == signal.SIGKILL else INTERRUPTED
    assert process.returncode == expected, out + err
    if number == signal.SIGKILL:  # the job ends with the study
        deadline = time.monotonic() + 60
        while _writes(second) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not _writes(second)
    else:
        assert "the same command resumes it" in out
    plan = read_plan(tmp_path / "out")
    assert left_jobs(plan) == [1]

    again = distill("study", path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(": job ") == 1
    assert "resuming from" in again.stdout
    recipe = plan.recipe_file(plan.runs[1])
    assert run(recipe, f"output={tmp_path / 'undisturbed'}") == 0
    assert_equal_tensors(tensors(second), tensors(tmp_path / "undisturbed"))


def _writes(folder: Path) -> bool:
    """Whether the process that locked a run's folder is alive."""
    number = int((folder / ".lock").read_text().split()[1])
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_budgets_from_one_trunk(tmp_path: Path) -> None:
    """The study trains the trunk once, and each budget ends as the run alone, records included."""
    study = {
        "set": {"schedule": {"name": "constant", "warmup": "2 iterations", "cooldown": "25%"}},
        "axes": {
            "student": ["alone", "kd"],
            "train.budget": ["8 iterations", "16 iterations", "24 iterations"],
        },
    }
    plan = planned(tmp_path, study, CHANGES)
    assert len(plan.jobs) == 1
    assert run_job(plan, 0) == 0
    origins = [plan.output(each) / "trunk.json" for each in plan.runs]
    steps = [json.loads(file.read_text())["step"] for file in origins if file.is_file()]
    assert steps == [6, 12]
    for each in plan.runs:
        alone = tmp_path / f"alone-{each.name}"
        assert run(plan.recipe_file(each), f"output={alone}") == 0
        assert_same_run(plan.output(each), alone)


def test_a_diverged_cell_is_no_failure(tmp_path: Path) -> None:
    axes = {"student": ["kd"], "optimizer.lr": [0.05, 1e30]}
    plan = planned(tmp_path, {"axes": axes, "students_per_run": 1})
    lines: list[str] = []
    outcome = run_all(plan, None, lines.append)
    assert (outcome.code, outcome.failed) == (3, [])
    shown = distill("study", tmp_path / "out", "--table").stdout
    assert "diverged" in shown
    assert load_recipe(plan.recipe_file(plan.runs[1])).students


def test_a_job_that_does_not_exist(tmp_path: Path) -> None:
    planned(tmp_path, {"axes": GRID})
    done = distill("study", tmp_path / "out", "--run", 3)
    assert done.returncode == 2
    assert "the study has 1 jobs, numbered from 0" in done.stderr
