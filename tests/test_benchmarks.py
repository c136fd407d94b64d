"""The benchmarks run, compare like with like, and add up. Times are too small here to mean
anything, and none decides a test.
"""

import json
import subprocess
from argparse import Namespace
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

Measure = Callable[..., dict[str, Any]]


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: import_module(f"benchmarks.{name}")


@pytest.fixture
def measured(benchmark_module: Callable[[str], ModuleType], tmp_path: Path) -> Measure:
    """Run a benchmark on the CPU and read what it wrote."""

    def run(name: str, *arguments: str) -> dict[str, Any]:
        file = tmp_path / "figures.json"
        assert (
            benchmark_module(name).main([*arguments, "--device", "cpu", "--json", str(file)]) == 0
        )
        return json.loads(file.read_text())

    return run


def is_spread(spread: dict[str, float]) -> bool:
    return 0 < spread["low"] <= spread["median"] <= spread["high"]


TINY_STEP = (
    "--teacher",
    "cifar_resnet8",
    "--image-size",
    "16",
    "--batch-size",
    "8",
    "--steps-per-round",
    "2",
)


def test_our_step_and_the_minimal_loop_train_the_same_weights(measured: Measure) -> None:
    figures = measured("overhead", *TINY_STEP, "--rounds", "2")
    assert figures["weights_largest_difference"] == {"1": 0, "7": 0}
    assert is_spread(figures["ratio"])
    assert figures["settings"]["batch_size"] == 8
    assert [len(rounds) for rounds in figures["rounds_s"].values()] == [2, 2]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_both_loops_run_in_half_precision(measured: Measure, precision: str) -> None:
    figures = measured("overhead", *TINY_STEP, "--rounds", "1", "--precision", precision)
    assert is_spread(figures["ratio"])
    assert figures["weights_largest_difference"]["1"] < 0.01


def test_other_weights_are_seen(benchmark_module: Callable[[str], ModuleType]) -> None:
    ours, theirs = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    largest_difference = benchmark_module("overhead").largest_difference
    assert largest_difference(ours, theirs) == 0
    theirs.running_mean[1] = 0.25
    assert largest_difference(ours, theirs) == 0.25


def test_other_weights_fail_the_benchmark(
    benchmark_module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    overhead = benchmark_module("overhead")
    monkeypatch.setattr(overhead, "WEIGHT_DECAY", 0.1)
    assert overhead.main([*TINY_STEP, "--rounds", "1", "--device", "cpu"]) == 1


def test_students_share_a_teacher(measured: Measure) -> None:
    size = (
        "--model",
        "resnet18",
        "--teacher",
        "resnet34",
        "--image-size",
        "32",
        "--batch-size",
        "2",
    )
    figures = measured("shared_teacher", *size, "--rounds", "1")
    data, teacher, student = (
        figures["rounds_s"][part][0] for part in ("data", "teacher", "student")
    )
    ideal = (data + teacher + 4 * student) / (4 * (data + teacher + student))
    assert figures["ideal_time_ratio"]["median"] == pytest.approx(ideal)
    assert is_spread(figures["time_ratio"])
    # A student of 43 MiB holds its weights three times over. Were it to hold a teacher too, 81 MiB
    # would come on top. Live tensors are counted: what the resident set shows depends on the
    # machine's allocator. Gradients are freed at the end of a step.
    assert figures["further_student_live_bytes"] == pytest.approx(
        figures["own_bytes"] * 2 / 3, rel=0.01
    )
    assert set(figures["peak_bytes"]) == {"1", "2", "4"}
    assert figures["own_bytes"] == pytest.approx(3 * 4 * 11.18e6, rel=0.01)


def test_both_loaders_deliver(measured: Measure) -> None:
    small = (
        "--image-size",
        "32",
        "--batch-size",
        "8",
        "--images",
        "8",
        "--batches-per-round",
        "2",
        "--rounds",
        "1",
    )
    figures = measured("loader", *small, "--workers", "0", "1")
    assert list(figures["workers"]) == ["0", "1"]
    for found in figures["workers"].values():
        assert set(found["ratios"]) == {"reference", "fast"}
        assert all(map(is_spread, found["ratios"].values()))
    assert 90_000 < figures["jpeg_bytes"] < 120_000


def test_cka_is_that_of_the_paper(measured: Measure) -> None:
    """The peers are optional, and left out where they are not installed."""
    small = ("--layers", "3", "--width", "8", "--images", "21", "--batch-size", "8")
    figures = measured("similarity", *small, "--rounds", "1")["figures"]
    assert figures["ours"]["largest_difference"] < 1e-5
    assert {"ours", "forward alone"} <= set(figures)
    assert all(is_spread(found["ratio"]) for found in figures.values())


def test_contestants_take_turns_in_going_first(
    benchmark_module: Callable[[str], ModuleType],
) -> None:
    timing = benchmark_module("timing")
    log: list[str] = []

    def contestant(name: str, seconds: float) -> Callable[[], float]:
        def run() -> float:
            log.append(name)
            return seconds

        return run

    seconds = timing.interleaved(
        {"a": contestant("a", 1.0), "b": contestant("b", 2.0)}, 3, lambda: log.append("|")
    )
    assert "".join(log) == "|ab|ba|ab"
    assert seconds == {"a": [1.0] * 3, "b": [2.0] * 3}


def test_a_ratio_is_paired_by_round(benchmark_module: Callable[[str], ModuleType]) -> None:
    timing = benchmark_module("timing")
    slow_and_quick = [1.0, 5.0, 2.0, 9.0]
    assert timing.ratio([2 * second for second in slow_and_quick], slow_and_quick) == (
        2.0,
        2.0,
        2.0,
    )
    spread = timing.median([1.0, 2.0, 3.0, 4.0, 100.0])
    assert spread.low < spread.median == 3.0 < spread.high
    assert timing.median([1.0, 2.0, 3.0, 4.0, 100.0]) == spread


def test_hints_are_compared_with_kd(measured: Measure) -> None:
    figures = measured("hints", *TINY_STEP, "--rounds", "1", "--model", "cifar_resnet8")
    counted, timed = figures["counted"], figures["timed"]
    assert counted["kd"] == {"flops": 1.0, "bytes": 1.0, "extra_peak_mib": 0.0}
    for name, most in (("cc", 1.02), ("rkd", 1.03), ("crd", 1.06)):
        assert 1 < counted[name]["flops"] <= counted[name]["bytes"] < most, name
    # Its convolutions; the goal of 1.35 is out of reach (docs/measured.md).
    assert 1.9 < counted["reviewkd"]["flops"] < 2.1
    assert timed.keys() == counted.keys()
    assert all(is_spread(each["ratio"]) for each in timed.values())


def test_gradients_from_more_stored_logits_are_nearer(
    benchmark_module: Callable[[str], ModuleType],
) -> None:
    module = benchmark_module("targets")
    torch.manual_seed(0)
    student, teacher = torch.randn(12, 50), 3 * torch.randn(12, 50)
    few, many, most = (module.errors(student, teacher, keep) for keep in (3, 20, 49))
    assert len(few) == 9
    for name, error in few.items():
        assert error > many[name] > most[name], name
    # All but the smallest logit, which the sum of the rest gives: what is left is fp16.
    assert max(most.values()) < 2e-3
    apart = (teacher.double().softmax(1) - student.double().softmax(1)) / 12
    rows = module.RowFormat.chosen(3, 50, "fp32")
    stored = rows.decode(rows.encode(teacher), torch.device("cpu"))
    wrong = (stored.double().softmax(1) - teacher.double().softmax(1)) / 12
    assert few["KL, T = 1"] == pytest.approx(float(wrong.norm() / apart.norm()), rel=1e-6)


def test_the_end_to_end_benchmark_trains_what_timm_trains(
    benchmark_module: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    module = benchmark_module("end_to_end")
    settings = Namespace(
        model="test_resnet",
        teacher="test_efficientnet",
        image_size=32,
        batch_size=4,
        workers=0,
        timm=tmp_path,
    )
    for split in ("train", "val"):
        module.write_photographs(tmp_path / "images", split, 10)
    module.write_teacher(tmp_path / "teacher", settings.teacher)
    recipe = module.write_recipe(tmp_path, settings)
    for pipeline in ("reference", "fast"):
        command = module.our_command(recipe, tmp_path / pipeline, pipeline, 2)
        assert subprocess.run(command, check=False, capture_output=True).returncode == 0
        report = json.loads((tmp_path / pipeline / "report.json").read_text())
        assert report["steps"] == 2 * (10 // 4)


def test_masked_features_are_the_same_and_faster_to_compute(measured: Measure) -> None:
    figures = measured(
        "masked", "--model", "convnextv2_atto", "--image-size", "96", "--rounds", "2"
    )
    assert figures["difference"] < 1e-5
    assert is_spread(figures["ratio"])
