"""The launch files as they stand: shells that are sound, settings that Accelerate reads, commands
with every number in its place.

What they do under a real SLURM is tests/slurm/. Here a stand-in for Python shows what the scripts
would start on GPUs.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LAUNCHERS = ROOT / "launchers"
SHELLS = [
    *sorted(LAUNCHERS.rglob("*.sh")),
    *sorted(LAUNCHERS.rglob("*.sbatch")),
    ROOT / ".ci" / "run",
    ROOT / "scripts" / "gpu_check.sh",
]
ACCELERATE = sorted((LAUNCHERS / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", SHELLS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    done = subprocess.run(
        ["shellcheck", "-x", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.name)
def test_accelerate_reads_each_launch_file_as_plain_processes(path: Path) -> None:
    """Precision, ZeRO, accumulation and compilation are the recipe's: a launch file that names them
    could contradict it.
    """
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    processes = (
        ["--num_processes", "32", "--num_machines", "4"] if path.name == "nodes.yaml" else []
    )
    arguments = launch_command_parser().parse_args(
        ["--config_file", str(path), *processes, "-m", "distill"]
    )
    arguments, _, _ = _validate_launch_command(arguments)
    expected = {"single.yaml": (1, 1), "nodes.yaml": (32, 4)}.get(path.name, (8, 1))
    assert (arguments.num_processes, arguments.num_machines) == expected
    assert arguments.multi_gpu == (path.name != "single.yaml")
    assert arguments.mixed_precision == "no"
    assert arguments.dynamo_backend == "no"
    others = ("use_deepspeed", "use_fsdp", "use_megatron_lm", "use_cpu")
    assert not [name for name in others if vars(arguments)[name]]
    known = {
        "gpu_ids",
        "rdzv_backend",
        "same_network",
        "main_training_function",
        "use_cpu",
        "compute_environment",
    }
    known |= {
        "distributed_type",
        "mixed_precision",
        "num_machines",
        "num_processes",
        "machine_rank",
    }
    assert set(yaml.safe_load(path.read_text())) <= known


@pytest.mark.parametrize(
    ("path", "overrides"), [("zero2.yaml", "train.zero_stage=2"), ("zero3_teacher.yaml", "zero3")]
)
def test_the_zero_files_name_overrides_that_recipes_have(path: str, overrides: str) -> None:
    from distill.recipe import load_recipe

    text = (LAUNCHERS / "accelerate" / path).read_text()
    assert overrides in text
    named = [
        word.strip("[]")
        for line in text.splitlines()
        if line.startswith("#")
        for word in line.split()
        if "=" in word
    ]
    assert len(named) == 2
    recipe = "imagenet1k/res50_beitv2l_a2_300ep"
    load_recipe(recipe, [*named, "student.optimizer.name=adamw"])


@pytest.mark.parametrize("name", ["train.sbatch", "sweep.sbatch", "study.sbatch"])
def test_a_batch_script_asks_for_what_requeueing_needs(name: str) -> None:
    lines = (LAUNCHERS / "slurm" / name).read_text().splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert {
        "--requeue",
        "--open-mode=append",
        "--signal=B:USR1@300",
        "--ntasks-per-node=1",
    } <= asked
    fixed = ("--partition", "--nodes", "--gres", "--gpus", "--time", "--account")
    assert not [option for option in asked if option.startswith(fixed)], (
        "another cluster would have to edit this"
    )


# ---- what would be started -----------------------------------------------------------------------


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A Python that has `distill`, and in place of running anything says what it was
    asked to run.
    """
    path = tmp_path / "python"
    path.write_text(
        '#!/bin/bash\n[[ $1 == -c ]] || { printf "%s\\n" "OMP $OMP_NUM_THREADS" "$@"; }\n'
    )
    path.chmod(0o755)
    return path


def started(script: Path, *arguments: str, **environment: object) -> list[str]:
    """The words of the command that a script starts; with "OMP", the threads it gives each process,
    as the first.
    """
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("SLURM", "OMP_", "DISTILL_"))
    }
    done = subprocess.run(
        ["bash", str(script), *arguments],
        env={**kept, **{key: str(value) for key, value in environment.items()}},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


NODE: dict[str, Any] = {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": 20001, "SLURM_CPUS_ON_NODE": 96}


def test_a_node_of_gpus_starts_its_share_under_its_own_rank(stand_in: Path, tmp_path: Path) -> None:
    from accelerate.commands.launch import launch_command_parser

    four = {
        "SLURM_JOB_NUM_NODES": 4,
        "SLURM_NODEID": 3,
        "SLURM_GPUS_ON_NODE": 8,
        "DISTILL_PROCESSES_PER_NODE": 8,
    }
    state = {"DISTILL_STATE": tmp_path, "DISTILL_PYTHON": stand_in}
    threads, *words = started(
        LAUNCHERS / "slurm" / "node.sh", "train", "recipe.yaml", "name=a b", **NODE, **four, **state
    )
    assert threads == "OMP 12"
    assert words[:2] == ["-m", "accelerate.commands.launch"]
    launch = launch_command_parser().parse_args(words[2:])
    assert (launch.machine_rank, launch.num_machines, launch.num_processes) == (3, 4, 32)
    assert (launch.main_process_ip, launch.main_process_port) == ("10.0.0.7", 20001)
    assert Path(launch.config_file).resolve() == LAUNCHERS / "accelerate" / "nodes.yaml"
    assert Path(launch.training_script).resolve() == LAUNCHERS / "slurm" / "rank.py"
    assert launch.training_script_args == ["train", "recipe.yaml", "name=a b"]


def test_one_process_needs_no_launcher(stand_in: Path, tmp_path: Path) -> None:
    one = {"SLURM_JOB_NUM_NODES": 1, "SLURM_NODEID": 0, "DISTILL_PROCESSES_PER_NODE": 1}
    state = {"DISTILL_STATE": tmp_path, "DISTILL_PYTHON": stand_in}
    _, script, *words = started(
        LAUNCHERS / "slurm" / "node.sh", "train", "recipe.yaml", **NODE, **one, **state
    )
    assert Path(script).resolve() == LAUNCHERS / "slurm" / "rank.py"
    assert words == ["train", "recipe.yaml"]
    assert (tmp_path / "ended").read_text() == "0\n", "what job.sh waits for"


def test_torchrun_takes_its_place_among_machines(stand_in: Path) -> None:
    from torch.distributed.run import get_args_parser

    machine = {"NNODES": 2, "NODE_RANK": 1, "MASTER_ADDR": "10.0.0.7", "DISTILL_PYTHON": stand_in}
    _, *words = started(LAUNCHERS / "torchrun.sh", "recipe.yaml", "seed=1", **machine)
    assert words[:3] == ["-m", "distill", "launch"]
    launch = get_args_parser().parse_args(words[3:])
    assert (launch.nnodes, launch.node_rank, launch.master_addr, launch.master_port) == (
        "2",
        1,
        "10.0.0.7",
        29500,
    )
    assert launch.nproc_per_node == "gpu"
    assert [launch.training_script, *launch.training_script_args] == [
        "train",
        "recipe.yaml",
        "seed=1",
    ]

    _, *words = started(
        LAUNCHERS / "torchrun.sh", "recipe.yaml", NPROC_PER_NODE=2, DISTILL_PYTHON=stand_in
    )
    launch = get_args_parser().parse_args(words[3:])
    assert (launch.standalone, launch.nproc_per_node) == (True, "2")


def test_kubernetes_pods_are_alike_and_whole() -> None:
    job = yaml.safe_load((LAUNCHERS / "kubernetes" / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert replicas["Master"]["replicas"] == 1
    assert replicas["Master"]["template"] == replicas["Worker"]["template"]
    assert {kind["restartPolicy"] for kind in replicas.values()} == {"OnFailure"}
    pod = replicas["Master"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch", (
        "the operator sets the addresses in a container of this name alone"
    )
    assert container["command"] == ["torchrun", "-m", "distill", "train"]
    assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == job["spec"]["nprocPerNode"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    assert any(mount["mountPath"] == "/dev/shm" for mount in container["volumeMounts"])
    assert pod["terminationGracePeriodSeconds"] > 30, "torchrun gives the ranks 30 s to save"

    from distill.recipe import load_recipe

    recipe, *overrides = container["args"]
    load_recipe(recipe, overrides)


def test_the_page_names_every_launcher() -> None:
    page = (LAUNCHERS / "README.md").read_text()
    files = [
        path
        for path in LAUNCHERS.rglob("*")
        if path.is_file() and path.suffix not in (".md", ".pyc")
    ]
    missing = [path.name for path in files if path.name not in page]
    assert not missing
