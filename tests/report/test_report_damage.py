"""Damaged records and an incomplete report.json make a report with gaps, never an error."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tables import Page

from distill.report.content import Options, make_content
from distill.report.records import read_run
from distill.report.render import render_markdown
from distill.report.write import write_report
from distill.training.result_file import RunResult, finite

QUICK = Options(predictions=False)
PARTS = (
    *("run", "epochs", "seconds", "device_hours", "num_processes", "device", "num_skipped"),
    *("throughput", "data", "teacher", "warnings", "versions"),
)


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to change."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def change(run: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    file = run / "report.json"
    report = json.loads(file.read_text())
    edit(report)
    file.write_text(json.dumps(report))


def written(run: Path) -> Page:
    return Page(write_report([run], run, QUICK)[0])


def markdown(run: Path) -> str:
    return render_markdown(make_content([read_run(run)], QUICK))


def add_records(run: Path, *records: dict[str, Any] | str) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        for record in records:
            file.write(f"{record if isinstance(record, str) else json.dumps(record)}\n")


def test_a_finished_run_without_its_last_records_is_finished(run: Path) -> None:
    final = written(run)
    results = final.table("Final results")
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    first = [line for line in lines if json.loads(line)["step"] <= 4]
    metrics.write_text("".join(first) + '{"event": "evalua')
    page = written(run)
    assert "Finished: 6 steps" in page.text
    assert page.table("Final results") == results
    assert "metrics.jsonl ends at step 4 of 6" in page.text
    assert "metrics.jsonl ends" not in final.text
    metrics.unlink()
    assert "metrics.jsonl ends at step 0 of 6" in written(run).text


def test_a_run_whose_students_all_stopped_lost_no_records(run: Path) -> None:
    def stop(report: dict[str, Any]) -> None:
        report["steps"] = 7
        for student in report["students"].values():
            student["stopped_at"] = 6

    change(run, stop)
    found = read_run(run)
    assert found.finished
    assert found.num_lost_steps == 0


@pytest.mark.parametrize(
    "edit",
    [
        lambda report: report.update(run="another"),
        lambda report: report["students"].update(another={}),
        lambda report: report.update(steps=5),
    ],
    ids=["name", "students", "steps"],
)
def test_the_report_of_another_run_is_not_this_ones(
    run: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    change(run, edit)
    found = read_run(run)
    assert not found.finished
    assert found.step == 6


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_report_json_lacks_is_named(run: Path, part: str) -> None:
    change(run, lambda report: report.pop(part))
    text = markdown(run)
    assert "Finished: 6 steps" in text
    assert f"report.json does not contain {part}, or not in a" in text
    if part != "run":
        change(run, lambda report: report.update({part: "x" if part == "data" else [3]}))
        assert "Finished: 6 steps" in markdown(run)
    if part not in ("run", "teacher", "warnings"):
        assert f"report.json does not contain {part}, or not in a" in markdown(run)


def test_what_is_missing_is_shown_as_not_recorded(run: Path) -> None:
    def reduce(report: dict[str, Any]) -> None:
        for key in set(report) - {"steps", "students"}:
            del report[key]

    change(run, reduce)
    page = written(run)
    assert "Finished: 6 steps." in page.text
    for name in ("wall time", "device hours", "mean speed", "waiting for data", "versions"):
        assert page.fact(name) == "not recorded"
    assert page.fact("unreadable images skipped") == "not recorded"
    assert page.fact("training data") == "fashion_mnist train"


def test_students_in_report_json_may_be_incomplete(run: Path) -> None:
    def edit(report: dict[str, Any]) -> None:
        students = report["students"]
        students["kd"] = None
        del students["alone"]["best"]["weights"]
        students["alone"]["best"]["step"] = "3"
        students["vit"] = {"parameters": 10**400, "last": [], "averages": {"ema-0.5": 3}}

    change(run, edit)
    page = written(run)
    assert "report.json does not contain students.kd" in page.text
    assert "weights not recorded, step not recorded" in page.html
    rows = {row[0].split("\n")[0]: row for row in page.table("Final results")}
    assert rows["kd"][1:4] == ["–", "–", ""]


def test_an_average_that_the_recipe_does_not_name_has_its_own_style(run: Path) -> None:
    names = ("kd/ema-0.9", "kd/ema-0.99")
    for name in names:
        add_records(run, {"event": "evaluate", "step": 6, "models": {name: {"top1": 1.0}}})
    assert all(name in written(run).text for name in names)


@pytest.mark.parametrize("value", ["1e308", "-1e308", "1e999", f"1{'0' * 400}", "1e300", "-1e300"])
def test_huge_numbers_do_not_stop_the_report(run: Path, value: str) -> None:
    text = (run / "metrics.jsonl").read_text()
    for key in ("loss_total", "top1", "images_per_s", "data_wait_s", "time", "seconds"):
        text = text.replace(f'"{key}": ', f'"{key}": {value}, "_{key}": ')
    (run / "metrics.jsonl").write_text(text)
    report = (run / "report.json").read_text()
    for key in ("top1", "seconds", "images_per_s", "parameters", "epochs"):
        report = report.replace(f'"{key}": ', f'"{key}": {value}, "_{key}": ')
    (run / "report.json").write_text(report)
    written(run)
    (run / "report.json").unlink()
    written(run)


def test_tiny_gradient_norms_are_drawn(run: Path) -> None:
    for step, norm in ((1, 5e-324), (2, 1e-290), (3, 1e290)):
        students = {"kd": {"gradient_norm_total": norm}}
        add_records(run, {"event": "train", "step": step, "students": students})
    assert "Gradient norm, total" in written(run).text


def test_records_with_impossible_steps_are_damaged(run: Path) -> None:
    bad = [{"event": "train", "step": step, "students": {}} for step in (-1, 10**13, 10**400)]
    add_records(run, *bad, "[" * 100_000)
    found = read_run(run)
    assert found.num_damaged == 4
    assert found.step == 6
    assert "4 lines of metrics.jsonl are damaged" in written(run).text


@pytest.mark.parametrize("value", [1e301, -1e301, 10**400, float("nan"), float("inf"), True, "1"])
def test_what_is_no_finite_number_counts_as_absent(value: object) -> None:
    assert finite(value) is None


def test_a_negative_cost_counts_as_absent() -> None:
    costs = {"seconds": -3.0, "device_hours": -1, "energy_j": -5.0, "epochs": 0}
    result = RunResult.model_validate({"steps": 1, "students": {}, **costs})
    assert (result.seconds, result.device_hours, result.energy_j) == (None, None, None)
    assert result.epochs == 0
