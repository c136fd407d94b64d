"""The check for a GPU machine, rehearsed on the CPU: every part runs, and every figure is in the
file. Nothing decides on a time.
"""

import json
import math
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import gpu_check  # noqa: E402
from benchmarks.gpu.device_tests import marked_files  # noqa: E402
from benchmarks.gpu.record import PartRecord, Record  # noqa: E402

PAIRS = {
    "BEiTv2-L -> ResNet-50",
    "BEiTv2-B -> ResNet-50",
    "BEiTv2-B -> ViT-S",
    "BEiTv2-B -> ConvNeXtV2-T",
    "ResNet-34 -> ResNet-18",
}


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("gpu") / "rehearsal.json"
    command = ["bash", "scripts/gpu_check.sh", "--rehearse", "--minutes", "60", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return {"printed": done.stdout, **json.loads(file.read_text())}


def numbers(figures: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(figures, dict):
        for key, value in figures.items():
            yield from numbers(value, f"{path}/{key}")
    elif isinstance(figures, int | float) and not isinstance(figures, bool):
        yield path, figures


def test_a_rehearsal_has_every_part_and_the_machine(rehearsal: dict[str, Any]) -> None:
    assert rehearsal["rehearsal"] is True
    assert {name: part["status"] for name, part in rehearsal["parts"].items()} == {
        "ceilings": "done",
        "tests": "done",
        "steps": "done",
        "jpegs": "done",
    }
    machine = rehearsal["machine"]
    assert {"device", "driver", "commit", "cores", "memory_bytes", "versions"} <= machine.keys()
    assert {"torch", "timm", "accelerate", "deepspeed", "nccl"} <= machine["versions"].keys()
    ceilings = rehearsal["parts"]["ceilings"]
    assert min(ceilings[key] for key in ("bf16_flops_s", "copy_bytes_s", "upload_bytes_s")) > 0
    tests = rehearsal["parts"]["tests"]
    assert tests["counts"]["passed"] == len(tests["outcomes"]["passed"]) > 30
    assert tests["counts"]["failed"] == 0
    for word in ("== ceilings", "== tests", "== steps", "== jpegs", "mean nothing"):
        assert word in rehearsal["printed"]


def test_the_step_table_is_complete(rehearsal: dict[str, Any]) -> None:
    steps = rehearsal["parts"]["steps"]
    assert steps.keys() >= PAIRS
    peak = rehearsal["parts"]["ceilings"]["bf16_flops_s"]
    for pair in PAIRS:
        assert steps[pair].keys() == {"eager", "compiled"}
        for how, line in steps[pair].items():
            assert line["parts_s"].keys() == {"data", "teacher", "student", "optimizer"}
            assert {"teacher", "student", "step"} == line["peak_shares"].keys()
            assert {"ours", "bare"} == line["images_per_s"].keys()
            share = line["flops"]["teacher"] / line["parts_s"]["teacher"] / peak
            assert line["peak_shares"]["teacher"] == pytest.approx(share)
            # The bare loop is the same maths: one step of each ends with the same weights.
            assert line["first_step_difference"] == 0, (pair, how)
            assert line["peak_memory_bytes"] > 1e7
            assert {"images_per_s", "step_s", "parts_s", "memory_bytes"} <= line["predicted"].keys()
            for path, value in numbers(line):
                assert math.isfinite(value), (pair, how, path)
                assert value > 0 or path == "/first_step_difference", (pair, how, path)


def test_the_rate_from_jpegs_has_every_line(rehearsal: dict[str, Any]) -> None:
    jpegs = rehearsal["parts"]["jpegs"]
    assert jpegs["paper_v100_hours"] == 264
    assert jpegs["a2_300_epochs_images"] == 300 * 625 * 2048
    assert jpegs["lines"].keys() == {"reference, eager", "fast, eager", "fast, compiled"}
    for line in jpegs["lines"].values():
        assert line["share_of_synthetic"] == pytest.approx(
            line["images_per_s"] / line["synthetic_images_per_s"]
        )
        hours = jpegs["a2_300_epochs_images"] / line["images_per_s"] / 3600
        assert line["a2_300_epochs_hours"]["from_jpegs"] == pytest.approx(hours)
        assert all(value > 0 for _, value in numbers(line))
    assert jpegs["larger_teacher_hours"].keys() == {"eager", "compiled"}
    for goal in rehearsal["goals"].values():
        assert goal["met"] == (goal["found"] >= goal["goal"])


# ---- what a machine that is cut off leaves -------------------------------------------------------


def test_what_does_not_fit_is_skipped_by_name_and_a_failure_costs_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Record(tmp_path / "found.json")
    part = PartRecord(record, "steps", time.time() + 100)

    def broken() -> dict[str, Any]:
        raise RuntimeError("out of memory")

    part.item(0, broken, "A -> B", "eager")
    part.item(1000, lambda: {"rate": 1}, "A -> B", "compiled")
    part.item(50, lambda: {"rate": 2}, "C -> D", "eager")
    found = record.read()["parts"]["steps"]
    assert found["A -> B"]["eager"]["failed"] == "RuntimeError: out of memory"
    assert "in broken" in found["A -> B"]["eager"]["traceback"]
    assert found["A -> B"]["compiled"]["skipped"].startswith("not enough time: needs about 1000 s")
    assert found["C -> D"]["eager"]["rate"] == 2
    assert part.num_failed == 1
    assert "A -> B, compiled: skipped" in capsys.readouterr().out


def test_a_part_that_hangs_is_cut_and_keeps_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the interpreter that writes a figure and hangs."""
    file = tmp_path / "found.json"
    hangs = tmp_path / "python"
    parts = {"parts": {"steps": {"status": "running", "A -> B": {"eager": {"rate": 3}}}}}
    hangs.write_text(f"#!/bin/sh\necho '{json.dumps(parts)}' > {file}\nsleep 600\n")
    hangs.chmod(0o755)
    monkeypatch.setattr(gpu_check.sys, "executable", str(hangs))
    monkeypatch.setattr(gpu_check, "GRACE_S", 0.5)
    started = time.time()
    found = gpu_check.run_part(
        gpu_check.PARTS[2], Namespace(rehearse=True), Record(file), time.time() + 1
    )
    assert time.time() - started < 60
    assert found["status"] == "cut"
    assert found["A -> B"]["eager"]["rate"] == 3


def test_goals_are_said_and_never_fail(capsys: pytest.CaptureFixture[str]) -> None:
    def line(share: float) -> dict[str, Any]:
        return {"peak_shares": {"teacher": share}}

    parts: dict[str, Any] = {
        "steps": {
            "status": "cut",
            "seconds": 3.0,
            "BEiTv2-L -> ResNet-50": {"eager": line(0.40), "compiled": line(0.46)},
            "ResNet-34 -> ResNet-18": {"eager": line(0.9)},
            "BEiTv2-B -> ViT-S": {"eager": {"skipped": "not enough time"}},
        },
        "jpegs": {"status": "done", "lines": {"fast, eager": {"share_of_synthetic": 0.89}}},
    }
    teacher, jpegs = gpu_check.goals(parts).values()
    assert teacher == {
        "goal": 0.45,
        "found": 0.46,
        "of": "BEiTv2-L -> ResNet-50, compiled",
        "met": True,
    }
    assert jpegs["met"] is False
    assert [goal["met"] for goal in gpu_check.goals({}).values()] == [None, None]
    gpu_check.show_end({"parts": parts, "goals": gpu_check.goals(parts), "rehearsal": False})
    printed = capsys.readouterr().out
    assert "  BEiTv2-B -> ViT-S, eager: skipped, not enough time" in printed
    assert "46.0% (BEiTv2-L -> ResNet-50, compiled); goal 45%: met" in printed
    assert "89.0% (fast, eager); goal 90%: NOT met" in printed


def test_the_budgets_leave_time_for_every_part() -> None:
    time_s = 9 * 60 - gpu_check.GRACE_S - gpu_check.START_S
    assert sum(part.least_s for part in gpu_check.PARTS) < time_s
    assert sum(part.most_s for part in gpu_check.PARTS if part.name != "steps") < 9 * 60


def test_tests_for_a_gpu_are_found_wherever_they_are() -> None:
    assert marked_files() == [
        "tests/gpu",
        "tests/data/loading/test_data_prefetch.py",
        "tests/student/test_ema.py",
        "tests/training/test_energy.py",
        "tests/training/test_pace.py",
    ]


def test_a_folder_without_wheels_is_refused(tmp_path: Path) -> None:
    command = ["bash", "scripts/gpu_check.sh", "--wheels", str(tmp_path), "--rehearse"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"--wheels {tmp_path}: there are no wheels" in done.stderr
