"""`distill study` as it is typed, up to the point where it would train."""

import subprocess
import sys
from pathlib import Path

import pytest
from command import Cli
from studies import write_study

from distill.study.progress import predicted_hours
from distill.study.stored import plan_study, write_plan
from distill.study.work import slurm_command

STUDY = {
    "set": {"schedule": {"name": "constant", "cooldown": "25%"}},
    "axes": {
        "method": {"kd": {"student": "kd"}, "crd": None},
        "train.budget": ["8 iterations", "16 iterations"],
        "seed": [0, 1],
    },
    "table": {"rows": ["method"], "columns": ["train.budget"]},
}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path, STUDY)


def test_the_list_shows_runs_students_and_trunks(study: Path, cli: Cli) -> None:
    shown = cli("study", study, "--list", "data.num_workers=0")
    assert shown.code == 0, shown.err
    lines = [line.split() for line in shown.out.splitlines()]
    assert lines[1] == ["0", "budget8-iterations-seed0", "8", "iterations", "new", "kd"]
    trunk = "budget8-iterations-seed0"
    assert lines[2] == ["0", "budget16-iterations-seed0", "16", "iterations", trunk, "new", "kd"]
    assert lines[3][0] == "1"
    assert "4 cells in 4 runs" in shown.out
    assert "4 cells are listed and not run by this study" in shown.out
    assert not (study.parent / "out").exists(), "a list writes nothing"


def test_predicted_hours_leave_out_what_a_trunk_has(tmp_path: Path) -> None:
    # Without its images, no speed of this machine is measured.
    elsewhere = {"data": {"train": {"kind": "image_folder", "path": "nowhere"}}}
    plan = plan_study(str(write_study(tmp_path, STUDY, elsewhere)))
    hours = predicted_hours(plan, "h100", 1)
    short, long = (hours[run.name] for run in plan.jobs[0])
    assert short
    assert long == pytest.approx(2 * short * (1 - 6 / 16))


def test_the_table_before_anything_ran(study: Path, cli: Cli) -> None:
    shown = cli("study", study, "--table", "--seeds", 3)
    assert shown.code == 0, shown.err
    assert shown.out.count("not run") == 4
    form = cli("study", study, "--table", "--format", "tex")
    assert "\\begin{tabular}{lrr}" in form.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--list", "--table"], "--list, --table, --run and --slurm: give one of them"),
        (["--format", "csv"], "--format csv: goes with --table"),
        (["--gpu", "h100"], "--gpu h100: goes with --list"),
        (["--list", "--gpu", "h1000"], "h1000"),
        (["--slurm", "-p 'gpu"], "quote it as in a shell"),
        (["--list", "train.bugdet=3 epochs"], "bugdet"),
        (["--list", "train.budget=3 epochs"], "these two have the same settings"),
        (["--list", "student.model=resnet5"], "run budget8-iterations-seed0"),
    ],
)
def test_wrong_options_are_a_message(
    options: list[str], message: str, study: Path, cli: Cli
) -> None:
    done = cli("study", study, *options)
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_a_study_under_a_launcher(study: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = cli("study", study)
    assert done.code == 2
    assert "start it without a launcher, with --processes N" in " ".join(done.err.split())


def test_the_array_has_what_is_not_done(
    study: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_study(str(study))
    write_plan(plan)
    command = slurm_command(plan, "-p gpu --time=1:00:00")
    assert command[:4] == ["sbatch", "--array=0,1", "-p", "gpu"]
    assert command[-1] == str(plan.folder.absolute())
    for run in plan.jobs[0]:
        plan.output(run).mkdir()
        (plan.output(run) / "report.json").write_text("{}")
    assert slurm_command(plan, "")[1] == "--array=1"
    monkeypatch.setenv("PATH", "/nowhere")
    done = cli("study", plan.folder, "--slurm", "")
    assert done.code == 2
    assert "sbatch is not here; the plan is in" in " ".join(done.err.split())


def test_runs_that_would_publish_to_one_place(study: Path, cli: Cli) -> None:
    done = cli("study", study, "--list", "log.publish.repo=me/model")
    assert done.code == 2
    assert "4 runs of this study would publish to me/model" in " ".join(done.err.split())


def test_a_warmup_in_another_unit_is_found_before_the_first_run(tmp_path: Path, cli: Cli) -> None:
    kd = {"student": "kd", "objective.hint": {"loss": "reviewkd", "warmup_epochs": 2}}
    axes = {"method": {"alone": {"student": "alone"}, "review": kd}, "seed": [0, 1]}
    done = cli("study", write_study(tmp_path, {"axes": axes}))  # 8 iterations of 7 an epoch
    assert done.code == 2
    said = " ".join(done.err.split())
    assert "run seed0: students.review.objective.hint.warmup_epochs: 2, and training has" in said
    assert not (tmp_path / "out").exists()


HOLDER = """
import sys, time
from pathlib import Path
from distill.checkpoint.lock import FolderLock
lock = FolderLock()
lock.acquire(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("place", [".", "budget16-iterations-seed1"])
def test_two_processes_on_one_study(place: str, study: Path, cli: Cli) -> None:
    """Another `distill study`, or a task of an array that trains a run."""
    plan = plan_study(str(study))
    write_plan(plan)
    (folder := plan.folder / place).mkdir(exist_ok=True)
    command = [sys.executable, "-c", HOLDER, str(folder)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "held"
        for name in (study, plan.folder):
            done = cli("study", name)
            assert done.code == 2
            assert f"{folder}: process {holder.pid} on" in " ".join(done.err.split())
            assert "is writing here: wait for it to end" in " ".join(done.err.split())
            assert "job" not in done.out
        assert cli("study", study, "--table").code == 0
        assert cli("study", study, "--list").code == 0
    finally:
        holder.kill()
        holder.wait()
