"""The shipped scripts under a real SLURM, on two nodes of this machine: one job to its end, stopped
in every way, and gone on with.

Each start of a job costs about ten seconds of imports, so a job is stopped several times, and the
undisturbed run is shared.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from cluster import ENDED, Cluster, Job
from tiny import assert_equal_tensors, records, tensors, write_recipe

SCRIPTS = Path(__file__).parents[2] / "launchers" / "slurm"
TRAIN, SWEEP = SCRIPTS / "train.sbatch", SCRIPTS / "sweep.sbatch"
NUM_STEPS = 200
# Steps of some 20 ms: a signal is answered within a second, and three of them must find the run
# going.
RECIPE: dict[str, Any] = {
    "train": {"budget": f"{NUM_STEPS} iterations", "batch_size_global": 64, "micro_batch_size": 32},
    "evaluate": {"every": f"{NUM_STEPS} iterations"},
    "checkpoint": {"every": "25 iterations"},
    "students": {
        "kd": {"objective": {"hard": {"loss": "ce"}, "soft": {"loss": "kl", "temperature": 2.0}}}
    },
}
# Within which a job whose node is gone must end. Measured: 15 s, 10 of them given to the node.
FAIL_FAST_S = 40
# The check before a job's first step costs seconds, and three tests are enough for it.
UNCHECKED = "--export=ALL,DISTILL_CHECK=no"


@pytest.fixture(scope="module")
def whole(cluster: Cluster) -> Path:
    """An undisturbed job trains on both nodes and leaves its files."""
    recipe = write_recipe(cluster.folder, RECIPE, name="whole")
    job = cluster.submit("-N2", TRAIN, recipe)
    assert job.wait() == "COMPLETED", cluster.with_logs("", job)
    assert "2 nodes (node[1-2]), 2 processes, meeting at 127.0.0.1:2" in job.log
    assert f"step {NUM_STEPS}/{NUM_STEPS}" in job.log
    return cluster.folder / "whole"


def step_of(output: Path) -> int:
    """The last step that a run has recorded."""
    metrics = output / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except ValueError:
            continue  # half a line
    return 0


def losses(output: Path) -> list[tuple[int, Any]]:
    """Step and losses of each step."""
    return [
        (line["step"], line["students"]) for line in records(output) if line["event"] == "train"
    ]


def trained(cluster: Cluster, job: Job, output: Path, further: int = 5) -> int:
    """Wait until the job has trained some steps since its start; return its step."""
    stands = step_of(output)

    def far_enough() -> bool:
        assert job.state not in ENDED, cluster.with_logs("it has ended", job)
        return step_of(output) >= stands + further

    cluster.until(far_enough, f"{output.name} trains on from step {stands}", job)
    assert step_of(output) < NUM_STEPS - 10, "the run is too short to be stopped"
    return step_of(output)


def test_a_job_on_two_nodes(whole: Path) -> None:
    report = json.loads((whole / "report.json").read_text())
    assert (report["num_processes"], report["steps"]) == (2, NUM_STEPS)
    assert [step for step, _ in losses(whole)] == list(range(1, NUM_STEPS + 1))


def test_stopped_preempted_and_requeued_ends_with_the_same_weights(
    cluster: Cluster, whole: Path
) -> None:
    output = cluster.folder / "stopped"
    recipe = write_recipe(cluster.folder, RECIPE, name="stopped")
    job = cluster.submit("-N2", "-p", "patient", UNCHECKED, TRAIN, recipe)

    trained(cluster, job, output)
    job.signal("--signal=USR1", "--batch")  # as SLURM does when the time limit is near
    job.wait_for_restart(1)
    first = step_of(output)
    assert 0 < first < NUM_STEPS
    assert job.log.count("stopped after step") == 1
    assert "state saved, requeued" in job.log

    trained(cluster, job, output)
    urgent = cluster.submit("-N2", "-p", "urgent", "--wrap", "true")  # preempts, with a grace time
    job.wait_for_restart(2)
    assert urgent.wait() == "COMPLETED"
    assert first <= step_of(output) < NUM_STEPS

    trained(cluster, job, output)
    cluster.call("scontrol", "requeue", job.name)  # as preemption without a grace time
    job.wait_for_restart(3)
    # On a busy machine a save may miss the time that SLURM grants at SIGTERM: then steps are made
    # again, and what must hold is the end.
    print(f"{job.log.count('stopped after step')} of 3 stops were saved")

    assert job.wait() == "COMPLETED", cluster.with_logs("", job)
    ended, undisturbed = tensors(output), tensors(whole)
    # Each save averages BatchNorm's running statistics over the processes, and a stop is a save
    # more: they agree within rounding.
    assert ended.keys() == undisturbed.keys()
    for key in [key for key in ended if "running_" in key]:
        torch.testing.assert_close(ended.pop(key), undisturbed.pop(key), rtol=1e-5, atol=1e-6)
    assert_equal_tensors(ended, undisturbed)
    assert losses(output) == losses(whole), "no step was made twice, none left out"


def test_a_node_that_dies_ends_the_job_and_the_same_command_continues(
    cluster: Cluster, whole: Path
) -> None:
    output = cluster.folder / "killed"
    recipe = write_recipe(cluster.folder, RECIPE, name="killed")
    job = cluster.submit("-N2", UNCHECKED, TRAIN, recipe)
    cluster.until(lambda: step_of(output) >= 30, "the run makes 30 steps", job)
    cluster.kill_node("node2")
    killed = time.monotonic()
    # Until SLURM knows what became of the node, it calls a job that has ended "COMPLETING".
    job.wait(FAIL_FAST_S, "COMPLETING")
    cluster.until(lambda: not cluster.processes_of_jobs(), "no process is left", job, 10)
    print(f"ended {time.monotonic() - killed:.1f} s after its node")
    assert "another has not: stopping it" in job.log
    assert "not requeued; the same command resumes from the last checkpoint" in job.log
    assert 30 <= step_of(output) < NUM_STEPS

    cluster.start_node("node2")
    cluster.wait_idle()
    assert job.wait() == "FAILED", cluster.with_logs("", job)
    assert job.facts()["Restarts"] == "0"
    again = cluster.submit("-N2", UNCHECKED, TRAIN, recipe)
    assert again.wait() == "COMPLETED", cluster.with_logs("", again)
    assert "step 1/" not in again.log
    assert_equal_tensors(tensors(output), tensors(whole))


def test_a_sweep_signalled_in_one_task(cluster: Cluster) -> None:
    """Two tasks with one setting: the first is stopped by a signal to its steps alone, and ends
    like the second.
    """
    recipe = write_recipe(cluster.folder, RECIPE, name="swept")
    settings = cluster.folder / "settings.txt"
    settings.write_text(
        "# the same twice\nseed=3 train.budget='100 iterations'\n\nseed=3 train.budget='100"
        " iterations'\n"
    )
    array = cluster.submit(
        "--array=0-1", UNCHECKED, SWEEP, recipe, settings, "data.num_workers=1", log="sweep-%a.log"
    )
    tasks = [Job(cluster, f"{array.name}_{n}", cluster.folder / f"sweep-{n}.log") for n in (0, 1)]
    outputs = [cluster.folder / "runs" / "sweeps" / "swept-settings" / str(n) for n in (0, 1)]
    cluster.until(lambda: step_of(outputs[0]) >= 10, "the first task trains", tasks[0])
    tasks[0].signal("--signal=USR1")
    tasks[0].wait_for_restart(1)
    assert [task.wait() for task in tasks] == ["COMPLETED", "COMPLETED"], cluster.with_logs(
        "", tasks[0]
    )
    assert tasks[0].log.count("SIGUSR1: stopped after step") == 1
    assert tasks[1].facts()["Restarts"] == "0"
    assert "1 nodes" in tasks[1].log
    assert_equal_tensors(tensors(outputs[0]), tensors(outputs[1]))


def test_what_fails_or_is_cancelled_is_not_requeued(cluster: Cluster) -> None:
    output = cluster.folder / "cancelled"
    cancelled = cluster.submit(
        "-N1", UNCHECKED, TRAIN, write_recipe(cluster.folder, RECIPE, name="cancelled")
    )
    recipe = write_recipe(cluster.folder, RECIPE, name="failing")
    unknown = cluster.submit(TRAIN, recipe, "train.bugdet='3 iterations'")
    missing = cluster.submit(UNCHECKED, TRAIN, recipe, "data.train.path=nowhere")
    bare = cluster.submit(TRAIN)
    single = cluster.submit(SWEEP, recipe, recipe)
    nothing = cluster.submit(UNCHECKED + ",DISTILL_PYTHON=/usr/bin/env", TRAIN, recipe)

    trained(cluster, cancelled, output)
    cancelled.signal()
    assert cancelled.wait() == "CANCELLED", cluster.with_logs("", cancelled)
    assert "SIGTERM: stopped after step" in cancelled.log
    assert list((output / "checkpoints").glob("step-*"))
    assert cancelled.facts()["Restarts"] == "0"

    said = {
        unknown: ("bugdet", "the check failed: not requeued"),
        missing: ("nowhere", "failed with exit code 2: not requeued"),
        bare: ("no recipe: sbatch",),
        single: ("submit with --array=0-",),
        nothing: ("/usr/bin/env has no distill", "DISTILL_PYTHON"),
    }
    for job, parts in said.items():
        assert job.wait() == "FAILED", cluster.with_logs("", job)
        assert job.facts()["Restarts"] == "0"
        assert job.facts()["ExitCode"] == "2:0"
        for part in parts:
            assert part in job.log, cluster.with_logs(part, job)
        assert "Traceback" not in job.log
    assert not (cluster.folder / "failing" / "metrics.jsonl").exists()
    assert not cluster.processes_of_jobs()
    assert not list(cluster.folder.glob(".distill-slurm-*")), "jobs clear up behind them"
