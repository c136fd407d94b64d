"""A study as a SLURM array: each job is a task, which stops, requeues and fails by itself."""

import re
import sys
from pathlib import Path
from typing import Any

import yaml
from cluster import Cluster, Job
from tiny import assert_equal_tensors, run, tensors, write_recipe

from distill.study.stored import read_plan
from distill.study.work import left_jobs

NUM_STEPS = 80
RECIPE: dict[str, Any] = {
    "train": {"budget": f"{NUM_STEPS} iterations", "batch_size_global": 64, "micro_batch_size": 32},
    "evaluate": {"every": f"{NUM_STEPS} iterations"},
    "checkpoint": {"every": "25 iterations"},
}


def submitted(cluster: Cluster, study: Path, *overrides: str) -> tuple[str, str]:
    """`distill study ... --slurm` on the cluster; returns what it printed and the array's id."""
    logs = f"--output={cluster.folder}/study-%a.log --nodes=1"
    command = [sys.executable, "-m", "distill", "study", str(study), *overrides, "--slurm", logs]
    out = cluster.call(*command)
    found = re.search(r"Submitted batch job (\d+)", out)
    assert found, out
    return out, found[1]


def test_a_study_is_an_array(cluster: Cluster) -> None:
    base = write_recipe(cluster.folder, RECIPE, name="base")
    study = cluster.folder / "grid.yaml"
    tree = {
        "recipe": str(base),
        "output": str(cluster.folder / "grid"),
        "axes": {
            "optimizer.lr": [0.05, 0.1],
            "data": {
                "first": {"seed": 0},
                "lost": {"data.train.path": str(cluster.folder / "nowhere")},
                "second": {"seed": 1},
            },
        },
        "table": {"rows": ["data"], "columns": ["optimizer.lr"]},
    }
    study.write_text(yaml.safe_dump(tree, sort_keys=False))
    out, array = submitted(cluster, study)
    assert "--array=0,1,2" in out
    tasks = [Job(cluster, f"{array}_{n}", cluster.folder / f"study-{n}.log") for n in range(3)]
    metrics = cluster.folder / "grid/first/metrics.jsonl"
    cluster.until(
        lambda: metrics.is_file() and metrics.read_text().count("train") >= 5, "it trains", tasks[0]
    )
    tasks[0].signal("--signal=USR1")
    tasks[0].wait_for_restart(1)
    states = [task.wait() for task in tasks]
    assert states == ["COMPLETED", "FAILED", "COMPLETED"], cluster.told("", tasks[0])
    assert "nowhere" in tasks[1].log
    assert "failed with exit code 2: not requeued" in tasks[1].log
    assert tasks[0].log.count("SIGUSR1: stopped after step") == 1

    plan = read_plan(cluster.folder / "grid")
    assert left_jobs(plan) == [1]
    assert run(plan.recipe_file(plan.runs[0]), f"output={cluster.folder / 'alone'}") == 0
    assert_equal_tensors(tensors(plan.output(plan.runs[0])), tensors(cluster.folder / "alone"))
    table = cluster.call(sys.executable, "-m", "distill", "study", str(study), "--table")
    assert [line.split()[0] for line in table.splitlines()[2:5]] == ["first", "lost", "second"]
    assert table.count("not run") == 2

    out, array = submitted(cluster, study)
    assert "--array=1 " in out, "only what is not done"
    again = Job(cluster, f"{array}_1", cluster.folder / "study-1.log")
    assert again.wait() == "FAILED"
