"""The command `distill doctor`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import Cli

from distill.doctor.findings import Diagnosis
from distill.doctor.interconnect import Timing, report_interconnect

ROOT = Path(__file__).resolve().parents[2]


L_TO_50 = "imagenet1k/res50_beitv2l_a2_300ep"


def doctor(cli: Cli, *arguments: object) -> tuple[int, dict[str, Any]]:
    outcome = cli("doctor", *arguments, "--json")
    return outcome.code, json.loads(outcome.out)


def findings(found: dict[str, Any], level: str) -> str:
    return "\n".join(
        f"{f['about']}: {f['says']} -> {f['fix']}" for f in found["findings"] if f["level"] == level
    )


def test_without_a_recipe_only_the_machine_is_examined(cli: Cli) -> None:
    outcome = cli("doctor")
    assert outcome.code == 0
    assert "torch" in outcome.out
    assert "not measured: there is only one process" in outcome.out
    assert "Memory of a process" not in outcome.out


def test_the_quickstart_is_read_and_decoded(cli: Cli) -> None:
    code, found = doctor(
        cli, "quickstart/students", "teacher.model=cifar_resnet20", "--gpus", 2, "output=nowhere"
    )
    assert code == 0
    assert found["sections"]["Data"]["data.train"]["value"] == "6,000 images, 10 classes"
    assert found["sections"]["Assumed"]["decoding"]["source"].startswith("measured")
    assert [row["gpus"] for row in found["forecast"]] == [1, 2, 8, 64]
    placements = [row["placement"] for row in found["memory"]]
    assert len(placements) == 8  # two of the teacher, four of the students, whose optimizer is SGD
    assert found["step"]["seconds"] > 0


def test_a_recipe_is_examined_without_its_data(cli: Cli) -> None:
    outcome = cli("doctor", L_TO_50, "--gpus", 8, "--gpu", "h100")
    assert outcome.code == 0
    for says in (
        "304.4 M parameters",
        "replicated + DDP *",
        "zero3 + DDP",
        "vendor data sheet",
        "assumed, not measured",
        "300 epochs, 187,500 steps",
        "64",
        "limits the speed",
    ):
        assert says in outcome.out, says


def test_a_batch_that_does_not_divide_is_certain_to_fail(cli: Cli) -> None:
    code, found = doctor(cli, L_TO_50, "--gpus", 3)
    assert code == 2
    assert "does not divide" in findings(found, "problem")
    assert "forecast" not in found


def test_what_does_not_fit_has_a_fix(cli: Cli) -> None:
    """1,024 images of a ViT-S with 34 MB each need more than 24 GB, and less with gradient
    checkpointing.
    """
    name = "imagenet1k/vit_s_beitv2b_a1_600ep"
    batch = ("train.micro_batch_size=1024", "train.batch_size_global=2048")
    code, found = doctor(cli, name, *batch, "--gpus", 2, "--gpu", "rtx4090")
    assert code == 0
    assert "are needed" in findings(found, "warning")
    assert "grad_checkpointing" in findings(found, "warning")
    code, found = doctor(
        cli, name, *batch, "student.grad_checkpointing=true", "--gpus", 2, "--gpu", "rtx4090"
    )
    assert "are needed" not in findings(found, "warning")


def test_a_dtype_that_the_gpu_lacks(cli: Cli) -> None:
    code, found = doctor(cli, L_TO_50, "--gpu", "v100", "--gpus", 8)
    assert code == 2
    assert "V100" in findings(found, "problem")


def test_options_reach_the_forecast(cli: Cli) -> None:
    _, slow = doctor(cli, L_TO_50, "--gpus", 8, "--decode", 1, "--workers", 1, "--mfu", 0.5)
    assert slow["step"]["bound"] == "data"
    assert slow["step"]["data_s"] == 256
    assert slow["step"]["student_s"] == pytest.approx(
        slow["step"]["student_flops"] / (0.5 * 989.4e12)
    )
    assert "data.num_workers" in findings(slow, "warning")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("quickstart/teacher", "--gpu", "h10"), "did you mean 'h100'"),
        (("quickstart/teacher", "--nodes", 2, "--gpus", 3), "2 nodes of 8 have 16"),
        (("quickstart/teacher", "--mfu", 35), "a fraction of the peak"),
        (("quickstart/teacher", "--network", -1), "should be larger than 0"),
        (("quickstart/teechers",), "no recipe"),
    ],
)
def test_bad_input_is_one_message(arguments: tuple[object, ...], says: str, cli: Cli) -> None:
    outcome = cli("doctor", *arguments)
    assert outcome.code == 2
    assert says in outcome.err
    assert outcome.out == ""


def test_a_contradicting_environment_is_a_problem(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    code, found = doctor(cli)
    assert code == 2
    assert "ACCELERATE_MIXED_PRECISION" in findings(found, "problem")


@pytest.mark.slow
def test_two_processes_measure_their_interconnect() -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        "-m",
        "distill",
        "doctor",
        "--json",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["interconnect"]  # one report, of the first process
    assert (found["processes"], found["backend"]) == (2, "gloo")
    assert [timing["size"] for timing in found["all_reduce"]] == [2**20, 2**24]
    for timing in found["all_reduce"]:
        assert timing["bus_bytes_s"] == pytest.approx(
            timing["size"] / timing["seconds"]
        )  # 2 (N - 1) / N is 1


def test_what_was_measured_is_shown() -> None:
    diagnosis = Diagnosis()
    report_interconnect(diagnosis, [Timing(2**24, 0.01, 1.5e9)], 4, "nccl")
    assert diagnosis.sections[0].tables[0].rows == (("16 MiB", "10.00", "1.50"),)
